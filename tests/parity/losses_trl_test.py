"""Objectives against TRL 1.16: losses and gradients on the same log-probs.

Where TRL means something else, `losses_trl_differ_test` pins what.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dpo_jax import losses, types
from tests.losses.pairs import gradient
from tests.parity.trl_losses import (
  CPOTrainer,
  ORPOTrainer,
  P,
  Tokens,
  answers,
  assert_agree,
  dpo_loss,
  kto_loss,
  ours,
  unbuilt,
)

# Ours, with options; TRL's loss_type, with its own.
SAME = [
  ('dpo', {}, 'sigmoid', {}),
  ('dpo_norm', {}, 'sigmoid_norm', {}),
  ('robust', dict(label_smoothing=0.2), 'robust', dict(label_smoothing=0.2)),
  ('ipo', dict(normalise='tokens'), 'ipo', {}),
  ('hinge', {}, 'hinge', {}),
  ('exo', dict(label_smoothing=0.01), 'exo_pair', dict(label_smoothing=0.01)),
  ('nca', {}, 'nca_pair', {}),
  ('sppo', {}, 'sppo_hard', {}),
  ('bco', dict(shift=0.0), 'bco_pair', {}),
  ('apo_zero', {}, 'apo_zero', {}),
  ('apo_down', {}, 'apo_down', {}),
  ('aot', {}, 'aot', {}),
  ('aot_unpaired', {}, 'aot_unpaired', {}),
  ('discopop', {}, 'discopop', {}),
  ('discopop', dict(temperature=0.5), 'discopop', dict(discopop_tau=0.5)),
]


@pytest.mark.parametrize('beta', [0.1, 1.0])
@pytest.mark.parametrize(('name', 'options', 'theirs', 'settings'), SAME)
def test_pairwise_objectives_agree(name, options, theirs, settings, beta):
  tokens = Tokens()
  expected = dpo_loss(tokens, theirs, beta=beta, **settings)
  assert_agree(tokens, ours(name, beta=beta, **options), expected)


DIVERGENCES = {
  'reverse_kl': ({}, dict(divergence='reverse_kl')),
  'forward_kl': ({}, dict(divergence='forward_kl')),
  'jensen_shannon': ({}, dict(divergence='js_divergence')),
  'alpha': (dict(alpha=0.3), dict(divergence='alpha_divergence', coef=0.7)),
}


@pytest.mark.parametrize('divergence', DIVERGENCES)
@pytest.mark.parametrize(
  ('name', 'options', 'theirs', 'settings'),
  [
    case for case in SAME if losses.PREFERENCE_LOSSES[case[0]].properties.ratios
  ],
)
def test_f_divergences_agree(name, options, theirs, settings, divergence):
  own, their_divergence = DIVERGENCES[divergence]
  score = functools.partial(losses.DIVERGENCES[divergence], **own)
  tokens, loss = Tokens(scale=0.4), ours(name, beta=0.2, **options)

  def fn(pairs):
    ratios = pairs.policy - pairs.reference
    zeros = jnp.zeros_like(ratios)
    return loss(pairs.replace(policy=score(ratios), reference=zeros))

  settings = {**settings, **their_divergence}
  expected = dpo_loss(tokens, theirs, beta=0.2, **settings)
  assert_agree(tokens, fn, expected, rtol=2e-5)


def _assert_torch_agree(of_torch, of_jax, *arrays):
  """Per-pair values of two functions of the same arrays, and gradients."""
  tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in arrays]
  expected = of_torch(*tensors)
  expected.sum().backward()
  np.testing.assert_allclose(
    of_jax(*arrays), expected.detach().numpy(), rtol=1e-5, atol=1e-6
  )
  argnums = tuple(range(len(arrays)))
  grads = jax.grad(lambda *x: of_jax(*x).sum(), argnums)(*arrays)
  for tensor, grad in zip(tensors, grads):
    np.testing.assert_allclose(grad, tensor.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', ['cpo', 'simpo'])
def test_reference_free_margins_agree(name):
  theirs = unbuilt(
    CPOTrainer,
    **dict(alpha=0.0, label_smoothing=0.0, simpo_gamma=1.2, beta=2.0),
    loss_type={'cpo': 'sigmoid', 'simpo': 'simpo'}[name],
  )
  own = dict(cpo=dict(likelihood_weight=0.0), simpo=dict(gamma=1.2))[name]
  fn = ours(name, beta=2.0, **own)
  logps = Tokens().pairs().policy / 9
  _assert_torch_agree(
    lambda *logps: theirs.cpo_loss(*logps)[0],
    lambda *logps: fn(answers(*logps)),
    *(logps[:, 0], logps[:, 1]),
  )


def test_orpos_odds_ratio_agrees():
  theirs = unbuilt(ORPOTrainer, beta=0.7)
  fn = ours('orpo', beta=0.7)
  w = jnp.array([-1e-3, -0.1, -0.69, -0.7, -2.0, -9.0])
  _assert_torch_agree(
    lambda *logps: -logps[0] - theirs.odds_ratio_loss(*logps)[0],
    lambda *logps: fn(answers(*logps)),
    *(w, w[::-1]),
  )


@pytest.mark.parametrize('mean', [-3.0, 2.0])
def test_kto_agrees_given_the_mismatched_log_ratios(mean):
  tokens, rng = Tokens(), np.random.default_rng(1)
  label = rng.permutation(2 * P) < 5
  mismatched = np.float32(mean + rng.normal(size=2 * P))
  weights = dict(desirable_weight=1.3, undesirable_weight=0.6)
  unpaired = types.UnpairedLogps(
    policy=jnp.asarray(tokens.policy.sum(1)),
    reference=jnp.asarray(tokens.reference.sum(1)),
    label=jnp.float32(label),
    length=jnp.asarray(tokens.length),
    mismatched=jnp.asarray(mismatched),
  )
  fn = functools.partial(losses.UNPAIRED_LOSSES['kto'], beta=0.3, **weights)
  loss, grads = kto_loss(tokens, label, mismatched, **weights)
  np.testing.assert_allclose(fn(unpaired).mean(), loss, rtol=1e-5)
  own = np.asarray(gradient(fn, unpaired)) / len(label)
  np.testing.assert_allclose(
    np.where(tokens.mask, grads, 0.0),
    np.where(tokens.mask, own[:, None], 0.0),
    rtol=1e-4,
    atol=1e-7,
  )
