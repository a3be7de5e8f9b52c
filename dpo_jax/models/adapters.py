"""Any causal language model as a `Policy`: Flax Linen, NNX, or a function."""

from collections.abc import Callable

from dpo_jax import types
from dpo_jax.models import attention


def from_apply(
  apply: Callable[[types.Params, types.Array], types.Array],
) -> types.Policy:
  """A policy from `apply(params, tokens_BxL) -> logits_BxLxV`.

  `apply` must be causal; it needs no padding mask, as each tree is moved to a
  sequence of its own and padded on the right. It knows nothing of branches, so
  batches must be packed with `share_prompt=False` (one completion per tree).
  For a Linen module `apply` is `lambda p, t: module.apply({'params': p}, t)`;
  for an NNX one, `lambda p, t: nnx.merge(graphdef, p)(t)`.
  """

  def hidden(params, tokens_RxL, layout):
    if layout.shared:
      raise ValueError(
        'This policy sees one completion at a time, but the batches share '
        'prompts between completions. Pack them with share_prompt=False.'
      )
    view = attention.tree_view(layout)
    rows = tokens_RxL.shape[0]
    tokens = attention.move(tokens_RxL, view.to_trees, view.to_row)
    size = len(view.profile) * view.chunk
    out = apply(params, tokens.reshape(-1, size))
    out = out.reshape(rows, -1, out.shape[-1])
    return attention.move(out, view.to_row, view.to_trees)

  return types.Policy(hidden, lambda params, hidden: hidden)
