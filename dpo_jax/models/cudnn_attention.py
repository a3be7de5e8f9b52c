"""Attention by cuDNN's fused kernel, over trees padded to equal lengths.

The kernel supports lengths, causal masks and windows, but no branches: layouts
with shared prompts are an error. On a GPU it takes 16-bit dtypes only and has
no softcap. On other backends XLA computes the same function in any dtype; the
tests use that. Windows count tokens of the tree, which are positions if no
prompt is shared.
"""

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import attention, tree_gather


@flax.struct.dataclass
class View:
  """The gathers of each row's `trees` trees into sequences of `size` tokens."""

  to_sequences: tree_gather.TreeGather
  to_rows: tree_gather.TreeGather
  length_RxT: types.Array
  trees: int = flax.struct.field(pytree_node=False)
  size: int = flax.struct.field(pytree_node=False)


def view(layout: types.Layout) -> View:
  """The `View` of a layout; ValueError if its prompts are shared."""
  if layout.shared:
    raise ValueError(
      "Attention 'cudnn' takes one completion per tree, but the batches share "
      'prompts between completions. Pack them with share_prompt=False, or set '
      "attention='tree'."
    )
  (size, _), (_, trees) = layout.profile[-1], layout.profile[0]
  to_sequences, to_rows = tree_gather.make_gathers(layout, ((0, size, trees),))
  # At least 1: the softmax of an unused sequence needs a key too.
  length_RxT = jnp.maximum(layout.tree_length_RxT[:, :trees], 1)
  return View(to_sequences, to_rows, length_RxT, trees, size)


def attend(
  q, k, v, view: View, scale, softcap=None, window=None, implementation=None
):
  """See `attention.Backend`; ValueError for what cuDNN does not support.

  implementation: 'cudnn' or 'xla'; None is 'cudnn' if JAX's default backend is
  a GPU, even if the computation is then lowered for another one.
  """
  if implementation is None:
    implementation = 'cudnn' if jax.default_backend() == 'gpu' else 'xla'
  if implementation == 'cudnn':
    _check(q.dtype, scale)
  if softcap is not None:
    raise ValueError(
      "Attention 'cudnn' has no softcap, which this model needs: set "
      "attention='tree'."
    )

  def sequences(x):
    x = tree_gather.gather(x, view.to_sequences, view.to_rows)
    return x.reshape(-1, view.size, *x.shape[2:])

  length_B = view.length_RxT.reshape(-1)

  def run(size, q, k, v):
    return jax.nn.dot_product_attention(
      q,
      k,
      v,
      scale=scale,
      is_causal=True,
      query_seq_lengths=length_B,
      key_value_seq_lengths=length_B,
      local_window_size=None if size is None else (size - 1, 0),
      implementation=implementation,
    )

  out = _by_window(run, window, *map(sequences, (q, k, v)))
  out = out.reshape(len(view.length_RxT), -1, *out.shape[2:])
  return tree_gather.gather(out, view.to_rows, view.to_sequences)


def _by_window(run, window, *qkv):
  """run(window size or None, *qkv), by `cond` where `applies` is traced.

  The kernel's window size is a compile-time constant.
  """
  if window is None:
    return run(None, *qkv)
  if window.applies is True:
    return run(window.size, *qkv)
  return jax.lax.cond(
    window.applies,
    lambda *qkv: run(window.size, *qkv),
    lambda *qkv: run(None, *qkv),
    *qkv,
  )


def _check(dtype, scale):
  if dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(
      f"Attention 'cudnn' computes in 16 bits, not in {dtype}: set "
      "dtype='bfloat16' or attention='tree'."
    )
  if not isinstance(scale, float):
    raise ValueError(
      "Attention 'cudnn' needs one scale for all layers, but this model's "
      "scale differs by layer: set attention='tree'."
    )


BACKEND = attention.Backend(view, attend)
