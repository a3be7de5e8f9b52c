"""kind='prompts' reads the prompt of any row, and nothing is trained on it."""

import pytest

from dpo_jax import data

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
  assert tokens.completion_lengths(0).tolist() == [2]  # With EOS.


def test_splits_are_by_prompt(load, make_tokenizer):
  rows = [{'prompt': f'p{i}'} for i in range(40)]
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


@pytest.mark.parametrize(
  ('row', 'message'),
  [({'text': 'whole'}, 'no prompt'), ({'prompt': 3}, 'prompt')],
)
def test_rows_without_a_prompt(load, row, message):
  with pytest.raises(ValueError, match=message):
    load([row], kind='prompts')


def test_nothing_is_trained_on_prompts(load):
  tokens = load(ROWS, kind='prompts')
  with pytest.raises(ValueError, match=r"f\.jsonl:1: kind='prompts' has no"):
    data.check_fits(tokens, arity=1, vocab_size=10**6, max_positions=10**6)
