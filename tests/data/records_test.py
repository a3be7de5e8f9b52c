"""Rows to records: every shape, every way to be wrong, chats as text."""

import collections
import itertools
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from dpo_jax import tokenizers
from dpo_jax.chat import errors, rendering
from dpo_jax.data import drop_report, records

USER = {'role': 'user', 'content': 'Hi.'}
GOOD = {'role': 'assistant', 'content': 'Hello!'}
BAD = {'role': 'assistant', 'content': 'Go away.'}
MORE = {'role': 'user', 'content': 'And you?'}
SYSTEM = {'role': 'system', 'content': 'Be kind.'}


class Chat:
  """A tokenizer with a template that trims answers and opens them with a space.

  It writes what tools there are before all.
  """

  end_of_turn = tokenizers.EndOfTurn('|\n', '', '|', 9)
  control_pattern = re.compile(r'\|')

  def template_variables(self, *, tools=False):
    del tools
    return {'tools'}

  def apply_chat(self, messages, *, add_generation_prompt=False, tools=()):
    if messages[-1].get('content') == 'unrenderable':
      raise ValueError('roles must alternate')
    text = ''.join(f'({tool})' for tool in tools)
    for m in messages:
      lead = ' ' if m['role'] == 'assistant' else ''
      said = m.get('content') or m.get('tool_calls', [''])[0]
      text += f'<{m["role"]}>{lead}{said.strip()}|\n'
    return text + '<assistant>' * add_generation_prompt

  def mark_answers(self, messages):
    del messages


def render(messages):
  return Chat().apply_chat(messages, add_generation_prompt=True)


def parse(row, kind='pairs', turns='last'):
  how = rendering.Render(Chat(), turns)
  return records.parse(row, kind=kind, render=how, file='f.jsonl', line=7)


def group(**judgement):
  return {'prompt': 'p', 'completions': ['a', 'b', 'c'], **judgement}


PAIR = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}


@pytest.mark.parametrize(
  ('row', 'kind', 'completions', 'examples'),
  [
    (PAIR, 'pairs', 'ab', [(0, 1)]),
    (PAIR | {'score_chosen': 1, 'text': 'x'}, 'pairs', 'ab', [(0, 1)]),
    (PAIR, 'ranking', 'ab', [(0, 1)]),
    (PAIR, 'sft', 'a', [(0,)]),
    (group(preferences=[[2, 0], [2, 1]]), 'pairs', 'abc', [(2, 0), (2, 1)]),
    # b is in no pair: it is left out, and the indices close up.
    (group(preferences=[[2, 0], [2, 0]]), 'pairs', 'ac', [(1, 0), (1, 0)]),
    (group(preferences=[[0, 1], [1, 0], [2, 0]]), 'sft', 'c', [(0,)]),
    (group(preferences=[[0, 1], [1, 0]]), 'sft', 'a', [(0,)]),
    (group(scores=[1, 3.5, 2]), 'pairs', 'abc', [(1, 2), (1, 0), (2, 0)]),
    (group(scores=[1, 2, 1]), 'pairs', 'abc', [(1, 0), (1, 2)]),
    (group(scores=[10**400, 0, 0]), 'pairs', 'abc', [(0, 1), (0, 2)]),
    (group(scores=[1, 3, 2]), 'ranking', 'abc', [(1, 2, 0)]),
    (group(scores=[0, 3, 3]), 'sft', 'b', [(0,)]),
    (group(scores=[0, 0, 0]), 'sft', 'a', [(0,)]),
    (group(ranking=[2, 0, 1]), 'pairs', 'abc', [(2, 0), (2, 1), (0, 1)]),
    (group(ranking=[2, 0, 1]), 'ranking', 'abc', [(2, 0, 1)]),
    (group(ranking=[2, 0]), 'ranking', 'ac', [(1, 0)]),
    (group(ranking=[2, 0, 1]), 'sft', 'c', [(0,)]),
    ({'prompt': '', 'completion': 'a'}, 'sft', 'a', [(0,)]),
    ({'prompt': '', 'completion': 'a', 'label': True}, 'sft', 'a', [(0,)]),
    ({'text': 'a'}, 'sft', 'a', [(0,)]),
    (PAIR | {'target': 'c'}, 'targeted', 'abc', [(0, 1, 2)]),
    # A target that is one of the pair is not computed twice.
    (PAIR | {'target': 'a'}, 'targeted', 'ab', [(0, 1, 0)]),
    (PAIR | {'target': 'b'}, 'targeted', 'ab', [(0, 1, 1)]),
    (PAIR | {'target': 'c'}, 'pairs', 'ab', [(0, 1)]),
    (PAIR | {'target': 'c'}, 'ranking', 'ab', [(0, 1)]),
    (PAIR | {'target': 'c'}, 'sft', 'a', [(0,)]),
  ],
)
def test_shapes(row, kind, completions, examples):
  record = parse(row, kind)
  assert record.prompt == row.get('prompt', '')
  assert record.completions == tuple(completions)
  assert record.examples == tuple(examples)
  assert record.labels is None
  assert (record.file, record.row) == ('f.jsonl', 7)


@pytest.mark.parametrize('kind', ['unpaired', 'kto'])
@pytest.mark.parametrize(
  ('row', 'completions', 'labels', 'examples'),
  [
    ({'prompt': 'p', 'completion': 'a', 'label': True}, 'a', '1', '0'),
    ({'prompt': 'p', 'completion': 'a', 'label': False}, 'a', '0', '0'),
    (PAIR, 'ab', '10', '01'),
    (PAIR | {'target': 'c'}, 'ab', '10', '01'),
    (group(preferences=[[2, 0], [2, 1]]), 'abc', '001', '021'),
    (group(preferences=[[0, 1], [1, 2]]), 'ac', '10', '01'),
    (group(preferences=[[0, 1], [0, 1], [1, 0]]), 'ab', '10', '01'),
    (group(scores=[1, 3, 2]), 'ab', '01', '10'),
    (group(scores=[1, 2, 1]), 'abc', '010', '012'),
    (group(ranking=[1, 2]), 'bc', '10', '01'),
    # Two answers of one side may be equal.
    (group(scores=[2, 2, 1]) | {'completions': [*'aab']}, 'aab', '110', '021'),
  ],
)
def test_unpaired(row, completions, labels, examples, kind):
  record = parse(row, kind)
  assert record.completions == tuple(completions)
  assert record.labels == tuple(x == '1' for x in labels)
  assert record.examples == tuple((int(x),) for x in examples)


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)
)
def test_unpaired_counts_wins_and_losses(preferences):
  preferences = [[w, x] for w, x in preferences if w != x]
  row = {
    'prompt': 'p',
    'completions': [*'abcdef'],
    'preferences': preferences,
  }
  wins = collections.Counter('abcdef'[w] for w, _ in preferences)
  losses = collections.Counter('abcdef'[x] for _, x in preferences)
  wanted = {c: wins[c] > losses[c] for c in 'abcdef' if wins[c] != losses[c]}
  if not wanted:
    with pytest.raises(errors.RowError, match='no_preference'):
      parse(row, 'unpaired')
    return
  record = parse(row, 'unpaired')
  assert dict(zip(record.completions, record.labels)) == wanted
  # In turns: no run of examples has more of a side than its share, and two.
  order = [record.labels[i] for (i,) in record.examples]
  assert sorted(i for (i,) in record.examples) == list(range(len(wanted)))
  share = sum(order) / len(order)
  for begin, end in itertools.combinations(range(len(order) + 1), 2):
    assert abs(sum(order[begin:end]) - share * (end - begin)) <= 1


def test_spans_are_kept_as_they_are():
  row = PAIR | {'chosen_spans': [[0, 1]], 'rejected_spans': 'anything'}
  assert parse(row).spans == ([[0, 1]], 'anything')
  assert parse(PAIR | {'chosen_spans': []}).spans == ([], None)
  assert parse(PAIR).spans is None


@pytest.mark.parametrize(
  ('row', 'kind', 'reason'),
  [
    ([PAIR], 'pairs', 'not_an_object'),
    ('text', 'sft', 'not_an_object'),
    ({}, 'pairs', 'missing_field'),
    ({'prompt': 'p', 'chosen': 'a'}, 'pairs', 'missing_field'),
    ({'chosen': 'a', 'rejected': 'b'}, 'pairs', 'missing_field'),
    ({'prompt': None, 'completion': 'a'}, 'sft', 'missing_field'),
    ({'prompt': 'p', 'text': 'a'}, 'sft', 'missing_field'),
    (group(), 'pairs', 'missing_field'),
    (group(scores=[1, 2, 3], ranking=[0, 1]), 'pairs', 'ambiguous'),
    (PAIR | {'completions': ['a', 'b']}, 'pairs', 'ambiguous'),
    ({'prompt': 'p', 'completion': 'a'}, 'pairs', 'no_preference'),
    (PAIR | {'prompt': 3}, 'pairs', 'wrong_type'),
    (PAIR | {'chosen': 3}, 'pairs', 'wrong_type'),
    (PAIR | {'rejected': None}, 'pairs', 'missing_field'),
    (PAIR | {'rejected': [GOOD]}, 'pairs', 'wrong_type'),
    ({'text': 5}, 'sft', 'wrong_type'),
    (group(preferences={}), 'pairs', 'wrong_type'),
    (group(preferences=[[0]]), 'pairs', 'wrong_type'),
    (group(preferences=[[0, True]]), 'pairs', 'wrong_type'),
    (group(preferences=[[0, 1.0]]), 'pairs', 'wrong_type'),
    (group(preferences=[[0, 3]]), 'pairs', 'index_out_of_range'),
    (group(preferences=[[-1, 0]]), 'pairs', 'index_out_of_range'),
    (group(preferences=[[1, 1]]), 'pairs', 'identical_completions'),
    (group(preferences=[]), 'pairs', 'no_preference'),
    (group(preferences=[[0, 1]]), 'ranking', 'no_strict_order'),
    (group(scores=[1, 2]), 'pairs', 'wrong_length'),
    (group(scores=[1, 2, '3']), 'pairs', 'wrong_type'),
    (group(scores=[1, 2, True]), 'pairs', 'wrong_type'),
    (group(scores=[1, 2, float('nan')]), 'pairs', 'non_finite_score'),
    (group(scores=[1, 2, float('-inf')]), 'pairs', 'non_finite_score'),
    (group(scores=[1, 1, 1]), 'pairs', 'no_preference'),
    (group(scores=[1, 2, 1]), 'ranking', 'no_strict_order'),
    (group(ranking=[0, 3]), 'pairs', 'index_out_of_range'),
    (group(ranking=[0, 0, 1]), 'ranking', 'repeated_index'),
    (group(ranking=[0]), 'ranking', 'no_strict_order'),
    (
      {'prompt': 'p', 'completions': [], 'scores': []},
      'sft',
      'empty_completion',
    ),
    (
      {'prompt': 'p', 'completions': 'ab', 'scores': [1, 2]},
      'pairs',
      'wrong_type',
    ),
    (PAIR | {'rejected': ''}, 'pairs', 'empty_completion'),
    ({'text': ''}, 'sft', 'empty_completion'),
    (PAIR | {'rejected': 'a'}, 'pairs', 'identical_completions'),
    (PAIR | {'prompt': 'a \ud800'}, 'pairs', 'bad_unicode'),
    (PAIR | {'rejected': 'a'}, 'unpaired', 'identical_completions'),
    (group(scores=[1, 1, 1]), 'unpaired', 'no_preference'),
    (group(preferences=[[0, 1], [1, 0]]), 'kto', 'no_preference'),
    (
      group(scores=[2, 1, 1]) | {'completions': [*'aaa']},
      'unpaired',
      'identical_completions',
    ),
    ({'text': 'a'}, 'unpaired', 'missing_field'),
    ({'prompt': 'p', 'completion': 'a'}, 'kto', 'missing_field'),
    (PAIR, 'targeted', 'missing_field'),
    (PAIR | {'target': None}, 'targeted', 'missing_field'),
    (PAIR | {'target': ''}, 'targeted', 'empty_completion'),
    (
      PAIR | {'rejected': 'a', 'target': 'a'},
      'targeted',
      'identical_completions',
    ),
    (group(ranking=[0, 1, 2]), 'targeted', 'missing_field'),
    ({'prompt': 'p', 'completion': 'a'}, 'unpaired', 'missing_field'),
    ({'prompt': 'p', 'completion': 'a', 'label': 1}, 'unpaired', 'wrong_type'),
    ({'prompt': 'p', 'completion': 'a', 'label': False}, 'sft', 'undesirable'),
    ({'messages': [USER, BAD], 'label': False}, 'sft', 'undesirable'),
    ({'messages': [USER, BAD], 'label': 'bad'}, 'sft', 'wrong_type'),
    ({'messages': [USER, BAD]}, 'kto', 'missing_field'),
    ({'text': 'a', 'label': False}, 'sft', 'undesirable'),
  ],
)
def test_unusable(row, kind, reason):
  with pytest.raises(errors.RowError) as e:
    parse(row, kind)
  assert e.value.reason == reason


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'completions': ['a', '', 'c']}, 'empty_completion'),
    ({'completions': ['a', 'a', 'c']}, 'identical_completions'),
    ({'completions': ['a', 3, 'c']}, 'wrong_type'),
    ({'completions': ['a', '\ud800', 'c']}, 'bad_unicode'),
    ({'completions': [[GOOD], [USER], [BAD]]}, 'bad_messages'),
  ],
)
def test_an_unusable_answer_takes_its_own_pairs(change, reason):
  """The first two are tied: they have no pair with the third in common."""
  row = group(preferences=[[0, 1], [0, 2]]) | change
  record = parse(row)
  assert len(record.completions) == 2 and record.examples == ((0, 1),)
  (lost,) = record.lost
  assert (lost.reason, lost.weight) == (reason, 0.5)
  assert (lost.file, lost.row) == ('f.jsonl', 7)
  with pytest.raises(errors.RowError) as e:
    parse(row | {'preferences': [[0, 1]]})
  assert e.value.reason == reason


@pytest.mark.parametrize('label', [True, False])
def test_labels_of_conversations(label):
  record = parse({'messages': [USER, BAD], 'label': label}, 'kto')
  assert record.labels == (label,) and record.completions == (' Go away.',)
  # That of a data set of classes is a number.
  assert parse({'text': 'a', 'label': 0}, 'sft').labels is None


def test_labels_close_up_over_what_is_lost():
  """Answers that are both good and bad are neither."""
  row = {'prompt': 'p', 'completions': [*'abcb'], 'scores': [3, 2, 1, 0]}
  record = parse(row, 'kto')
  assert record.completions == ('a', 'c') and record.labels == (True, False)
  assert record.differ == ((0, 1),) and len(record.lost) == 2
  assert sum(x.weight for x in record.lost) == 0.5


def test_unknown_kind_names_the_closest():
  with pytest.raises(ValueError, match="Did you mean 'ranking'"):
    parse(PAIR, 'rankings')


@pytest.mark.parametrize(
  ('row', 'context'),
  [
    ({'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}, [USER]),
    ({'prompt': [USER], 'chosen': 'Hello!', 'rejected': 'Go away.'}, [USER]),
    ({'prompt': 'Hi.', 'chosen': [GOOD], 'rejected': [BAD]}, [USER]),
    ({'chosen': [USER, GOOD], 'rejected': [USER, BAD]}, [USER]),
    # Completions that repeat the prompt, as text or as messages.
    (
      {'prompt': 'Hi.', 'chosen': [USER, GOOD], 'rejected': [USER, BAD]},
      [USER],
    ),
    (
      {
        'prompt': 'Hi.',
        'chosen': [SYSTEM, USER, GOOD],
        'rejected': [SYSTEM, USER, BAD],
      },
      [SYSTEM, USER],
    ),
    (
      {
        'prompt': [SYSTEM, USER],
        'chosen': [SYSTEM, USER, GOOD],
        'rejected': [SYSTEM, USER, BAD],
      },
      [SYSTEM, USER],
    ),
    # Completions that go on from it: the last answer counts.
    (
      {
        'prompt': [USER],
        'chosen': [BAD, MORE, GOOD],
        'rejected': [BAD, MORE, BAD],
      },
      [USER, BAD, MORE],
    ),
  ],
)
def test_messages(row, context):
  record = parse(row)
  assert record.prompt == render(context)
  assert record.completions == (' Hello!', ' Go away.')
  assert record.rendered and record.scored is None


def test_messages_for_sft():
  row = {'messages': [USER, BAD, MORE, GOOD]}
  record = parse(row, 'sft')
  assert record.prompt == render([USER, BAD, MORE])
  assert record.completions == (' Hello!',)


def test_parts_of_a_content_are_joined():
  parts = [{'type': 'text', 'text': t} for t in ('Hel', 'lo!')]
  row = {'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}
  assert parse(row | {'chosen': [GOOD | {'content': parts}]}) == parse(row)
  image = {'type': 'image', 'image': 'x.png'}
  for bad in (image, 'text', {'type': 'text'}):
    with pytest.raises(errors.RowError, match='no part of a text') as e:
      parse(row | {'prompt': [USER | {'content': [*parts, bad]}]})
    assert e.value.reason == 'bad_messages'


def test_nulls_of_a_message_are_fields_that_are_not_there():
  """All messages of a Parquet file have all its fields."""
  seen = []

  class Listening(Chat):
    def apply_chat(self, messages, **options):
      seen.extend(messages)
      return super().apply_chat(messages, **options)

  nothing = {'tool_calls': None, 'name': None}
  row = {'messages': [USER | nothing, GOOD | nothing]}
  render = rendering.Render(Listening())
  assert records.parse(row, kind='sft', render=render).completions
  assert seen and all(m in (USER, GOOD) for m in seen)


def test_tools_go_to_the_template():
  call = {'role': 'assistant', 'tool_calls': ['look'], 'content': None}
  row = {'messages': [USER, call], 'tools': ['look', 'ask']}
  record = parse(row, 'sft')
  assert record.prompt == '(look)(ask)' + render([USER])
  assert record.completions == (' look',)
  assert parse(row | {'tools': '["look", "ask"]'}, 'sft') == record
  assert parse(row | {'tools': None}, 'sft').prompt == render([USER])
  for bad in ('[', 3):
    with pytest.raises(errors.RowError, match='tools are'):
      parse(row | {'tools': bad}, 'sft')


def test_every_answer_of_a_conversation():
  long = {'role': 'assistant', 'content': ' so\nlong '}
  record = parse({'messages': [SYSTEM, USER, BAD, MORE, long]}, 'sft', 'all')
  assert record.prompt == render([SYSTEM, USER])
  (text,) = record.completions
  assert text == ' Go away.|\n<user>And you?|\n<assistant> so\nlong'
  said = [text[begin:end] for begin, end in record.scored]
  assert said == [' Go away.|', ' so\nlong']
  # One answer is the same either way.
  row = {'messages': [USER, GOOD]}
  single, last = parse(row, 'sft', 'all'), parse(row, 'sft')
  assert single.scored == ((0, 7),)
  assert (single.prompt, single.completions) == (last.prompt, last.completions)


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'prompt': []}, 'bad_messages'),
    ({'prompt': [USER, BAD]}, 'bad_messages'),
    ({'prompt': ['Hi.']}, 'bad_messages'),
    ({'prompt': [{'role': 'user'}]}, 'bad_messages'),
    ({'prompt': [{'role': 'user', 'content': None}]}, 'bad_messages'),
    ({'prompt': USER}, 'wrong_type'),
    ({'prompt': None}, 'missing_field'),
    ({'chosen': []}, 'bad_messages'),
    ({'chosen': [MORE]}, 'bad_messages'),
    ({'chosen': [GOOD, MORE]}, 'bad_messages'),
    ({'rejected': [BAD, MORE, BAD]}, 'different_context'),
    ({'rejected': 'Go away.'}, 'wrong_type'),
    ({'rejected': [GOOD]}, 'identical_completions'),
    ({'rejected': [GOOD | {'content': 'Hello! '}]}, 'identical_completions'),
    ({'rejected': [GOOD | {'content': ''}]}, 'empty_completion'),
    ({'chosen': [MORE, GOOD], 'rejected': [MORE, BAD]}, 'prompt_mismatch'),
    (
      {'prompt': [{'role': 'user', 'content': 'unrenderable'}]},
      'chat_template',
    ),
  ],
)
def test_unusable_messages(change, reason):
  row = {'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}
  assert parse(row)
  with pytest.raises(errors.RowError) as e:
    parse(row | change)
  assert e.value.reason == reason


def report_of(read, reasons):
  report = drop_report.DropReport(read=read)
  for i, reason in enumerate(reasons):
    report.add(errors.RowError(reason, f'detail {i}', 'f.jsonl', i + 1))
  return report


def test_report_names_reasons_and_first_rows():
  report = report_of(100, ['too_long'] * 5 + ['bad_utf8'])
  assert (report.read, report.kept, report.dropped) == (100, 94, 6)
  table = report.table()
  assert '100 rows read, 94 kept, 6 dropped' in table
  assert 'f.jsonl:3: detail 2' in table and 'f.jsonl:6: detail 5' in table
  assert 'f.jsonl:4' not in table
  assert drop_report.DropReport.from_json(report.to_json()) == report


def test_report_checks_the_share():
  report = report_of(100, ['too_long'] * 6)
  report.check(0.06)
  with pytest.raises(ValueError, match=r'6.00% .*(.|\n)*f.jsonl:1: detail 0'):
    report.check(0.059)
  with pytest.raises(ValueError, match='No row of the data is usable'):
    report_of(2, ['too_long'] * 2).check(1.0)
  with pytest.raises(ValueError, match='no rows'):
    report_of(0, []).check(1.0)
  with pytest.raises(ValueError, match='in \\[0, 1\\]'):
    report.check(5)


def test_a_few_bad_rows_stop_no_run():
  report_of(8, ['too_long'] * drop_report.FEW).check(0.01)
  with pytest.raises(ValueError, match=r'62.50%'):
    report_of(8, ['too_long'] * drop_report.FEW).check(0)
  with pytest.raises(ValueError, match=r'75.00%'):
    report_of(8, ['too_long'] * 6).check(0.01)


def test_the_share_is_of_both_splits():
  report = report_of(20, ['too_long'] * 6)
  report.other_split = 580
  report.check(0.01)
  with pytest.raises(ValueError, match=r'1.00% .*=0.009 allows'):
    report.check(0.009)
