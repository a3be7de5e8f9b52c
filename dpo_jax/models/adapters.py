"""Any causal language model as a `Policy`: Flax Linen, NNX, or a function."""

from collections.abc import Callable

from dpo_jax import types
from dpo_jax.models import moves


def from_apply(
  apply: Callable[[types.Params, types.Array], types.Array],
  *,
  max_length: int | None = None,
) -> types.Policy:
  """A policy from `apply(params, tokens_BxL) -> logits_BxLxV`.

  `apply` must be causal; it needs no padding mask, as each tree is moved to a
  sequence of its own and padded on the right, all to the length of the longest
  tree, or to `max_length` (positions that the model has) if that is less. It
  knows nothing of branches, so batches must be packed with share_prompt=False
  (one completion per tree); others are a ValueError. For a Linen module `apply`
  is `lambda p, t: module.apply({'params': p}, t)`; for an NNX one,
  `lambda p, t: nnx.merge(graphdef, p)(t)`.
  """

  def hidden(params, tokens_RxL, layout):
    if layout.shared:
      raise ValueError(
        'This policy sees one completion at a time, but the batches share '
        'prompts between completions. Pack them with share_prompt=False.'
      )
    (longest, _), (_, trees) = layout.profile[-1], layout.profile[0]
    size = min(longest, max_length or longest)
    rows = tokens_RxL.shape[0]
    there, back = moves.moves(layout, ((0, size, trees),))
    tokens = moves.move(tokens_RxL, there, back)
    out = apply(params, tokens.reshape(-1, size))
    return moves.move(out.reshape(rows, -1, out.shape[-1]), back, there)

  return types.Policy(hidden, lambda params: types.Head.whole(lambda h: h))
