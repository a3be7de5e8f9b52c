"""kind='prompts' reads the prompt of any row, and nothing is trained on it."""

import pytest

from dpo_jax import data
from dpo_jax.data.sources import rows as source_rows

ROWS = [
  {'prompt': 'one'},
  {'prompt': 'two', 'completion': ' good'},
  {'prompt': 'three', 'chosen': ' good', 'rejected': ' bad'},
  {'prompt': 'four', 'completions': [' a', ' b'], 'scores': [1, 1]},
  {'prompt': 'one', 'label': None},
]


def _texts(tokens, tokenizer):
  return [
    tokenizer.decode(tokens.prompt(i).tolist()).removeprefix('<s>')
    for i in range(len(tokens))
  ]


def test_the_prompt_of_any_row(load, make_tokenizer):
  tokens = load(ROWS, kind='prompts')
  wanted = ['one', 'two', 'three', 'four', 'one']
  assert _texts(tokens, make_tokenizer()) == wanted
  assert (tokens.kind, tokens.arity) == ('prompts', 1)


@pytest.mark.parametrize(
  'more',
  [
    {},
    {'id': 3},
    {'label': True},
    {'completions': [' a']},
    {'completion': ' a'},
  ],
)
def test_splits_are_by_prompt(load, make_tokenizer, more):
  rows = [{'prompt': f'p{i}'} | more for i in range(40)]
  parts = [
    _texts(
      load(rows, kind='prompts', split=split, held_out_fraction=0.5),
      make_tokenizer(),
    )
    for split in ('train', 'test')
  ]
  found = {text for part in parts for text in part}
  assert found == {row['prompt'] for row in rows}
  assert sum(map(len, parts)) == 40
  assert all(parts)


def test_a_question_without_an_answer_is_split_as_one_with_it():
  system = {'role': 'system', 'content': 'Be brief.'}
  asked = [system, {'role': 'user', 'content': 'Who?'}]
  answer = {'role': 'assistant', 'content': 'Me.'}
  found = {
    source_rows.prompt_of(row, 'prompts')
    for row in ({'messages': asked}, {'messages': [*asked, answer]})
  }
  assert found == {source_rows.prompt_of({'messages': [*asked, answer]}, 'sft')}
  assert 'Who?' in found.pop()


def test_a_prompt_is_bounded_by_itself(load):
  """However short what stands for its completion is."""
  row = {'prompt': 'abcdefgh' * 3}
  ids = load([row], kind='prompts').prompt(0).tolist()
  assert len(ids) > 6
  wanted = {'keep_start': ids[:3], 'keep_end': [ids[0], *ids[-2:]]}
  for truncation, kept in wanted.items():
    options = dict(max_prompt_length=3, truncation=truncation)
    assert load([row], kind='prompts', **options).prompt(0).tolist() == kept
  with pytest.raises(ValueError, match='max_prompt_length=3'):
    load([row], kind='prompts', max_prompt_length=3, truncation='drop')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'prompt': 'a \ud800 b'}, 'lone surrogate'),
    ({'text': 'whole'}, 'no prompt'),
    ({'prompt': 3}, 'prompt is text or messages'),
  ],
)
def test_rows_without_a_prompt(load, row, message):
  with pytest.raises(ValueError, match=message):
    load([row], kind='prompts')


def test_nothing_is_trained_on_prompts(load):
  tokens = load(ROWS, kind='prompts')
  with pytest.raises(ValueError, match=r"f\.jsonl:1: kind='prompts' has no"):
    data.check_fits(tokens, arity=1, vocab_size=10**6, max_positions=10**6)
