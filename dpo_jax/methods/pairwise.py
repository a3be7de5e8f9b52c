"""A pairwise objective: weighted losses, and what each is shown of a pair.

What is independent of a loss (how tokens are summed, the divergence, the weight
of a pair) is applied to its arguments or its result, here and nowhere else, and
refused for a loss that it has no meaning for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax import losses, registry, types
from dpo_jax.losses import inputs
from dpo_jax.methods import completions


class Term(NamedTuple):
  """A loss and its weight.

  viewed: it sees the pairs through the view; a likelihood term that is added
  does not. shifted: its `shift` is a running mean.
  """

  name: str
  weight: float
  loss: Callable[..., types.Array]
  traits: losses.Traits
  viewed: bool
  shifted: bool

  @property
  def targeted(self) -> bool:
    """Whether it reads the log-probability of a third answer."""
    return self.loss.keywords.get('target') == 'answer'


class View(NamedTuple):
  """What a loss is shown of a pair.

  length: sums a completion's tokens; segment_weight: of tokens in corrected
  segments, None for no segments; divergence: maps log-ratios, None for none.
  """

  length: completions.Length
  segment_weight: float | None
  divergence: Callable[[types.Array], types.Array] | None


def make_term(
  name: str,
  options: Mapping[str, Any],
  *,
  weight: float = 1.0,
  main: bool,
  beside: Sequence[str] = (),
) -> Term:
  """ValueError for options and values that the loss does not take."""
  fn = registry.lookup(losses.PREFERENCE_LOSSES, name, 'preference loss')
  inputs.check_positive(weight=weight)
  loss = registry.bind(fn, options, f'loss {name!r}', beside=beside)
  traits = losses.TRAITS[name]
  if options.get('normalise') == 'tokens':
    # A divergence's constant would not cancel between two lengths.
    traits = traits._replace(sums=False, ratios=False)
  term = Term(
    name,
    weight,
    loss,
    traits,
    viewed=main or traits.reference,
    shifted=main
    and 'shift' in registry.options_of(fn)
    and 'shift' not in options,
  )
  start_loss(term)
  return term


def start_loss(term: Term) -> types.Array:
  """f32: of a pair whose log-probabilities are all 0, the reference's too.

  For a loss of log-ratios, that of any pair where policy and reference agree.
  """
  zeros = jnp.zeros((1, 2))
  pairs = types.PairLogps(
    zeros, zeros, jnp.ones((1, 2), jnp.int32), target=zeros[:, 0]
  )
  return _term_loss(term, pairs, jnp.zeros(()))[0]


def make_view(
  terms: Sequence[Term],
  *,
  length: str,
  ld_alpha: float,
  segment_weight: float | None,
  divergence: str,
  divergence_options: Mapping[str, Any],
) -> View:
  """ValueError for what one of the losses is not defined with."""
  map_ratio = registry.bind(
    registry.lookup(losses.DIVERGENCES, divergence, 'divergence'),
    divergence_options,
    f'divergence {divergence!r}',
  )
  map_ratio(jnp.zeros(()))
  for name, given, default, trait in (
    ('length', length, 'sum', 'sums'),
    ('segment_weight', segment_weight, None, 'sums'),
    ('divergence', divergence, 'reverse_kl', 'ratios'),
  ):
    for term in terms:
      if not term.viewed:
        continue
      if given != default and not getattr(term.traits, trait):
        fit = [n for n, t in losses.TRAITS.items() if getattr(t, trait)]
        raise ValueError(
          f'Loss {term.name!r} is not defined with {name}={given!r}; these '
          f'are: {", ".join(sorted(fit))}.'
        )
  if segment_weight is not None:
    inputs.check_positive(segment_weight=segment_weight)
  return View(
    length=completions.make_length(length, ld_alpha=ld_alpha),
    segment_weight=segment_weight,
    divergence=None if divergence == 'reverse_kl' else map_ratio,
  )


def plain_pairs(logps_RxN, batch: types.Batch) -> types.PairLogps:
  """Sums of log-probabilities; P = R * E. A third completion is the target."""

  def of(values_RxN):
    return completions.sums(values_RxN, batch).reshape(-1, arity)

  arity = batch.example_slots_RxExK.shape[-1]
  policy, reference = of(logps_RxN), batch.extras_RxN.get('reference')
  lengths = completions.lengths(batch).reshape(-1, arity)
  return types.PairLogps(
    policy=policy[:, :2],
    reference=None if reference is None else of(reference)[:, :2],
    length=lengths[:, :2],
    weight=batch.example_weight_RxE.reshape(-1),
    target=policy[:, 2] if arity == 3 else None,
  )


def show(
  view: View, plain: types.PairLogps, logps_RxN, batch: types.Batch
) -> types.PairLogps:
  """The pairs as the view has them, its divergence not yet applied."""
  weight_RxN = None
  if view.segment_weight is not None:
    corrected_RxN = batch.extras_RxN.get('corrected')
    if corrected_RxN is None:
      raise ValueError(
        "The batch carries no 'corrected' tokens. Set corrections='diff' or "
        "'spans' in train_data and eval_data, or segment_weight=None."
      )
    weight_RxN = 1 + (view.segment_weight - 1) * corrected_RxN
  two = batch.replace(example_slots_RxExK=batch.example_slots_RxExK[..., :2])

  def of(values_RxN):
    return view.length(values_RxN, weight_RxN, two).reshape(-1, 2)

  reference = batch.extras_RxN.get('reference')
  return plain.replace(
    policy=of(logps_RxN),
    reference=None if reference is None else of(reference),
  )


def _diverge(view: View, pairs: types.PairLogps) -> types.PairLogps:
  """Log-ratios replaced by f'(pi / pi_ref)."""
  if view.divergence is None or pairs.reference is None:
    return pairs
  ratio = view.divergence(pairs.policy - pairs.reference)
  return pairs.replace(policy=ratio, reference=jnp.zeros_like(ratio))


def reward(term: Term, view: View, shown: types.PairLogps) -> types.Array:
  """f32[P, 2]: what the loss compares, before any factor of its own.

  Log-ratios as the view has them, log-probabilities where there is no
  reference; per token for a loss that divides by lengths.
  """
  pairs = _diverge(view, shown) if term.traits.ratios else shown
  values = pairs.policy
  if term.traits.reference:
    values = values - pairs.reference
  return values if term.traits.sums else values / jnp.maximum(pairs.length, 1)


def loss(terms: Sequence[Term], view: View, plain, shown, shift) -> types.Array:
  """f32[P]: the sum of all terms of every pair."""

  def pairs_of(term):
    pairs = shown if term.viewed and term.traits.sums else plain
    return _diverge(view, pairs) if term.traits.ratios else pairs

  return sum(_term_loss(term, pairs_of(term), shift) for term in terms)


def _term_loss(term, pairs, shift):
  more = {'shift': shift} if term.shifted else {}
  return term.weight * term.loss(pairs, **more)
