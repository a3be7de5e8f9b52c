"""What replies say, and which files hold votes."""

import json

import pytest
from matplotlib import text

from dpo_jax import judges
from dpo_jax.evals import win_rates
from dpo_jax.judges import comparisons, verdicts


@pytest.mark.parametrize(
  ('reply', 'said'),
  [
    ('A', 'first'),
    ('The second is vague.\nB', 'second'),
    ('Comparison: both are good.\nMore helpful: A', 'first'),
    ('**B**', 'second'),
    ('Preferred: "A".', 'first'),
    ('[[B]]', 'second'),
    ('Better: Response A\n\n', 'first'),
    ('Criterion 1: A\nCriterion 2: A\nOverall: B', 'second'),
    ('Better: B\nWorse: A', 'second'),
    ('Less helpful: A', 'unparsable'),
    ('Accuracy: A\nOverall, the second answer is the one that', 'unparsable'),
    ('Better response: B (slightly)', 'second'),
    ('Option B', 'second'),
    ('<answer>B</answer>', 'second'),
    ('tie', 'tie'),
    ('Verdict: Tie.', 'tie'),
    ('A is better than B.', 'unparsable'),
    ('A and B', 'unparsable'),
    ('C', 'unparsable'),
    ('a', 'unparsable'),
    ("I'm sorry, but I cannot judge this.", 'refused'),
    ("I can't say.\nB", 'second'),
    ('', 'refused'),
    (None, 'refused'),
  ],
)
def test_replies(reply, said):
  assert verdicts.read(reply) == said


def test_verdicts_are_of_sides_whatever_was_first():
  assert verdicts.of_sides('first', 'b') == 'b'
  assert verdicts.of_sides('second', 'b') == 'a'
  assert verdicts.of_sides('second', 'a') == 'b'
  assert verdicts.of_sides('tie', 'b') == 'tie'


def test_orders_are_drawn_or_both():
  pairs = [comparisons.Comparison('all', str(i), 'x', 'y') for i in range(400)]
  drawn = judges.questions(pairs, order='random', seed=0)
  assert drawn == judges.questions(pairs, order='random', seed=0)
  assert drawn != judges.questions(pairs, order='random', seed=1)
  assert 150 < sum(q.first == 'a' for q in drawn) < 250
  assert {q.shown for q in drawn} == {('x', 'y'), ('y', 'x')}
  both = judges.questions(pairs, order='both', seed=0)
  assert len({q.id('judge') for q in both}) == 800
  # What else is asked changes no draw.
  assert judges.questions(pairs[7:], order='random', seed=0) == drawn[7:]
  assert both[0].id('judge') != both[0].id('another')


def _vote(prompt, verdict, first='a', **more):
  words = dict(a='one two', b='one')
  return dict(prompt=prompt, verdict=verdict, first=first, **words) | more


def test_win_rates_of_votes():
  votes = [
    *[_vote(str(i), 'a') for i in range(5)],
    *[_vote(str(i), 'b', first='b') for i in range(5, 8)],
    _vote('8', 'tie'),
    _vote('9', 'refused'),
    _vote('10', 'unparsable'),
  ]
  found = win_rates.of_votes(votes, [judges.outcome(v) for v in votes])
  assert found['win_rate'] == 5.5 / 9 and found['win_rate_no_ties'] == 5 / 8
  assert (found['votes'], found['prompts'], found['ties']) == (9, 9, 1)
  assert (found['refused'], found['unparsable'], found['skip']) == (1, 1, 0)
  assert found['first_wins'] == (5 + 3 + 0.5) / 9
  assert (found['words_a'], found['words_b']) == (2, 1)
  assert '61.1%' in win_rates.table({'all': found}, 'x', 'y')
  only = [_vote('0', 'skip')]
  found = win_rates.of_votes(only, [judges.outcome(v) for v in only])
  assert (found['win_rate'], found['skip'], found['votes']) == (None, 1, 0)
  assert 'no vote decides' in win_rates.table({'all': found}, 'x', 'y')
  json.dumps(found, allow_nan=False)
  tied = win_rates.of_votes([_vote('0', 'tie')], [0.5])
  assert tied['win_rate'] == 0.5 and tied['win_rate_no_ties'] is None


def test_votes_on_one_prompt_are_a_cluster():
  """Ten equal votes on each of 60 prompts are 60 votes, not 600."""
  votes = [_vote(str(i), 'ab'[i % 2]) for i in range(60) for _ in range(10)]
  found = win_rates.of_votes(votes, [judges.outcome(v) for v in votes])
  assert found['votes'] == 600 and found['prompts'] == 60
  assert found['high'] - found['low'] > 0.2


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{', r'votes.jsonl:2 is not JSON'),
    ('[]', r'votes.jsonl:2: a vote needs prompt, a, b, verdict'),
    ('{"prompt": "p", "a": "x", "b": "y"}', 'needs verdict'),
    (json.dumps(_vote('p', 'c')), "verdict is 'c'; expected one of a, b, tie"),
  ],
)
def test_files_that_hold_no_votes(line, message, tmp_path):
  path = tmp_path / 'votes.jsonl'
  path.write_text(json.dumps(_vote('p', 'a')) + '\n' + line + '\n')
  with pytest.raises(ValueError, match=message):
    judges.read(path)


def test_names_of_sides_stay_within_the_plot():
  votes = [
    dict(prompt=f'{i}', a='x', b='y', verdict='ab'[i % 2]) for i in range(60)
  ]
  groups = {'T=0': win_rates.of_votes(votes, [1, 0] * 30)}
  names = [f'{n}-runs/{"a-long-name-of-a-policy" * 5}' for n in 'ab']
  figure = win_rates.make_figure(groups, a=names[0], b=names[1], judge='reward')
  figure.draw_without_rendering()
  (axes,) = figure.axes
  title = axes.get_title(loc='left')
  assert all(name in title.replace('\n', '') for name in names)
  texts = figure.findobj(text.Text)
  shown = [x for x in texts if len(x.get_text()) > 6]  # No labels of ticks.
  assert len(shown) == 4
  for each in shown:
    box = each.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, each.get_text()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.y1, each.get_text()
