"""Statistics of comparisons and of samples: rates, intervals, tests, power.

An outcome is what a comparison says of one side, in [0, 1]: 1 for a win, 0 for
a loss, 0.5 for a tie, or a judge's probability of a win. Intervals are 95 %. An
index is a prompt (N), unless `clusters` says which comparisons share one.
Everything is computed in float64.
"""

import math
import statistics
import warnings
from collections.abc import Hashable, Sequence

import numpy as np

from dpo_jax import registry
from dpo_jax.training import metrics

# With fewer prompts, the bootstrap's intervals are too short.
FEW_CLUSTERS = 60
LEVELS = (2.5, 97.5)
NORMAL = statistics.NormalDist()


def win_rate(outcomes: Sequence[float], *, ties: str = 'half') -> float:
  """The mean outcome; ties='drop': of the comparisons that are no ties.

  NaN if all are ties that are dropped.
  """
  x = _outcomes(outcomes, 'outcomes')
  registry.lookup({'half': 0, 'drop': 0}, ties, 'ties')
  if ties == 'drop':
    x = x[x != 0.5]
  return float(x.mean()) if len(x) else math.nan


def standard_error(outcomes: Sequence[float]) -> float:
  """Of the mean outcome: the sample deviation / sqrt(N); NaN for N = 1."""
  x = _outcomes(outcomes, 'outcomes')
  return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


def wilson_interval(wins: float, n: float) -> tuple[float, float]:
  """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927)."""
  if not 0 <= wins <= n or n == 0:
    raise ValueError(f'wins is {wins} of n = {n}; expected 0 <= wins <= n > 0.')
  return metrics.wilson_interval(wins, n)


def bootstrap(
  values: Sequence[float],
  *,
  seed: int,
  draws: int = 10_000,
  clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
  """(mean, low, high): the percentile bootstrap of a mean.

  clusters: of each value, such as its prompt; whole clusters are drawn, since
  the votes on a prompt, or its samples, depend on each other (Cameron, Gelbach
  and Miller, 2008). None: each value is one. Few clusters are a warning.
  """
  registry.check_integer('draws', draws, 1)
  x = _numbers(values, 'values')
  sums, sizes = x, np.ones(len(x))
  if clusters is not None:
    if len(clusters) != len(x):
      raise ValueError(
        f'There are {len(x)} values, but {len(clusters)} clusters.'
      )
    index = {}
    ids = [index.setdefault(cluster, len(index)) for cluster in clusters]
    sums, sizes = (np.bincount(ids, weights) for weights in (x, sizes))
  if len(sums) < FEW_CLUSTERS:
    warnings.warn(
      f'The bootstrap has {len(sums)} clusters (prompts); with fewer than '
      f'{FEW_CLUSTERS} its intervals are too short.',
      stacklevel=2,
    )
  rng, n = np.random.default_rng(seed), len(sums)
  means = []
  for _ in range(draws):
    drawn = rng.integers(n, size=n)
    means.append(sums[drawn].sum() / sizes[drawn].sum())
  low, high = np.percentile(means, LEVELS)
  return float(x.mean()), float(low), float(high)


def interval(
  outcomes: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> tuple[float, float, float]:
  """(mean, low, high) of outcomes in [0, 1], at 95 %.

  Wilson's interval, or where some share a cluster, such as a prompt, a
  bootstrap over the clusters.
  """
  x = _outcomes(outcomes, 'outcomes')
  if clusters is not None and len(set(clusters)) < len(x):
    return bootstrap(x, seed=0, clusters=clusters)
  return float(x.mean()), *wilson_interval(x.sum(), len(x))


def paired_bootstrap(
  a_N: Sequence[float],
  b_N: Sequence[float],
  *,
  seed: int,
  draws: int = 10_000,
  clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
  """(difference, low, high) of mean(a) - mean(b), both of the same prompts."""
  a, b = _pair(a_N, b_N)
  return bootstrap(a - b, seed=seed, draws=draws, clusters=clusters)


def mcnemar(a_N: Sequence[float], b_N: Sequence[float]) -> float:
  """The exact two-sided p-value of equal shares of two 0/1 outcomes.

  Of the prompts on which a and b differ, half are expected either way
  (McNemar, Psychometrika 12, 1947, by the binomial distribution). 1 if none
  differ.
  """
  a, b = _pair(a_N, b_N)
  if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
    raise ValueError("McNemar's test is of outcomes 0 and 1; drop the ties.")
  wins, losses = int((a > b).sum()), int((a < b).sum())
  n = wins + losses
  tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
  return min(1.0, 2 * tail / 2**n)


def position_bias(
  outcomes: Sequence[float],
  was_first: Sequence[bool],
  clusters: Sequence[Hashable] | None = None,
) -> dict[str, float]:
  """The share of comparisons that the answer shown first wins.

  outcomes: of one side, which was shown first where `was_first`. 0.5 where the
  judge does not mind the order, if orders are drawn at random. Keys: mean, low,
  high, as `interval` gives them.
  """
  x = _outcomes(outcomes, 'outcomes')
  first = np.where(_same_length(x, was_first), x, 1 - x)
  return dict(zip(('mean', 'low', 'high'), interval(first, clusters)))


def agreement(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
  """The share of items that two raters give the same label."""
  _same_length(a, b)
  return float(np.mean([x == y for x, y in zip(a, b)]))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
  """Agreement of two raters beyond chance (Cohen, 1960), at most 1.

  (p - e) / (1 - e), e the agreement of labels drawn with each rater's shares.
  NaN if both always give one and the same label.
  """
  _same_length(a, b)
  labels = {*a, *b}
  shares = [[list(x).count(label) / len(x) for label in labels] for x in (a, b)]
  return _beyond(agreement(a, b), float(np.dot(*shares)))


def fleiss_kappa(counts_NxC: Sequence[Sequence[int]]) -> float:
  """Agreement of R raters beyond chance (Fleiss, 1971), at most 1.

  counts: how many of an item's R raters chose each of C categories. NaN if all
  chose the same. ValueError where items have different R, or R < 2.
  """
  counts = np.asarray(counts_NxC, np.float64)
  raters = counts.sum(1) if counts.ndim == 2 else np.zeros(0)
  if not len(raters) or (raters != raters[0]).any() or raters[0] < 2:
    raise ValueError(
      "Fleiss' kappa is of counts [items, categories] with the same number of "
      f'raters for each item, two or more; given: {counts.tolist()[:3]}.'
    )
  r = raters[0]
  of_item_N = ((counts**2).sum(1) - r) / (r * (r - 1))
  shares_C = counts.sum(0) / counts.sum()
  return _beyond(float(of_item_N.mean()), float((shares_C**2).sum()))


def agreement_with_people(
  votes: Sequence[Sequence[Hashable]], judge: Sequence[Hashable]
) -> dict[str, float]:
  """How often people agree with each other, and with a judge.

  votes: the people's, of each item, one or more; judge: its label of each. As
  Table 2 of arXiv:2305.18290: 'human_human' is the share of equal pairs of
  votes on one item (NaN without such pairs), 'human_judge' that of votes that
  equal the judge's; 'pairs' and 'votes' are how many these are.
  """
  _same_length(votes, judge)
  pairs = [
    x == y for item in votes for i, x in enumerate(item) for y in list(item)[:i]
  ]
  equal = [x == label for item, label in zip(votes, judge) for x in item]
  return {
    'human_human': float(np.mean(pairs)) if pairs else math.nan,
    'human_judge': float(np.mean(equal)) if equal else math.nan,
    'pairs': len(pairs),
    'votes': len(equal),
  }


def required_prompts(
  p: float, q: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
  """Prompts of each of two arms that tell win rates p and q apart.

  Arms are independent, the test is two-sided at level `alpha`, without a
  correction for continuity (Fleiss, Levin and Paik, 2003, Eq. 4.14).
  """
  _probabilities(p=p, q=q, power=power, alpha=alpha)
  mean = (p + q) / 2
  null, other = 2 * mean * (1 - mean), p * (1 - p) + q * (1 - q)
  return _sample_size(p - q, null, other, power, alpha)


def required_prompts_paired(
  wins: float, losses: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
  """Prompts that both policies answer, for McNemar's test (Connor, 1987).

  wins: the share of prompts on which only the first is good; losses: only the
  second. Their difference is that of the win rates; the more often both are
  good or bad together, the fewer prompts it needs.
  """
  _probabilities(wins=wins, losses=losses, power=power, alpha=alpha)
  if wins + losses > 1:
    raise ValueError(f'wins + losses is {wins + losses}; expected at most 1.')
  apart = wins + losses
  return _sample_size(
    wins - losses, apart, apart - (wins - losses) ** 2, power, alpha
  )


def best_of_n(scores_BxM: np.ndarray, n: int) -> np.ndarray:
  """The expected maximum of n of each prompt's M scores, f32[B].

  The n are drawn without replacement, so this is the mean of the maximum over
  all C(M, n) subsets: unbiased for the expected maximum of n new samples. The
  i-th smallest score is the maximum of C(i - 1, n - 1) subsets. Computed in
  float64. ValueError for an n outside of [1, M].
  """
  sorted_BxM = np.sort(np.asarray(scores_BxM, np.float64), axis=1)
  m = sorted_BxM.shape[1]
  registry.check_integer('n', n, 1)
  if n > m:
    raise ValueError(f'n is {n}, but there are {m} scores per prompt.')
  # From the largest score downwards, the weight C(i - 1, n - 1) / C(m, n) is
  # n / m times the product of ratios that are at most 1.
  i = np.arange(m, 1, -1)
  ratios = np.maximum(i - n, 0) / (i - 1)
  weights_M = n / m * np.cumprod(np.append(1.0, ratios))[::-1]
  return (sorted_BxM @ weights_M).astype(np.float32)


def best_of_n_kl_bound(n: int) -> float:
  """log n - (n - 1) / n: nats that the best of n may be from its policy.

  KL(best-of-n || policy) is at most this (Beirami et al., arXiv:2401.01879, who
  show that it is not the KL itself, as was often said); in the limit of many
  completions, each with a small probability and a score of its own, it is equal
  to it. ValueError for an n below 1.
  """
  registry.check_integer('n', n, 1)
  return math.log(n) - (n - 1) / n


def _sample_size(
  difference: float, null: float, other: float, power: float, alpha: float
) -> int:
  """The n at which a normal test has the power; null, other: variances."""
  if not difference:
    raise ValueError('The two shares are equal: no number tells them apart.')
  z = NORMAL.inv_cdf(1 - alpha / 2) * math.sqrt(null)
  z += NORMAL.inv_cdf(power) * math.sqrt(other)
  return math.ceil((z / difference) ** 2)


def _probabilities(**given: float) -> None:
  for name, value in given.items():
    inside = 0 < value < 1 if name in ('power', 'alpha') else 0 <= value <= 1
    if not inside:
      raise ValueError(f'{name} is {value}; expected a probability.')


def _beyond(agreed: float, by_chance: float) -> float:
  return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


def _numbers(values, name: str) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
    raise ValueError(
      f'{name} has the shape {x.shape}; expected one or more finite numbers.'
    )
  return x


def _outcomes(values, name: str) -> np.ndarray:
  x = _numbers(values, name)
  if x.min() < 0 or x.max() > 1:
    bad = x.min() if x.min() < 0 else x.max()
    raise ValueError(f'{name} has {bad}; expected numbers from 0 to 1.')
  return x


def _pair(a_N, b_N) -> tuple[np.ndarray, np.ndarray]:
  a, b = _numbers(a_N, 'a'), _numbers(b_N, 'b')
  _same_length(a, b)
  return a, b


def _same_length(a, b):
  """b; ValueError unless it has as many items as a, one or more."""
  if len(a) != len(b) or not len(a):
    raise ValueError(
      f'{len(a)} and {len(b)} items; expected as many of both, one or more.'
    )
  return b
