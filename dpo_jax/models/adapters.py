"""Makes a `Policy` of any causal LM: a Flax Linen or NNX module, a function."""

from collections.abc import Callable

from dpo_jax import types
from dpo_jax.models import tree_gather


def from_apply(
  apply: Callable[[types.Params, types.Array], types.Array],
  *,
  max_length: int | None = None,
) -> types.Policy:
  """A policy from `apply(params, tokens_BxL) -> logits_BxLxV`.

  `apply` must be causal. It needs no padding mask: each tree becomes a sequence
  of its own, padded on the right to the longest tree's length, or to
  `max_length` (the model's number of positions) if that is less. It cannot
  handle branches: batches must be packed with share_prompt=False (one
  completion per tree), else ValueError.

  Linen module: `lambda p, t: module.apply({'params': p}, t)`.
  NNX module: `lambda p, t: nnx.merge(graphdef, p)(t)`.
  """

  def hidden(params, tokens_RxL, layout):
    if layout.shared:
      raise ValueError(
        'This policy takes one completion per tree, but the batches share '
        'prompts between completions. Pack them with share_prompt=False.'
      )
    (longest, _), (_, trees) = layout.profile[-1], layout.profile[0]
    size = min(longest, max_length or longest)
    rows = tokens_RxL.shape[0]
    to_blocks, to_rows = tree_gather.make_gathers(layout, ((0, size, trees),))
    tokens = tree_gather.gather(tokens_RxL, to_blocks, to_rows)
    out = apply(params, tokens.reshape(-1, size))
    out_RxWxV = out.reshape(rows, -1, out.shape[-1])
    return tree_gather.gather(out_RxWxV, to_rows, to_blocks)

  return types.Policy(hidden, lambda params: types.Head.whole(lambda h: h))
