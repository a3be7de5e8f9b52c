"""KL of whole answers: plain sequences' numbers, in one compiled shape."""

import jax
import numpy as np
import pytest

from dpo_jax import models
from dpo_jax.evals import kl
from dpo_jax.training import sharding
from tests import compilations, forests

PROMPTS = [[3], [5, 9, 2, 7, 1, 4], [8, 8, 1]]
MAX_NEW = 6


def _rows(seed, per_prompt=4):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, MAX_NEW + 1, len(PROMPTS) * per_prompt)
  lengths[:2] = 1, MAX_NEW
  return [
    {'ids': rng.integers(0, forests.VOCAB, n).tolist(), 'text': ''}
    for n in lengths
  ]


@jax.jit
def _logits(params, ids_BxL):
  hidden = models.forward(params, forests.CONFIG, ids_BxL)
  return models.logits(params, forests.CONFIG, hidden)


def _plain(params, rows):
  """f64[T, V] of each row: log-probabilities where its ids were predicted."""
  prompts = [PROMPTS[i // 4] for i in range(len(rows))]
  ids_BxL = np.zeros((len(rows), 16), np.int32)
  for ids, prompt, row in zip(ids_BxL, prompts, rows):
    ids[: len(prompt + row['ids'])] = prompt + row['ids']
  z = np.float64(_logits(params, ids_BxL))
  z = z - z.max(axis=-1, keepdims=True)
  logps = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
  return [
    x[len(prompt) - 1 :][: len(row['ids'])]
    for x, prompt, row in zip(logps, prompts, rows)
  ]


def _make(devices=1, **options):
  mesh = sharding.make_mesh(devices=devices)
  policy = models.policy(forests.CONFIG)
  return kl.make_sequence_kl(policy, mesh, max_new_tokens=MAX_NEW, **options)


@pytest.mark.parametrize(
  'options',
  [
    {},
    dict(max_tree_tokens=14, batch_size=5, logprob_chunk=4),
    dict(devices=4, max_tree_tokens=20),
  ],
  ids=['one batch', 'many trees and batches', 'devices'],
)
def test_sums_are_those_of_plain_sequences(options):
  policy, reference = forests.params(0), forests.params(1)
  rows = _rows(0)
  mesh = sharding.make_mesh(devices=options.get('devices', 1))
  placed = sharding.replicate(mesh, (policy, reference))
  got = _make(**options)(*placed, PROMPTS, rows)
  plain = (_plain(tree, rows) for tree in (policy, reference))
  for row, found, logp, logq in zip(rows, got, *plain):
    exact = (np.exp(logp) * (logp - logq)).sum()
    at = np.arange(len(row['ids'])), row['ids']
    assert found['kl'] == pytest.approx(exact, rel=1e-4)
    ratio = (logp[at] - logq[at]).sum()
    assert found['log_ratio'] == pytest.approx(ratio, rel=1e-4, abs=1e-4)
    assert {k: found[k] for k in row} == row


def test_a_policy_is_at_no_distance_from_itself():
  params = forests.params(0)
  for row in _make()(params, params, PROMPTS, _rows(1)):
    assert row['kl'] == 0 and row['log_ratio'] == 0


def test_samples_of_any_length_compile_once():
  sequence_kl, trees = _make(), (forests.params(0), forests.params(1))
  short = [{'ids': [1]} for _ in _rows(0)]
  with compilations.recorded() as compiled:
    for rows in (_rows(0), _rows(1), short):
      sequence_kl(*trees, PROMPTS, rows)
  assert compiled.count('jit(score)') == 1


def test_rows_that_do_not_fit_are_errors():
  sequence_kl, params = _make(), forests.params(0)
  with pytest.raises(ValueError, match='11 samples of 3 prompts'):
    sequence_kl(params, params, PROMPTS, _rows(0)[:11])
  long = [*_rows(0)[:-1], {'ids': [1] * 7}]
  with pytest.raises(ValueError, match='Sample 11 is 7 tokens long'):
    sequence_kl(params, params, PROMPTS, long)
