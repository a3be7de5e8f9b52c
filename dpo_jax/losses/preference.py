"""Pairwise objectives that compare the policy with a reference.

Each takes a `types.PairLogps` (any leading axes) and keyword-only
hyperparameters and returns unreduced float32 losses, one per pair. Notation: a
and b are log(policy / reference) of the preferred and the rejected completion,
h = a - b, m = beta h; |y| is a length in tokens. "TRL" is TRL 1.16.
"""

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs
from dpo_jax.losses.loss_properties import preference_loss

log_sigmoid, sigmoid = jax.nn.log_sigmoid, jax.nn.sigmoid


def log_ratio_difference(pairs: types.PairLogps) -> types.Array:
  """h, f32[P]: (log pi/pi_ref)(y_w) - (log pi/pi_ref)(y_l)."""
  a, b = inputs.pair_ratios(pairs)
  return a - b


def _per_token_difference(pairs):
  """a / |y_w| - b / |y_l|."""
  (a, b), (n_w, n_l) = inputs.pair_ratios(pairs), inputs.pair_lengths(pairs)
  return a / n_w - b / n_l


@preference_loss(reference=True, ratios=True, sums=True)
def dpo(
  pairs: types.PairLogps, *, beta: float, label_smoothing: float = 0.0
) -> types.Array:
  """DPO, -log sigma(m): Eq. 7, arXiv:2305.18290.

  `label_smoothing` e in [0, 0.5) gives conservative DPO (cDPO), for labels that
  are flipped with probability e:
  -(1 - e) log sigma(m) - e log sigma(-m).
  TRL's 'sigmoid' ignores its label_smoothing.
  """
  inputs.check_positive(beta=beta)
  inputs.check_smoothing(label_smoothing)
  m = beta * log_ratio_difference(pairs)
  loss, flipped = -log_sigmoid(m), -log_sigmoid(-m)
  return (1 - label_smoothing) * loss + label_smoothing * flipped


@preference_loss(reference=True)
def dpo_norm(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """Length-normalised DPO, arXiv:2411.15124.

  -log sigma(beta (a / |y_w| - b / |y_l|)); TRL's 'sigmoid_norm'.
  """
  inputs.check_positive(beta=beta)
  return -log_sigmoid(beta * _per_token_difference(pairs))


@preference_loss(reference=True, ratios=True, sums=True)
def robust(
  pairs: types.PairLogps, *, beta: float, label_smoothing: float = 0.1
) -> types.Array:
  """rDPO, unbiased where labels are flipped with probability e.

  (-(1 - e) log sigma(m) + e log sigma(-m)) / (1 - 2 e): arXiv:2403.00409. Not
  bounded below. As in TRL, whose default e is 0.
  """
  inputs.check_positive(beta=beta)
  inputs.check_smoothing(label_smoothing)
  m, e = beta * log_ratio_difference(pairs), label_smoothing
  return ((1 - e) * -log_sigmoid(m) + e * log_sigmoid(-m)) / (1 - 2 * e)


_DIFFERENCES = {'sums': log_ratio_difference, 'tokens': _per_token_difference}


@preference_loss(reference=True, ratios=True, sums=True)
def ipo(
  pairs: types.PairLogps, *, beta: float, normalise: str = 'sums'
) -> types.Array:
  """IPO, (h - 1 / (2 beta))^2: Eq. 17, arXiv:2310.12036, its tau being beta.

  normalise: 'sums' as in the paper and the DPO authors' code; 'tokens' replaces
  h by a / |y_w| - b / |y_l|, as TRL does: the paper's authors told TRL's that
  the paper's results were made so. The same beta means something else in each.
  """
  inputs.check_positive(beta=beta)
  difference = registry.lookup(_DIFFERENCES, normalise, 'normalise')
  return jnp.square(difference(pairs) - 1 / (2 * beta))


@preference_loss(reference=True, ratios=True, sums=True)
def hinge(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """RSO's hinge-norm, max(0, 1 - m): arXiv:2309.06657, its gamma being beta."""
  inputs.check_positive(beta=beta)
  return jax.nn.relu(1 - beta * log_ratio_difference(pairs))


@preference_loss(reference=True, ratios=True, sums=True)
def exo(
  pairs: types.PairLogps, *, beta: float, label_smoothing: float = 1e-3
) -> types.Array:
  """EXO, KL(policy's preference || smoothed label): arXiv:2402.00856.

  sigma(m) log(sigma(m) / (1 - e)) + sigma(-m) log(sigma(-m) / e), 0 < e < 0.5.
  TRL's default e is 0, with which it refuses to run.
  """
  inputs.check_positive(beta=beta)
  inputs.check_smoothing(label_smoothing, above_0=True)
  m, e = beta * log_ratio_difference(pairs), label_smoothing
  chosen = sigmoid(m) * (log_sigmoid(m) - jnp.log1p(-e))
  return chosen + sigmoid(-m) * (log_sigmoid(-m) - jnp.log(e))


@preference_loss(reference=True, sums=True)
def nca(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """NCA of two answers, arXiv:2402.05369; TRL's 'nca_pair'.

  -log sigma(beta a) - (log sigma(-beta a) + log sigma(-beta b)) / 2.
  """
  inputs.check_positive(beta=beta)
  a, b = inputs.pair_ratios(pairs)
  noise = log_sigmoid(-beta * a) + log_sigmoid(-beta * b)
  return -log_sigmoid(beta * a) - noise / 2


@preference_loss(reference=True, sums=True)
def sppo(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """SPPO with hard labels, arXiv:2405.00675; TRL's 'sppo_hard'.

  (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2. Winning probabilities are 1 and
  0; the paper estimates them. Its eta is 1 / beta.
  """
  inputs.check_positive(beta=beta)
  a, b = inputs.pair_ratios(pairs)
  return jnp.square(a - 1 / (2 * beta)) + jnp.square(b + 1 / (2 * beta))


@preference_loss(reference=True, sums=True)
def apo_zero(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """APO-zero, 1 - sigma(beta a) + sigma(beta b): arXiv:2408.06266.

  The paper's loss plus 1, so not below 0, as in TRL.
  """
  inputs.check_positive(beta=beta)
  a, b = inputs.pair_ratios(pairs)
  return sigmoid(-beta * a) + sigmoid(beta * b)


@preference_loss(reference=True, sums=True)
def apo_down(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """APO-down, sigma(beta a) + 1 - sigma(m): arXiv:2408.06266.

  The paper's loss plus 1, so not below 0, as in TRL.
  """
  inputs.check_positive(beta=beta)
  a, b = inputs.pair_ratios(pairs)
  return sigmoid(beta * a) + sigmoid(-beta * (a - b))


@preference_loss(reference=True, ratios=True, sums=True)
def discopop(
  pairs: types.PairLogps, *, beta: float, temperature: float = 0.05
) -> types.Array:
  """DiscoPOP's log-ratio modulated loss, arXiv:2406.08414.

  -(1 - w) log sigma(m) + w exp(-m), w = sigma(m / temperature), temperature in
  (0, 1]. w exp(-m) is one exponential, which does not overflow; TRL multiplies
  the two, which is nan for m below about -89.
  """
  inputs.check_positive(beta=beta, temperature=temperature)
  inputs.check_most_1(temperature=temperature)
  m = beta * log_ratio_difference(pairs)
  logistic = sigmoid(-m / temperature) * -log_sigmoid(m)
  return logistic + jnp.exp(log_sigmoid(m / temperature) - m)


@preference_loss(reference=True, sums=True)
def dpop(
  pairs: types.PairLogps, *, beta: float, penalty: float = 50.0
) -> types.Array:
  """DPO-Positive, -log sigma(beta (h - penalty max(0, -a))): arXiv:2402.13228.

  `penalty` is the paper's lambda; it applies where the policy makes the
  preferred answer less likely than the reference does. Not in TRL.
  """
  inputs.check_positive(beta=beta)
  inputs.check_least_0(penalty=penalty)
  a, b = inputs.pair_ratios(pairs)
  return -log_sigmoid(beta * (a - b - penalty * jax.nn.relu(-a)))
