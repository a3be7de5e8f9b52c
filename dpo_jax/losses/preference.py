"""Pairwise preference objectives: log-probabilities in, unreduced losses out.

Each takes a `types.PairLogps` and keyword-only hyperparameters and returns
f32[P]. Notation: h is the difference of the log-ratios log(policy / reference)
of the preferred and the rejected completion.
"""

from collections.abc import Callable

import jax

from dpo_jax import types


def log_ratio_difference(pairs: types.PairLogps) -> types.Array:
  """h, f32[P]: (log pi/pi_ref)(y_w) - (log pi/pi_ref)(y_l)."""
  ratio = pairs.policy - pairs.reference
  return ratio[..., 0] - ratio[..., 1]


def dpo(
  pairs: types.PairLogps, *, beta: float, label_smoothing: float = 0.0
) -> types.Array:
  """DPO, -log sigma(beta h): Eq. 7, arXiv:2305.18290.

  `label_smoothing` e in [0, 0.5) gives conservative DPO (cDPO), for labels that
  are flipped with probability e:
  -(1 - e) log sigma(beta h) - e log sigma(-beta h).
  """
  _check(beta, label_smoothing)
  margin = beta * log_ratio_difference(pairs)
  loss, flipped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
  return (1 - label_smoothing) * loss + label_smoothing * flipped


def _check(beta, label_smoothing) -> None:
  """ValueError for numbers out of range; traced values are not looked at."""
  if isinstance(beta, int | float) and beta <= 0:
    raise ValueError(f'beta is {beta}; expected more than 0.')
  if (
    isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 0.5
  ):
    raise ValueError(
      f'label_smoothing is {label_smoothing}; expected 0 <= label_smoothing < '
      '0.5, the probability that a label is flipped.'
    )


PREFERENCE_LOSSES: dict[str, Callable[..., types.Array]] = {'dpo': dpo}
