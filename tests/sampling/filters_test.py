"""Filters against plain implementations; frequencies against probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dpo_jax.sampling import filters
from tests.sampling import exact

RULES = {
  'none': dict(temperature=1.0),
  'hot': dict(temperature=1.7),
  'cold': dict(temperature=0.4),
  'top_k': dict(temperature=1.0, top_k=7),
  'top_1': dict(temperature=1.0, top_k=1),
  'top_p': dict(temperature=1.0, top_p=0.7),
  'tiny_p': dict(temperature=1.0, top_p=1e-6),
  'all_k': dict(temperature=1.0, top_k=10**6),
  'all_p': dict(temperature=1.0, top_p=1.0),
  'all_at_once': dict(temperature=1.4, top_k=20, top_p=0.8),
}


def _rule(name):
  options = dict(top_k=None, top_p=None) | RULES[name]
  return filters.make_rule(**options)


def _logits(seed, rows=5, vocab=600):
  noise = np.random.default_rng(seed).normal(size=(rows, vocab))
  return (3 * noise).astype(np.float32)


@functools.partial(jax.jit, static_argnums=2)
def _draws(key, logits_V, num, rule):
  keys = jax.random.split(key, num)
  logits_VxN = jnp.broadcast_to(logits_V[:, None], (*logits_V.shape, num))
  return filters.draw(keys, logits_VxN, rule)


def _filtered(logits_NxV, rule):
  return np.asarray(filters.filtered(jnp.asarray(logits_NxV).T, rule)).T


@pytest.mark.parametrize('name', RULES)
def test_filters_equal_sorting(name):
  logits = _logits(0)
  scores = _filtered(logits, _rule(name))
  actual = np.asarray(jax.nn.softmax(scores, axis=-1))
  for row, logits_V in zip(actual, logits):
    expected = exact.distribution(logits_V, **RULES[name])
    np.testing.assert_array_equal(row > 0, expected.astype(np.float32) > 0)
    np.testing.assert_allclose(row, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize('name', RULES)
def test_filters_equal_transformers(name):
  logits = _logits(1)
  options = RULES[name]
  scores = transformers.TemperatureLogitsWarper(options['temperature'])(
    None, torch.as_tensor(logits)
  )
  if 'top_k' in options:
    scores = transformers.TopKLogitsWarper(options['top_k'])(None, scores)
  if 'top_p' in options:
    scores = transformers.TopPLogitsWarper(options['top_p'])(None, scores)
  actual = _filtered(logits, _rule(name))
  np.testing.assert_allclose(actual, scores.numpy(), rtol=1e-6)


def test_equally_probable_tokens_are_kept_or_dropped_together():
  probs = np.array([[0.1, 0.3, 0.1, 0.3, 0.2]])
  logits = jnp.log(jnp.asarray(probs, jnp.float32))

  def kept(**options):
    rule = filters.SamplingRule(1.0, options.get('top_k'), options.get('top_p'))
    return np.flatnonzero(np.isfinite(_filtered(logits, rule)[0]))

  assert kept(top_k=1).tolist() == [1, 3]
  assert kept(top_k=2).tolist() == [1, 3]
  assert kept(top_k=3).tolist() == [1, 3, 4]
  assert kept(top_k=4).tolist() == [0, 1, 2, 3, 4]
  assert kept(top_p=0.2).tolist() == [1, 3]
  assert kept(top_p=0.5).tolist() == [1, 3]
  assert kept(top_p=0.7).tolist() == [1, 3, 4]
  assert kept(top_p=0.9).tolist() == [0, 1, 2, 3, 4]
  # Half of what top-k left, not of the whole.
  assert kept(top_k=3, top_p=0.7).tolist() == [1, 3]
  # All that top-k left count, more than k as they may be.
  assert kept(top_k=4, top_p=0.79).tolist() == [1, 3, 4]
  assert kept(top_k=4, top_p=0.85).tolist() == [0, 1, 2, 3, 4]


def test_extreme_logits():
  logits = np.full((4, 300), -np.inf, np.float32)
  logits[0, 7] = 0.0
  logits[1, :] = 1e30
  logits[2, :] = -1e30
  logits[2, 299] = 1e30
  logits[3, [5, 6]] = 3.0, -3.0
  rule = filters.make_rule(temperature=0.01, top_k=40, top_p=0.99)
  keys = jax.random.split(jax.random.key(0), 4)
  tokens, logps, rule_logps = filters.draw(keys, jnp.asarray(logits).T, rule)
  assert tokens[0] == 7 and tokens[2] == 299 and tokens[3] == 5
  np.testing.assert_allclose(logps[:3], [0, -np.log(300), 0], atol=1e-5)
  np.testing.assert_allclose(rule_logps[:3], logps[:3], atol=1e-5)


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize(
  'vocab', [11, pytest.param(600, marks=pytest.mark.long)]
)
def test_frequencies_match_the_distribution(name, vocab):
  num = 10_000
  logits = _logits(2, rows=1, vocab=vocab)[0] / 2
  key = jax.random.key(5)
  tokens, logps, rule_logps = _draws(key, jnp.asarray(logits), num, _rule(name))
  expected = exact.distribution(logits, **RULES[name])
  exact.assert_drawn_from(tokens, expected)
  plain = exact.distribution(logits, temperature=1.0)
  np.testing.assert_allclose(logps, np.log(plain[tokens]), atol=1e-5)
  np.testing.assert_allclose(rule_logps, np.log(expected[tokens]), atol=1e-5)


def test_greedy_takes_the_first_of_equals():
  logits = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0]])
  keys = jax.random.split(jax.random.key(0), 2)
  rule = filters.make_rule(temperature=0.0, top_k=2, top_p=0.5)
  tokens, logps, rule_logps = filters.draw(keys, logits.T, rule)
  assert tokens.tolist() == [1, 0]
  np.testing.assert_allclose(
    logps, jax.nn.log_softmax(logits, axis=-1)[jnp.arange(2), tokens]
  )
  assert rule_logps.tolist() == [0, 0]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(temperature=-0.1), 'temperature is -0.1'),
    (dict(temperature=float('nan')), 'temperature is nan'),
    (dict(top_k=0), 'top_k is 0; expected 1 or more'),
    (dict(top_p=0.0), 'top_p is 0.0; expected more than 0'),
    (dict(top_p=1.5), 'top_p is 1.5'),
  ],
)
def test_bad_rules(options, message):
  options = dict(temperature=1.0, top_k=None, top_p=None) | options
  with pytest.raises(ValueError, match=message):
    filters.make_rule(**options)
