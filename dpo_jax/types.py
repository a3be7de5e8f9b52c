"""Axis letters and the containers that cross module borders.

Array names carry their axes, one letter each, after an underscore:

  R  rows of a batch             L  tokens of a row
  T  trees of a row              M  tokens of the largest tree, padded
  N  scored tokens of a row      S  completion slots of a row
  E  examples of a row           K  completions of an example (2 for a pair)
  D  model width                 V  vocabulary
  H  query heads                 G  key-value heads
  Q  query heads per kv head     F  MLP width          Y  layers
  P  preference pairs            B  sequences (unpacked)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
Params = Any  # A nested dict of arrays.
# name -> (sum, count), or (sum, count, sum of squares) where an interval of the
# mean is of interest.
Metrics = dict[str, tuple[Array, ...]]
# name -> f32[R, N] (one number a scored token) or f32[R, S] (a completion).
Scores = dict[str, Array]

# The label of a completion that is neither desirable nor undesirable. Not NaN:
# a NaN in compiled code is always a mistake (JAX_DEBUG_NANS=1 finds it).
NO_LABEL = -1.0


class Spec(NamedTuple):
  """One parameter, as initialisation, sharding and weight importers read it.

  `axes` names each dimension ('layers', 'vocab', 'embed', 'heads', ...);
  `init` is 'normal', 'zeros' or 'ones'; `stddev` is used by 'normal' alone.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  init: str = 'normal'
  stddev: float = 0.02


@flax.struct.dataclass
class Paths:
  """Where a row's trees find their tokens, if trees may share tokens.

  index: position in the row of token p of tree t, at most P tokens; any
  position beyond the tree's length.
  home: t * P + p of one of the trees whose token p is at position l.
  """

  index_RxTxP: Array
  home_RxL: Array


@flax.struct.dataclass
class Layout:
  """Where each token of a packed row sits in its forest.

  A tree is a prompt (branch 0) and its completions (branches 1, 2, ...).
  Token i sees token j of its row iff both have the same segment, j <= i, and
  branch_j is 0 or branch_i. Padding has segment 0 and sees only itself.

  Trees are contiguous: tree t of a row has segment t + 1 and holds
  `tree_length[t]` tokens from `tree_start[t]` on; trees are ordered from the
  longest to the shortest, and unused places have length 0.

  `shared` is static: whether a tree may hold more than one completion.
  `profile` is static, the shape of per-tree attention: a tuple of (end, trees).
  Tokens of a tree from the previous end up to `end` form a block, and in no row
  do more than `trees` trees reach into it. Ends rise, counts fall.

  With `paths`, trees are prompts that share the tokens of common prefixes: the
  row has one segment and no branches, and a token sees those before it on its
  paths. `tree_start` is not read, and nothing can be differentiated.
  """

  segment_RxL: Array
  branch_RxL: Array
  position_RxL: Array
  tree_start_RxT: Array
  tree_length_RxT: Array
  shared: bool = flax.struct.field(pytree_node=False)
  profile: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)
  paths: Paths | None = None


@flax.struct.dataclass
class Batch:
  """Packed rows, the tokens to score in them, and the examples they form.

  Indices are local to a row, so that rows can be sharded over devices.
  Scored tokens come first in their row; padding has weight 0.

  score_index: position whose hidden state predicts the token.
  score_slot: the completion that owns it; score_weight: its weight, 0 for
  padding.
  slot_last: position of the completion's last token; slot_length: its number
  of scored tokens; slot_record: id of its record, -1 where unused; slot_label:
  1.0 desirable, 0.0 undesirable, NO_LABEL where records carry no label; the
  rating where they are rated.
  example_slots: the K completions of an example, the preferred one first.
  example_weight: 0 for padding. example_record: id of its record, -1 unused.
  extras: named per-token quantities, e.g. 'reference' log-probs.
  """

  tokens_RxL: Array
  layout: Layout
  score_index_RxN: Array
  score_token_RxN: Array
  score_slot_RxN: Array
  score_weight_RxN: Array
  slot_last_RxS: Array
  slot_length_RxS: Array
  slot_record_RxS: Array
  slot_label_RxS: Array
  example_slots_RxExK: Array
  example_weight_RxE: Array
  example_record_RxE: Array
  extras_RxN: dict[str, Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class PairLogps:
  """Log-probabilities of preferred (column 0) and rejected (1) completions.

  policy, reference: f32[P, 2] sums over the completion's tokens, EOS included;
  `reference` is None for reference-free objectives. length: i32[P, 2] tokens.
  weight: f32[P], 0 for padding; None where every pair counts. Read by
  objectives that couple the pairs of a batch.
  target: f32[P], log-probability under the policy of an answer that is neither;
  None where there is none.
  """

  policy: Array
  reference: Array | None
  length: Array
  weight: Array | None = None
  target: Array | None = None


@flax.struct.dataclass
class UnpairedLogps:
  """Log-probabilities of labelled single completions.

  policy, reference: f32[P] sums over the completion's tokens, EOS included.
  label: f32[P], 1 desirable, 0 undesirable. length: i32[P] tokens.
  weight: f32[P], 0 for padding; None where every completion counts.
  mismatched: f32[P], log(policy / reference) of a completion of another prompt;
  None for objectives without.
  """

  policy: Array
  reference: Array
  label: Array
  length: Array
  weight: Array | None = None
  mismatched: Array | None = None


@flax.struct.dataclass
class RankedLogps:
  """Log-probabilities of K ranked completions, the best in column 0.

  policy, reference: f32[P, K] sums over the completion's tokens, EOS included.
  length: i32[P, K] tokens.
  """

  policy: Array
  reference: Array
  length: Array


@flax.struct.dataclass
class TrainState:
  """All that a step changes; a checkpoint holds it."""

  step: Array
  params: Params
  opt_state: Any
  aux: Any
  key: Array


@flax.struct.dataclass
class Frozen:
  """Parameters that are held without being trained; None where absent.

  base: those that an adapter adapts: `params` are then the adapter's.
  reference: those of a whole model, where a step scores a reference that is not
  the base. Where it is None, the base without its adapter is the reference.
  """

  base: Params = None
  reference: Params = None


class Head(NamedTuple):
  """What makes logits of hidden states, by blocks of the vocabulary.

  open(block) -> logits_fn: hidden_..xD -> logits_..xU, for any leading axes.
  blocks: a tree of arrays with the blocks on the leading axis. spans_Bx2: the
  token of a block's first logit, and the one after its last. Both are None
  where the whole vocabulary is one block.
  padded: whether a span may be shorter than U; what follows it is padding.
  axis: the mesh axis over whose devices the vocabulary is split, inside
  `jax.shard_map`; each has its own blocks, equally many.
  """

  open: Callable[[Any], Callable[[Array], Array]]
  blocks: Any = None
  spans_Bx2: Array | None = None
  padded: bool = False
  axis: str | None = None

  @classmethod
  def whole(cls, logits_fn: Callable[[Array], Array]) -> 'Head':
    """Of logits_fn: hidden_..xD -> logits_..xV."""
    return cls(lambda block: logits_fn)


def _without_adapter(params: Params, base: Params) -> Params:
  """ValueError for a base, which a policy without adapters does not read."""
  if base is not None:
    raise ValueError('There is a base, but the policy has no adapters for it.')
  return params


def _no_scalar_head(weights: Params, hidden: Array) -> Array:
  raise ValueError('The model has no scalar head.')


class Policy(NamedTuple):
  """A model as pure functions.

  hidden(weights, tokens_RxL, layout) -> hidden_RxLxD;
  head(weights) -> the `Head` that makes logits of them.
  scalar(weights, hidden_..xD) -> f32[...], a reward or value of each. It reads
    weights['score'] alone, so that of a head without its trunk is enough.
  combine(params, base) -> the weights that both read: `params` themselves where
    `base` is None, else those of the base with an adapter of these `params`.

  over_rows runs a model whose parameters are split over a mesh:
  over_rows(fn)(batch, *trees) is fn(batch, *trees), arrays by rows. fn, which
  calls the functions above, sees a device's rows of the batch and its parts of
  the trees of parameters; a tree may be None.
  """

  hidden: Callable[[Params, Array, Layout], Array]
  head: Callable[[Params], Head]
  combine: Callable[[Params, Params], Params] = _without_adapter
  over_rows: Callable[[Callable], Callable] = lambda fn: fn
  scalar: Callable[[Params, Array], Array] = _no_scalar_head


# (params, frozen, batch, key) -> scores: see `Method`.
ScoreFn = Callable[[Params, Frozen, Batch, Array], Scores]


class Method(NamedTuple):
  """A training method as pure functions.

  freeze(reference, base=None) -> what a step reads besides its state: the base
    of an adapter, and the reference's parameters if a step scores them. They
    are these very arrays, not copies.
  annotate(score, frozen, aux, batch) -> batch with further per-token extras,
    such as the reference's log-probabilities. It is not differentiated. score:
    (params, frozen, batch) -> scores is the method's own, perhaps compiled.
  score(params, frozen, batch, key) -> what the method computes by the model, a
    dict of arrays of its own choice, local to each row: one number for each
    scored token or completion. It is the expensive part, and reads neither the
    examples of the batch nor its extras. By convention 'logps', f32[R, N], are
    log-probabilities of the scored tokens; a method without them has none.
  objective(scores, batch, aux) -> (loss_sum, count, metrics): cheap; may couple
    all rows of a batch if `coupled`.
  update(aux, params, metrics) -> aux, which changes without being trained or
    frozen and is checkpointed. params: those after the step.
  init_aux(reference) -> aux at step 0, of arrays of its own.
  coupled: whether the objective couples rows; if not, its sums and counts add
    up over any split of the rows.
  arity: completions of an example (2 for pairs).
  reference: 'none'; 'cached' where batches must come with
    extras_RxN['reference'], the log-probabilities that `score` gives for the
    reference; 'in_step' or 'drifting' where a step scores it.
  at_start: metrics with the values that they have as long as the policy is its
    own reference.
  kinds: the kinds of records that it takes; None for any of that arity.
  extras: the per-token quantities that records must come with.
  class_weights: of desirable and undesirable completions; None where the method
    reads no labels.
  """

  freeze: Callable[..., Frozen]
  annotate: Callable[
    [Callable[[Params, Frozen, Batch], Scores], Frozen, Any, Batch], Batch
  ]
  score: ScoreFn
  objective: Callable[[Scores, Batch, Any], tuple[Array, Array, Metrics]]
  update: Callable[[Any, Params, Metrics], Any]
  init_aux: Callable[[Params], Any]
  coupled: bool
  arity: int
  reference: str
  at_start: dict[str, Array]
  kinds: tuple[str, ...] | None = None
  extras: tuple[str, ...] = ()
  class_weights: tuple[float, float] | None = None
