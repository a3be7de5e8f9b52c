"""The options of a pairwise objective, bound and checked when it is built.

What is independent of a loss (how tokens are combined, the divergence, the
weight of a pair) is refused for a loss that it has no meaning for.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax import losses, registry, types
from dpo_jax.losses import inputs
from dpo_jax.methods import completions, scoring


class Term(NamedTuple):
  """A loss of `losses.PREFERENCE_LOSSES`, its options bound, and its weight.

  compares: whether it gets the pairs as `Comparison` forms them; a likelihood
  term in `plus` gets plain sums. running_shift: whether its option `shift` is
  the running mean of the rewards.
  """

  name: str
  loss: Callable[..., types.Array]
  properties: losses.LossProperties
  weight: float
  compares: bool
  running_shift: bool

  @property
  def targeted(self) -> bool:
    """Whether it reads the log-probability of a third answer."""
    return self.loss.keywords.get('target') == 'answer'


class Comparison(NamedTuple):
  """What losses compare in the place of plain sums of log-probabilities.

  length: combines a completion's tokens. correction_weight: of the tokens that
  a record marks as corrected; None where none are marked. divergence: maps
  log-ratios to scores; None for reverse_kl, whose scores are log-ratios.
  """

  length: completions.Length
  correction_weight: float | None
  divergence: Callable[[types.Array], types.Array] | None


def make_terms(
  loss: str,
  options: Mapping[str, Any],
  plus: Mapping[str, Mapping[str, Any]] | None,
  *,
  beside: Collection[str],
) -> tuple[Term, ...]:
  """The method's loss, and those that `plus` adds.

  beside: options of the method, which error messages name. ValueError for
  options and values that a loss does not take.
  """
  plus = {} if plus is None else plus
  if not isinstance(plus, Mapping):
    raise ValueError(
      f'plus is {plus!r}; expected name -> dict(weight=1.0, its options).'
    )
  terms = [_make_term(loss, options, beside=beside)]
  for name, added in plus.items():
    if not isinstance(added, Mapping):
      raise ValueError(
        f'plus.{name} is {added!r}; expected dict(weight=1.0, its options).'
      )
    term = _make_term(
      name,
      {k: v for k, v in added.items() if k != 'weight'},
      weight=added.get('weight', 1.0),
      beside=('weight',),
    )
    compares = term.properties.reference
    terms.append(term._replace(compares=compares, running_shift=False))
  for term in terms:
    start_loss(term)  # Losses check the values of their options themselves.
  return tuple(terms)


def _make_term(
  name: str,
  options: Mapping[str, Any],
  *,
  weight: float = 1.0,
  beside: Collection[str],
) -> Term:
  fn = registry.lookup(losses.PREFERENCE_LOSSES, name, 'preference loss')
  inputs.check_positive(weight=weight)
  properties = fn.properties
  if options.get('normalise') == 'tokens':
    # The constant of a divergence would not cancel between two lengths.
    properties = properties._replace(sums=False, ratios=False)
  takes_shift = 'shift' in registry.options_of(fn)
  return Term(
    name=name,
    loss=registry.bind(fn, options, f'loss {name!r}', beside=beside),
    properties=properties,
    weight=weight,
    compares=True,
    running_shift=takes_shift and 'shift' not in options,
  )


def start_loss(term: Term) -> types.Array:
  """The weighted loss of a pair whose log-probabilities are all 0, f32.

  For a loss that reads ratios or log-ratios alone, it is the loss of any pair
  for which policy and reference agree.
  """
  zeros = jnp.zeros((1, 2))
  pairs = types.PairLogps(
    zeros, zeros, jnp.ones((1, 2), jnp.int32), target=zeros[:, 0]
  )
  shift = {'shift': jnp.zeros(())} if term.running_shift else {}
  return term.weight * term.loss(pairs, **shift)[0]


def make_comparison(
  terms: Sequence[Term],
  *,
  length: str,
  ld_alpha: float | None,
  correction_weight: float | None,
  divergence: str,
  divergence_options: Mapping[str, Any] | None,
) -> Comparison:
  """ValueError for an option that one of the losses is not defined with."""
  scores_of = registry.bind(
    registry.lookup(losses.DIVERGENCES, divergence, 'divergence'),
    divergence_options or {},
    f'divergence {divergence!r}',
  )
  scores_of(jnp.zeros(()))  # It checks the values of its options itself.
  for option, given, default, needed in (
    ('length', length, 'sum', 'sums'),
    ('correction_weight', correction_weight, None, 'sums'),
    ('divergence', divergence, 'reverse_kl', 'ratios'),
  ):
    for term in terms:
      if not term.compares or given == default:
        continue
      if not getattr(term.properties, needed):
        fit = [
          name
          for name, fn in losses.PREFERENCE_LOSSES.items()
          if getattr(fn.properties, needed)
        ]
        raise ValueError(
          f'Loss {term.name!r} is not defined with {option}={given!r}; these '
          f'are: {", ".join(sorted(fit))}.'
        )
  if correction_weight is not None:
    inputs.check_positive(correction_weight=correction_weight)
  if any(term.targeted for term in terms) and (
    length != 'sum' or correction_weight is not None
  ):
    raise ValueError(
      "target='answer' compares sums of log-probabilities with length='sum' "
      f'and no correction_weight; given: length={length!r}, '
      f'correction_weight={correction_weight}.'
    )
  return Comparison(
    length=completions.make_length(length, ld_alpha=ld_alpha),
    correction_weight=correction_weight,
    divergence=None if divergence == 'reverse_kl' else scores_of,
  )


def check_weighting(weighting: str | None, terms: Sequence[Term]) -> None:
  """ValueError for an unknown weighting, or one that a loss rules out."""
  if weighting is None:
    return
  registry.lookup({'wpo': None}, weighting, 'weighting')
  for term in terms:
    if term.properties.coupled:
      raise ValueError(
        f"weighting='wpo' weights pairs one by one; loss {term.name!r} couples "
        'them.'
      )


def reference_kind(reference: str | None, terms: Sequence[Term]) -> str:
  """A key of `scoring.REFERENCES`; None is 'cached', or 'none' without readers.

  ValueError for a reference that no loss reads, or none where one does.
  """
  readers = [term.name for term in terms if term.properties.reference]
  if reference is None:
    return 'cached' if readers else 'none'
  registry.lookup(scoring.REFERENCES, reference, 'reference')
  if readers:
    scoring.check_present(reference, readers[0])
  elif reference != 'none':
    raise ValueError(
      f'Loss {terms[0].name!r} has no reference, but reference is '
      f"{reference!r}; expected 'none', or the option left out."
    )
  return reference
