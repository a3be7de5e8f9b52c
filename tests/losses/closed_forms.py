"""The objectives in float64 NumPy, as their papers write them.

Nothing here is written for extremes or for speed: logs are taken of sigmoids,
sorted batches are walked through. Options and defaults are those that the
package documents. Gradients are central differences of these values.
"""

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
  """Sums of log-probabilities, [P]; w preferred, l rejected; n their tokens."""

  w: np.ndarray
  l: np.ndarray  # noqa: E741 (the papers' letter)
  ref_w: np.ndarray
  ref_l: np.ndarray
  n_w: np.ndarray
  n_l: np.ndarray
  target: np.ndarray

  @property
  def a(self):
    return self.w - self.ref_w

  @property
  def b(self):
    return self.l - self.ref_l

  @property
  def h(self):
    return self.a - self.b


def pairs_of(pairs) -> Pairs:
  """From a PairLogps; without a reference or target, those are nan."""
  policy = np.asarray(pairs.policy, np.float64)
  nan = np.full(policy.shape, np.nan)
  reference = nan if pairs.reference is None else pairs.reference
  reference = np.asarray(reference, np.float64)
  n = np.asarray(pairs.length, np.float64)
  target = nan[..., 0] if pairs.target is None else np.asarray(pairs.target)
  return Pairs(
    *(x[..., i] for x in (policy, reference, n) for i in (0, 1)),
    target=np.float64(target),
  )


def gradient(fn, x, step=1e-5):
  """d fn(x) / dx by central differences, for a scalar fn."""
  out = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[i] += step
    down[i] -= step
    out[i] = (fn(up) - fn(down)) / (2 * step)
  return out


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
  return np.log(sigmoid(x))


def dpo(p, *, beta, label_smoothing=0.0):
  q, other = sigmoid(beta * p.h), sigmoid(-beta * p.h)
  return -(1 - label_smoothing) * np.log(q) - label_smoothing * np.log(other)


def dpo_norm(p, *, beta):
  return -log_sigmoid(beta / p.n_w * p.a - beta / p.n_l * p.b)


def robust(p, *, beta, label_smoothing=0.1):
  e, q, other = label_smoothing, sigmoid(beta * p.h), sigmoid(-beta * p.h)
  return (-(1 - e) * np.log(q) + e * np.log(other)) / (1 - 2 * e)


def ipo(p, *, beta, normalise='sums'):
  h = p.h if normalise == 'sums' else p.a / p.n_w - p.b / p.n_l
  return (h - 0.5 / beta) ** 2


def hinge(p, *, beta):
  return np.maximum(0, 1 - beta * p.h)


def exo(p, *, beta, label_smoothing=1e-3):
  """KL of two distributions over the two answers."""
  logits = beta * np.stack([p.a, p.b])
  policy = np.exp(logits) / np.exp(logits).sum(0)
  label = np.array([1 - label_smoothing, label_smoothing])[:, None]
  return (policy * np.log(policy / label)).sum(0)


def nca(p, *, beta):
  r_w, r_l = beta * p.a, beta * p.b
  return -(log_sigmoid(r_w) + 0.5 * log_sigmoid(-r_w) + 0.5 * log_sigmoid(-r_l))


def sppo(p, *, beta):
  """eta (P(y beats the policy) - 1/2) with eta = 1 / beta, P in {0, 1}."""
  return sum((r - (win - 0.5) / beta) ** 2 for r, win in ((p.a, 1), (p.b, 0)))


def bco(p, *, beta, shift=None):
  if shift is None:
    shift = np.mean(np.concatenate([beta * p.a, beta * p.b]))
  return -log_sigmoid(beta * p.a - shift) - log_sigmoid(-(beta * p.b - shift))


def apo_zero(p, *, beta):
  return 1 - sigmoid(beta * p.a) + sigmoid(beta * p.b)


def apo_down(p, *, beta):
  return sigmoid(beta * p.a) + 1 - sigmoid(beta * p.a - beta * p.b)


def _matched(u, v, beta):
  """Each u_i against the v that as many are below as there are below u_i."""
  v = sorted(v)
  ranks = [sum(other < own for other in u) for own in u]
  return -log_sigmoid(beta * np.array([x - v[r] for x, r in zip(u, ranks)]))


def aot(p, *, beta):
  return _matched(p.w - p.l, p.ref_w - p.ref_l, beta)


def aot_unpaired(p, *, beta):
  return _matched(p.a, p.b, beta)


def discopop(p, *, beta, temperature=0.05):
  m = beta * p.h
  w = sigmoid(m / temperature)
  return (1 - w) * -log_sigmoid(m) + w * np.exp(-m)


def dpop(p, *, beta, penalty=50.0):
  return -log_sigmoid(beta * (p.h - penalty * np.maximum(0, p.ref_w - p.w)))


def slic(p, *, delta=1.0, target_weight=0.1, target='chosen'):
  log_target = p.w if target == 'chosen' else p.target
  return np.maximum(0, delta - p.w + p.l) - target_weight * log_target


def simpo(p, *, beta, gamma=0.5):
  return -log_sigmoid(beta / p.n_w * p.w - beta / p.n_l * p.l - gamma)


def orpo(p, *, beta):
  prob_w, prob_l = np.exp(p.w / p.n_w), np.exp(p.l / p.n_l)
  odds_w, odds_l = prob_w / (1 - prob_w), prob_l / (1 - prob_l)
  return -np.log(prob_w) - beta * log_sigmoid(np.log(odds_w / odds_l))


def cpo(p, *, beta, likelihood_weight=1.0):
  return -log_sigmoid(beta * (p.w - p.l)) - likelihood_weight * p.w


def unlikelihood(p, *, alpha=0.1):
  return -p.w + alpha * p.l


def preferred_ft(p, *, normalise='sums'):
  return -p.w if normalise == 'sums' else -p.w / p.n_w


PREFERENCE = {
  fn.__name__: fn
  for fn in (
    *(dpo, dpo_norm, robust, ipo, hinge, exo, nca, sppo, bco, apo_zero),
    *(apo_down, aot, aot_unpaired, discopop, dpop, slic, simpo, orpo, cpo),
    *(unlikelihood, preferred_ft),
  )
}


def kto(r, label, z0, *, beta, desirable_weight=1.0, undesirable_weight=1.0):
  """lambda_y - v(x, y), of log-ratios r and labels."""
  desirable = desirable_weight * (1 - sigmoid(beta * (r - z0)))
  undesirable = undesirable_weight * (1 - sigmoid(beta * (z0 - r)))
  return np.where(label == 1, desirable, undesirable)


def unpaired_bco(
  r, label, shift, *, beta, desirable_weight=1.0, undesirable_weight=1.0
):
  p, other = sigmoid(beta * r - shift), sigmoid(shift - beta * r)
  desirable = -desirable_weight * np.log(p)
  return np.where(label == 1, desirable, -undesirable_weight * np.log(other))


def plackett_luce(r):
  """-log of the probability of the order, factor by factor, of rewards [K]."""
  p = 1.0
  for k in range(len(r)):
    p *= np.exp(r[k]) / np.exp(r[k:]).sum()
  return -np.log(p)


# f of each divergence, as a function of u = pi / pi_ref.
F = {
  'reverse_kl': lambda u: u * np.log(u),
  'forward_kl': lambda u: -np.log(u),
  'jensen_shannon': lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
  'alpha': lambda u, alpha=0.5: (
    (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1))
  ),
}
