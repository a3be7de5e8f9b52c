"""Published figures, recomputed from votes.

Those of whole data sets where $DPO_JAX_SHARED_DATA names a folder with them; a
few figures whose votes can be counted by hand run anywhere.
"""

import csv
import gzip
import json
import math
import os
import pathlib

import pytest

from dpo_jax.evals import statistics

HELD = os.environ.get('DPO_JAX_SHARED_DATA')
with_data = pytest.mark.skipif(
  not HELD, reason='DPO_JAX_SHARED_DATA names no folder with the votes'
)


def _opened(name):
  return gzip.open(pathlib.Path(HELD, name), 'rt', encoding='utf-8')


def _repeat(cells):
  return [x for x, count in cells for _ in range(count)]


@pytest.mark.parametrize(
  ('wins', 'losses', 'ties', 'rate', 'error'),
  [
    (783, 16, 5, 97.69900497512438, 0.5104849118311993),
    (700, 103, 2, 87.0807453416149, 1.1796402736033835),
    (779, 25, 1, 96.83229813664596, 0.6145319996386234),
  ],
)
def test_rows_of_alpaca_eval_1(wins, losses, ties, rate, error):
  """gpt4_1106_preview, claude-2.1 and mistral-medium on its leaderboard."""
  outcomes = _repeat([(1, wins), (0, losses), (0.5, ties)])
  assert 100 * statistics.win_rate(outcomes) == pytest.approx(rate, abs=1e-9)
  assert 100 * statistics.standard_error(outcomes) == pytest.approx(error)


@with_data
def test_alpaca_eval():
  """Every model whose votes and row are there, of both leaderboards.

  A vote is 1 for the reference's answer, 2 for the model's, or between them as
  the judge's probability says; AlpacaEval 1 writes 0 for a tie.
  """
  found = 0
  boards = {}
  for name in ('alpaca_eval_gpt4', 'weighted_alpaca_eval_gpt4_turbo'):
    path = pathlib.Path(HELD, 'alpaca_eval', f'{name}_leaderboard.csv')
    with path.open(encoding='utf-8') as file:
      boards[name] = {row['']: row for row in csv.DictReader(file)}
  for row in map(json.loads, _opened('alpaca_eval/preferences.jsonl.gz')):
    published = boards.get(row['annotator'], {}).get(row['model'])
    if published is None:
      continue
    votes = [vote for _, vote in row['preferences'] if vote is not None]
    outcomes = [0.5 if vote == 0 else vote - 1 for vote in votes]
    whole = [(x > 0.5) + 0.5 * (x == 0.5) for x in outcomes]
    for figure, value in (
      ('win_rate', statistics.win_rate(outcomes)),
      ('standard_error', statistics.standard_error(outcomes)),
      ('discrete_win_rate', statistics.win_rate(whole)),
    ):
      expected = float(published[figure])
      assert 100 * value == pytest.approx(expected, abs=1e-6), (row, figure)
    found += 1
  assert found == 111


def _as_llmbar(votes):
  """What its kappas are of: its code takes all verdicts but '1' for none."""
  return [1 if vote == '1' else 0 for vote in votes]


def test_one_evaluator_of_llmbar():
  """ChatGPT-0301 with CoT on the case study Base_10: 54 comparisons."""
  cells = {
    (1, '1', '2'): 25,
    (2, '1', '2'): 19,
    (2, '1', '1'): 4,
    (2, '2', '2'): 2,
    (1, '1', '1'): 2,
    (1, '2', '2'): 2,
  }
  labels, first, second = zip(*_repeat(cells.items()))
  named = [str(label) for label in labels]
  assert statistics.agreement(named, first) == 29 / 54
  assert statistics.agreement(named, second) == 23 / 54
  assert statistics.agreement(first, second) == 10 / 54
  first, second = _as_llmbar(first), _as_llmbar(second)
  for a, b, kappa in (
    (first, labels, 0.00545702592087316),
    (second, labels, -0.024070021881838155),
    (first, second, 0.01980198019801971),
  ):
    assert statistics.cohen_kappa(a, b) == pytest.approx(kappa)


def _share(text):
  return float(text.rpartition('=')[2].rstrip('%')) / 100


@with_data
def test_llmbar():
  """Accuracy, agreement of both orders and kappas of all evaluators."""
  runs = [json.loads(line) for line in _opened('llmbar/verdicts.jsonl.gz')]
  assert len(runs) == 499
  for run in runs:
    labels, votes = run['labels'], [run['swap = False'], run['swap = True']]
    named, published = [str(x) for x in labels], run['statistics']
    binary = [_as_llmbar(x) for x in votes]
    kappas = [statistics.cohen_kappa(x, labels) for x in binary]
    for name, value in (
      ('correct_False', statistics.agreement(named, votes[0])),
      ('correct_True', statistics.agreement(named, votes[1])),
      ('equal', statistics.agreement(*votes)),
    ):
      assert value == pytest.approx(_share(published[name])), (run, name)
    for name, value in (
      ('kappa_False', kappas[0]),
      ('kappa_True', kappas[1]),
      ('kappa_agreement', statistics.cohen_kappa(*binary)),
    ):
      expected = published[name]
      expected = math.nan if expected is None else expected
      same = pytest.approx(expected, abs=1e-9, nan_ok=True)
      assert value == same, (run['path'], name)


def test_the_first_kappa_of_pandalm():
  """Two of its raters on 999 pairs: 0.85; 0 is a tie."""
  cells = {
    (2, 2): 435,
    (1, 1): 388,
    (0, 0): 89,
    (2, 1): 29,
    (1, 2): 23,
    (1, 0): 16,
    (2, 0): 11,
    (0, 2): 8,
  }
  kappa = statistics.cohen_kappa(*zip(*_repeat(cells.items())))
  assert round(kappa, 2) == 0.85


@with_data
def test_pandalm():
  with _opened('pandalm/testset-v1.json.gz') as file:
    rows = json.load(file)
  a, b, c = ([row[f'annotator{i}'] for row in rows] for i in range(1, 4))
  kappas = [statistics.cohen_kappa(*pair) for pair in ((a, b), (a, c), (b, c))]
  assert [round(kappa, 2) for kappa in kappas] == [0.85, 0.88, 0.86]
