"""Decoding token by token equals a full forward pass."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import models
from dpo_jax.sampling import engine, filters
from tests import forests
from tests.sampling import prefilled

LENGTHS, SAMPLES, STEPS = (9, 1, 20, 5), 2, 4
LAYER_NORM = dict(norm='layer', norm_eps=1e-3)
QUIRKS = {
  'plain': {},
  'untied': dict(tie_embeddings=False),
  'layer_norm': LAYER_NORM,
  'learned_positions': dict(positions='learned'),
  'biases': dict(attention_bias=True, attention_out_bias=True, mlp_bias=True),
  'plain_mlp': dict(gated_mlp=False, activation='gelu_tanh'),
  'multi_query': dict(num_kv_heads=1),
  'no_groups': dict(num_kv_heads=4),
  'scale': dict(attention_scale=0.7),
  'scale_by_layer': dict(attention_scale_by_layer=True),
  'windows': dict(local_layers=(True, False, True), window=3),
  'theta': dict(rope_theta=50.0),
  'linear_rope': dict(
    rope_scaling=models.RopeScaling(kind='linear', factor=4.0)
  ),
  'llama3_rope': dict(
    rope_scaling=models.RopeScaling(
      kind='llama3', factor=8.0, original_max_positions=32
    )
  ),
}
QUIRKS['gpt2'] = {
  **QUIRKS['layer_norm'],
  **QUIRKS['learned_positions'],
  **QUIRKS['biases'],
  **QUIRKS['plain_mlp'],
  **QUIRKS['no_groups'],
  **QUIRKS['scale_by_layer'],
}
QUIRKS['llama'] = {
  **QUIRKS['biases'],
  **QUIRKS['multi_query'],
  **QUIRKS['llama3_rope'],
  **QUIRKS['scale'],
  **QUIRKS['untied'],
}
QUIRKS['gemma'] = dict(
  norm='rms_offset',
  qk_norm=True,
  post_norms=True,
  residual='parallel',
  rotary_dim=6,
  local_layers=(True, False, True),
  window=4,
  local_rope_theta=30.0,
  embedding_scale=4.0,
  unembed_bias=True,
  attention_softcap=2.0,
  logit_softcap=3.0,
)


def _model(quirk):
  config = dataclasses.replace(forests.CONFIG, num_layers=3, **QUIRKS[quirk])
  params = forests.params(3, config)
  noise = jax.random.key(4)
  # Biases and norms start at 0 and 1, where many mistakes don't show.
  params = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(noise, x.shape) * (x.ndim < 3), params
  )
  return config, params


def _tokens():
  """Prompts, and what follows them: i32[B, S, STEPS]."""
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, forests.VOCAB, n).tolist() for n in LENGTHS]
  shape = (len(LENGTHS), SAMPLES, STEPS)
  return prompts, rng.integers(0, forests.VOCAB, shape).astype(np.int32)


def _incremental(
  params,
  config,
  prompts,
  after_BxSxT,
  compute,
  *,
  first_step=0,
  num_sequences=1,
):
  """Hidden states [B, S, STEPS + 1, D], prompts in the given order."""
  decode = functools.partial(models.decode, compute=compute)
  decode = jax.jit(decode, static_argnums=1)
  last, cache, index_B = prefilled.cache_of(
    params,
    config,
    prompts,
    num_samples=SAMPLES,
    capacity=STEPS,
    compute=compute,
    step=first_step,
  )
  hidden = [jnp.repeat(last[:, None], SAMPLES, 1)]
  weights = models.unstack(params, compute, num_sequences=num_sequences)
  for t in range(STEPS):
    token = after_BxSxT[index_B, :, t]
    out, cache = decode(
      weights, config, token, jnp.int32(first_step + t), cache
    )
    hidden.append(out)
  return np.stack(hidden, 2).astype(np.float32)[np.argsort(index_B)]


def _full(params, config, prompts, after_BxSxT, compute):
  """The same by one forward pass over padded sequences."""
  length = max(LENGTHS) + STEPS
  ids = np.zeros((len(prompts), SAMPLES, length), np.int32)
  at = np.zeros((len(prompts), SAMPLES, STEPS + 1), np.int32)
  for b, prompt in enumerate(prompts):
    for s in range(SAMPLES):
      sequence = [*prompt, *after_BxSxT[b, s]]
      ids[b, s, : len(sequence)] = sequence
      at[b, s] = len(prompt) - 1 + np.arange(STEPS + 1)
  compute = dataclasses.replace(compute, attention='dense')
  forward = jax.jit(
    functools.partial(models.forward, compute=compute), static_argnums=1
  )
  hidden = forward(params, config, ids.reshape(-1, length))
  hidden = np.asarray(hidden.astype(jnp.float32))
  hidden = hidden.reshape(*ids.shape, -1)
  return np.take_along_axis(hidden, at[..., None], axis=2)


def _assert_same(quirk, compute, tolerance, prompts=None, **options):
  config, params = _model(quirk)
  default, after = _tokens()
  prompts = prompts or default
  expected = _full(params, config, prompts, after, compute)
  actual = _incremental(params, config, prompts, after, compute, **options)
  assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize('quirk', QUIRKS)
def test_incremental_equals_full_forward(quirk):
  _assert_same(quirk, models.Compute(), 1e-5)


@pytest.mark.parametrize('quirk', ['gpt2', 'gemma', 'windows'])
def test_so_it_does_with_transposed_kernels_from_any_step_on(quirk):
  # No multiple of STEPS: the places of own tokens wrap around.
  _assert_same(
    quirk, models.Compute(), 1e-5, num_sequences=2, first_step=2 * STEPS - 2
  )


@pytest.mark.parametrize('attention', ['tree', 'dense', 'cudnn'])
@pytest.mark.parametrize('quirk', ['plain', 'windows'])
def test_so_it_does_for_prompts_with_common_prefixes(quirk, attention):
  prompts, _ = _tokens()
  long = max(prompts, key=len)
  # Two equal ones, one within another, two that part, and one alone.
  shared = [long[:9], long, long, [*long[:5], 1, 2, 3], [4, 2]]
  compute = models.Compute(attention=attention)
  _assert_same(quirk, compute, 1e-5, shared[: len(prompts)])


@pytest.mark.parametrize('quirk', ['gpt2', 'llama', 'gemma'])
def test_incremental_equals_full_forward_in_bfloat16(quirk):
  # A bfloat16 has 8 bits; the two round sums of different order.
  _assert_same(quirk, models.Compute(dtype='bfloat16'), 0.05)


def test_float32_logits_of_a_bfloat16_model():
  config, params = _model('llama')
  compute = models.Compute(dtype='bfloat16')
  hidden = jnp.ones((2, config.d_model), jnp.bfloat16)
  weights = models.unstack(params, compute)
  assert models.logits(weights, config, hidden).dtype == jnp.float32
  assert weights['layers'][0]['mlp']['up']['kernel'].dtype == jnp.bfloat16
  assert weights['layers'][0]['mlp_norm']['scale'].dtype == jnp.float32


@pytest.mark.parametrize('rows', [1, 64, 65])
@pytest.mark.parametrize('quirk', ['plain', 'untied', 'gemma'])
def test_step_logits_are_logits(quirk, rows):
  config, params = _model(quirk)
  hidden = jax.random.normal(jax.random.key(0), (rows, config.d_model))
  np.testing.assert_allclose(
    models.step_logits(params, config, hidden).T,
    models.logits(params, config, hidden),
    rtol=1e-5,
    atol=1e-5,
  )


def test_samples_share_the_keys_and_values_of_their_prompt():
  config, params = _model('plain')
  prompts, _ = _tokens()
  _, cache, _ = prefilled.cache_of(
    params,
    config,
    prompts,
    num_samples=7,
    capacity=5,
    compute=models.Compute(),
  )
  groups, d = config.num_kv_heads, config.head_dim
  assert {x.shape for x in cache.prompt_k} == {(len(LENGTHS), groups, d, 24)}
  assert {x.shape for x in cache.own_v} == {(len(LENGTHS), 7, groups, 5, d)}


def test_layers_with_a_window_hold_no_more_keys_than_it():
  config, params = _model('windows')
  prompts, _ = _tokens()
  _, cache, _ = prefilled.cache_of(
    params,
    config,
    prompts,
    num_samples=2,
    capacity=STEPS,
    compute=models.Compute(),
  )
  window = config.window
  assert window < STEPS < 24
  for local, prompt_k, own_v in zip(
    config.local_layers, cache.prompt_k, cache.own_v
  ):
    assert prompt_k.shape[-1] == (window if local else 24)
    assert own_v.shape[-2] == (window if local else STEPS)


def test_on_a_cpu_unstacked_layers_are_views():
  _, params = _model('plain')
  layers = models.unstack(params, models.Compute())['layers']
  stacked = params['layers']['mlp']['up']['kernel']
  for i, w in enumerate(layers):
    kernel = w['mlp']['up']['kernel']
    offset = i * kernel.nbytes
    # JAX copies arrays without its alignment.
    if offset % 64 == 0:
      start = stacked.unsafe_buffer_pointer()
      assert kernel.unsafe_buffer_pointer() == start + offset
    np.testing.assert_array_equal(kernel, stacked[i])


def test_on_one_cpu_kernels_of_several_sequences_are_transposed():
  _, params = _model('gpt2')
  layers = models.unstack(params, models.Compute(), num_sequences=2)['layers']
  stacked = params['layers']['mlp']['up']
  for i, w in enumerate(layers):
    assert set(w['mlp']['up']) == {'kernel_out_in', 'bias'}
    np.testing.assert_array_equal(
      w['mlp']['up']['kernel_out_in'], stacked['kernel'][i].T
    )
    np.testing.assert_array_equal(w['mlp']['up']['bias'], stacked['bias'][i])


def test_the_loop_copies_no_cache():
  config, params = _model('plain')
  compute = models.Compute()
  make_empty = engine.make_empty(config, compute, 4, SAMPLES, 24, 48)
  state = make_empty(jax.random.key(0))
  settings = engine.Settings(
    filters.SamplingRule(None, None, None), jnp.array([-1]), jnp.int32(48)
  )
  weights = models.unstack(params, compute)
  advance = engine.make_advance(config, compute)
  text = (
    advance.lower(state, weights, settings, jnp.int32(9), jnp.int32(4))
    .compile()
    .as_text()
  )
  shapes = {
    ','.join(map(str, x.shape)) for x in (state.cache.own_k + state.cache.own_v)
  }
  for shape in shapes:
    assert re.search(rf'f32\[{shape}\]', text)
    assert not re.search(rf'= f32\[{shape}\]\S* copy\(', text)
