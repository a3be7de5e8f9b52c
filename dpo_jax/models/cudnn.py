"""Attention by cuDNN's kernel, over trees padded to sequences.

The kernel knows lengths, causality and windows, but no branches: layouts that
share prompts are an error. On a GPU it takes 16-bit dtypes and has no softcap;
on any other backend XLA computes the same, in any dtype, which is what the
tests compare. Windows count places in the tree, which in such layouts are
positions.
"""

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import attention, moves


@flax.struct.dataclass
class View:
  """A layout as `trees` sequences a row, each of `size` tokens, and lengths."""

  to_sequences: moves.Move
  to_row: moves.Move
  length_RxT: types.Array
  trees: int = flax.struct.field(pytree_node=False)
  size: int = flax.struct.field(pytree_node=False)


def view(layout: types.Layout) -> View:
  """ValueError for layouts whose trees have several completions."""
  if layout.shared:
    raise ValueError(
      "Attention 'cudnn' sees one completion at a time, but the batches share "
      'prompts between completions. Pack them with share_prompt=False, or set '
      "attention='tree'."
    )
  (size, _), (_, trees) = layout.profile[-1], layout.profile[0]
  there, back = moves.moves(layout, ((0, size, trees),))
  # Unused places too have a key to look at.
  length_RxT = jnp.maximum(layout.tree_length_RxT[:, :trees], 1)
  return View(there, back, length_RxT, trees, size)


def attend(
  q, k, v, view: View, scale, softcap=None, window=None, implementation=None
):
  """As `attention.Backend`; ValueError for what cuDNN has not.

  implementation: 'cudnn' or 'xla'; None is 'cudnn' if JAX's default backend is
  a GPU, whatever the computation is then lowered for.
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
    x = moves.move(x, view.to_sequences, view.to_row)
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
  return moves.move(out, view.to_row, view.to_sequences)


def _by_window(run, window, *qkv):
  """run(size or None, ...): a kernel's window is fixed when it is compiled."""
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
      "Attention 'cudnn' scales the scores of all layers alike, but this model "
      "does so by layer: set attention='tree'."
    )


BACKEND = attention.Backend(view, attend)
