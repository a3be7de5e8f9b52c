"""cuDNN attention, run by XLA, equals the rule; errors for the unsupported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import models
from dpo_jax.models import attention, cudnn_attention
from tests import forests


def _batch(share_prompt=False):
  return forests.pack(
    forests.random_records(0, num=6),
    rows=2,
    batch_size=4,
    num_batches=1,
    seed=0,
    share_prompt=share_prompt,
  )[0]


WINDOWS = {
  'none': None,
  'every layer': attention.Window(3, True),
  'this layer': attention.Window(3, jnp.array(True)),
  'another layer': attention.Window(3, jnp.array(False)),
}


@pytest.mark.parametrize('window', WINDOWS)
def test_outputs_and_gradients_are_those_of_the_rule(window):
  layout, window = _batch().layout, WINDOWS[window]
  real = np.asarray(layout.segment_RxL) > 0
  # Several trees a row, some rows with fewer, and padding.
  assert (layout.tree_length_RxT[:, -1] == 0).any() and not real.all()
  rng = np.random.default_rng(0)
  q, k, v, direction = (
    rng.normal(size=(*real.shape, heads, 8)).astype(np.float32)
    for heads in (4, 2, 2, 4)
  )
  direction = np.where(real[..., None, None], direction, 0)

  def outputs(backend):
    view = backend.prepare(layout)

    @jax.jit
    def run(q, k, v):
      out, vjp = jax.vjp(
        lambda *qkv: backend.attend(*qkv, view, 0.4, window=window), q, k, v
      )
      return out, *vjp(direction)

    return run(q, k, v)

  expected = outputs(attention.BACKENDS['dense'])
  for a, b in zip(outputs(cudnn_attention.BACKEND), expected):
    np.testing.assert_allclose(a[real], b[real], rtol=1e-4, atol=1e-5)


def _attend(*, dtype='bfloat16', scale=0.3, **rule):
  layout = _batch().layout
  shape = (*layout.segment_RxL.shape, 4, 8)
  q = jnp.zeros(shape, dtype)
  return cudnn_attention.attend(
    q, q, q, cudnn_attention.view(layout), scale, implementation='cudnn', **rule
  )


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'dtype': 'float32'}, r"not in float32: set dtype='bfloat16' or att"),
    ({'softcap': 3.0}, r"no softcap.*attention='tree'"),
    ({'scale': np.float32(0.3) * jnp.ones(())}, r"by layer.*attention='tree'"),
  ],
)
def test_what_the_kernel_has_not_is_an_error(options, words):
  with pytest.raises(ValueError, match=words):
    _attend(**options)


def test_shared_prompts_are_an_error():
  with pytest.raises(ValueError, match=r'share_prompt=False, or set attention'):
    cudnn_attention.view(_batch(share_prompt=True).layout)


def test_softcaps_are_an_error_on_any_platform():
  config = dataclasses.replace(forests.CONFIG, attention_softcap=3.0)
  compute = models.Compute(attention='cudnn')
  with pytest.raises(ValueError, match=r"attention='tree'"):
    jax.eval_shape(
      lambda params, ids: models.forward(params, config, ids, compute=compute),
      models.init(jax.random.key(0), config),
      np.zeros((1, 4), np.int32),
    )
