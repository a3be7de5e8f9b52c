"""Corrected tokens: by diff and by spans, truncated, cached, and in a batch."""

import difflib
import itertools
import json

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from dpo_jax import data
from dpo_jax.chat import errors, rendering
from dpo_jax.data import batches, corrections, records, token_rules, tokenise
from dpo_jax.tokenizers import loading
from tests import templates

TEXTS = ['a movie', ' review', 'é', ' 漢字', ' 🙂', '\n', ' ', ' the plot']
text = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8).map(''.join)


def pair(chosen=' b', rejected=' c', spans=None, **fields):
  fields = {'file': 'f', 'row': 3} | fields
  return records.Record(
    'a', (chosen, rejected), ((0, 1),), spans=spans, **fields
  )


def marks_of(name, tokenizer, record, **settings):
  """[(id, its mark)] of each completion, and the drop report."""
  settings = {'max_length': 99, 'max_prompt_length': 9} | settings
  rules = token_rules.resolve(tokenizer, **settings)
  mark = corrections.CORRECTIONS[name](tokenizer)
  tokens, report = tokenise.tokenise([record], tokenizer, rules, mark)
  corrected = tokens.extras['corrected']
  assert corrected.dtype == np.float32
  assert corrected.shape == tokens.tokens.shape
  if not len(tokens):
    return None, report
  prompt = corrected[: tokens.prompt_length(0)]
  assert not prompt.any()
  found = [
    list(zip(tokens.tokens[span].tolist(), corrected[span].tolist()))
    for span in tokens.completion_spans(0)
  ]
  return found, report


@hypothesis.given(a=text, b=text)
@hypothesis.settings(
  max_examples=150,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_diff_leaves_what_both_have(make_tokenizer, a, b):
  hypothesis.assume(a != b)
  tokenizer = make_tokenizer()
  found, _ = marks_of('diff', tokenizer, pair(a, b))
  common = [[t for t, marked in side if not marked] for side in found]
  assert common[0] == common[1]
  assert common[0][-1] == tokenizer.eos_id
  # The longest run that both have is in it.
  sides = [[t for t, _ in side][:-1] for side in found]
  longest = max(
    k
    for i in range(len(sides[0]) + 1)
    for j in range(len(sides[1]) + 1)
    for k in range(len(sides[0]) + 1)
    if sides[0][i : i + k] == sides[1][j : j + k]
    and i + k <= len(sides[0])
    and j + k <= len(sides[1])
  )
  for side in found:
    runs = ''.join('x' if marked else '.' for _, marked in side[:-1]).split('x')
    assert max(map(len, runs)) >= longest


def test_diff_of_long_answers_has_no_junk(make_tokenizer):
  """A popular token is one like any other."""
  words = [f' the {i}' for i in range(300)]
  changed = [w if i % 50 else ' plot' for i, w in enumerate(words)]
  found, _ = marks_of(
    'diff',
    make_tokenizer(),
    pair(''.join(words), ''.join(changed)),
    max_length=2000,
  )
  ids = [[t for t, _ in side][:-1] for side in found]
  matcher = difflib.SequenceMatcher(None, *ids, autojunk=False)
  assert min(map(len, ids)) > 600
  for side, (first, last) in zip(found, ((1, 2), (3, 4))):
    wanted = np.zeros(len(side), bool)
    for op in matcher.get_opcodes():
      if op[0] != 'equal':
        wanted[op[first] : op[last]] = True
    assert [bool(m) for _, m in side] == wanted.tolist()
    assert 0 < sum(m for _, m in side) < 60


def trimming(tokenizer):
  """The same, with offsets that leave spaces out."""
  content = json.loads(tokenizer.backend.to_str())
  content['post_processor'] = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
  }
  backend = tokenizers.Tokenizer.from_str(json.dumps(content))
  return type(tokenizer)(backend, 0, 1, False)


def spans_of(length):
  cut = st.integers(0, length)
  span = st.tuples(cut, cut).map(sorted)
  return st.lists(span, max_size=3)


def touched(tokenizer, ids, text, spans):
  """Whether a byte of each token is of a character in one of the spans.

  For byte-level tokenizers: every character of a token's name is a byte.
  """
  inside = set()
  for begin, end in spans:
    inside |= set(range(len(text[:begin].encode()), len(text[:end].encode())))
  sizes = [len(tokenizer.vocabulary.id_to_token(i)) for i in ids]
  ends = np.cumsum(sizes)
  assert ends[-1] == len(text.encode())
  return [
    bool(inside & set(range(end - size, end))) for size, end in zip(sizes, ends)
  ]


@pytest.mark.parametrize('trims', [False, True])
@hypothesis.given(data=st.data(), a=text, b=text)
@hypothesis.settings(
  max_examples=150,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_spans_mark_the_tokens_they_touch(make_tokenizer, data, a, b, trims):
  hypothesis.assume(a != b)
  tokenizer = make_tokenizer()
  spans = tuple(data.draw(spans_of(len(x))) for x in (a, b))
  used = trimming(tokenizer) if trims else tokenizer
  rules = token_rules.resolve(used, max_length=99, max_prompt_length=9)
  mark = corrections.CORRECTIONS['spans'](used)
  tokens, _ = tokenise.tokenise([pair(a, b, spans)], used, rules, mark)
  for side, wanted, span in zip((a, b), spans, tokens.completion_spans(0)):
    ids = tokens.tokens[span].tolist()
    assert ids[-1] == tokenizer.eos_id
    found = tokens.extras['corrected'][span].tolist()
    assert found == [*touched(tokenizer, ids[:-1], side, wanted), 0]


@pytest.mark.download
def test_spans_of_a_real_tokenizer(smollm2_gguf):
  tokenizer = loading.load(str(smollm2_gguf))
  text = ' A  héllo 漢字 🙂 movie.\n\n  tail  '
  ids = tokenizer.encode(text)
  mark = corrections.CORRECTIONS['spans'](tokenizer)
  for span in itertools.combinations(range(len(text) + 1), 2):
    found = mark(
      pair(text, ' b', ([[*span]], [])), [ids, tokenizer.encode(' b')]
    )
    assert found[0] == touched(tokenizer, ids, text, [span])


@pytest.mark.parametrize('name', ['diff', 'spans'])
def test_what_is_cut_leaves_the_marks_of_the_rest(make_tokenizer, name):
  tokenizer = make_tokenizer()
  record = pair(' movie review film', ' movie plot', ([[6, 18]], [[6, 11]]))
  whole, _ = marks_of(name, tokenizer, record)
  marked = [[m for _, m in side] for side in whole]
  assert all(0 < sum(side) < len(side) for side in marked)
  prompt = len(tokenizer.encode('a'))
  for room in range(2, 8):
    found, _ = marks_of(
      name, tokenizer, record, max_length=prompt + room, max_prompt_length=1
    )
    if found is not None:
      assert found == [side[:room] for side in whole]


@pytest.mark.parametrize('name', ['diff', 'spans'])
def test_an_answer_of_several_pairs_is_dropped(make_tokenizer, name):
  record = records.Record(
    'a', (' b', ' c', ' d'), ((0, 1), (0, 2)), file='f', row=3
  )
  found, report = marks_of(name, make_tokenizer(), record)
  assert found is None
  assert report.examples['several_pairs'][0].startswith('f:3: 3 answers form 2')
  two = records.Record('a', (' b', ' c', ' d', ' e'), ((0, 1), (3, 2)))
  found, _ = marks_of('diff', make_tokenizer(), two)
  assert len(found) == 4


@pytest.mark.parametrize(
  ('spans', 'reason'),
  [
    (None, 'missing_field'),
    (([], None), 'missing_field'),
    (([[0, 3]], []), 'bad_span'),
    (([[-1, 1]], []), 'bad_span'),
    (([[2, 1]], []), 'bad_span'),
    (([[0]], []), 'bad_span'),
    (([[0, 1.0]], []), 'bad_span'),
    (([[False, True]], []), 'bad_span'),
    (([0, 1], []), 'bad_span'),
    (('01', []), 'bad_span'),
    (([], [[1, 9]]), 'bad_span'),
  ],
)
def test_bad_spans(make_tokenizer, spans, reason):
  assert marks_of('spans', make_tokenizer(), pair(spans=([], [[0, 2]])))[0]
  found, report = marks_of('spans', make_tokenizer(), pair(spans=spans))
  assert found is None and report.counts == {reason: 1}
  assert report.examples[reason][0].startswith('f:3: ')


class Trims(templates.Plain):
  """A template that trims answers and opens them with a space."""

  end_of_turn = loading.tokenizer.EndOfTurn('|', '', '', None)

  def apply_chat(self, messages, *, add_generation_prompt=False):
    said = ''.join(f'> {m["content"].strip()}|' for m in messages)
    return said + '>' * add_generation_prompt


def test_spans_of_a_message_are_of_its_content(make_tokenizer):
  chosen = [{'role': 'assistant', 'content': '  Hello! '}]
  rejected = [{'role': 'assistant', 'content': 'Go.'}]
  row = {
    'prompt': [{'role': 'user', 'content': 'Hi.'}],
    'chosen': chosen,
    'rejected': rejected,
    'chosen_spans': [[7, 9]],
    'rejected_spans': [[0, 3]],
  }
  render = rendering.Render(Trims())
  record = records.parse(row, kind='pairs', render=render)
  assert record.completions == (' Hello!', ' Go.')
  found, _ = marks_of('spans', make_tokenizer(), record)
  tokenizer = make_tokenizer()
  marked = [tokenizer.decode([i for i, m in side if m]) for side in found]
  assert marked == ['!', 'Go.']


@pytest.fixture
def section(tmp_path, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  rows = [
    {
      'prompt': f'a movie {i}',
      'chosen': ' the plot is great',
      'rejected': ' the plot is dull',
      'chosen_spans': [[12, 18]],
      'rejected_spans': [],
    }
    for i in range(5)
  ]
  path = tmp_path / 'pairs.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return {
    'source': 'jsonl',
    'path': str(path),
    'max_length': 64,
    'max_prompt_length': 32,
  }


def test_marks_reach_the_batch(section, make_tokenizer):
  tokenizer = make_tokenizer()
  counts = {}
  for name in (None, 'diff', 'spans'):
    # Made, then from the cache.
    for _ in range(2):
      tokens = data.load(section | {'corrections': name}, tokenizer=tokenizer)
      assert set(tokens.extras) == ({'corrected'} if name else set())
      if not name:
        continue
      (packed,) = batches.eval_batches(tokens, 1, batch_size=5)
      batch = packed[0]
      found = batch.extras_RxN['corrected']
      counts.setdefault(name, []).append(found.sum())
      text = tokenizer.decode(batch.score_token_RxN[found > 0].tolist())
      assert text == 5 * {'diff': ' great dull', 'spans': ' great'}[name]
  assert counts['diff'][0] == counts['diff'][1] > counts['spans'][0] > 0


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'corrections': 'dif'}, "Unknown corrections 'dif'.*'diff'"),
    ({'corrections': 'diff', 'kind': 'ranking'}, "belongs to kind='pairs'"),
    ({'correction': 'diff'}, "Did you mean 'corrections'"),
  ],
)
def test_wrong_options(section, make_tokenizer, change, message):
  with pytest.raises(ValueError, match=message):
    data.load(section | change, tokenizer=make_tokenizer())


def test_rows_without_spans_are_named(section, make_tokenizer):
  with open(section['path'], 'a') as f:
    f.write('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
  assert len(data.load(section, tokenizer=make_tokenizer())) == 6
  with pytest.raises(ValueError, match=r'jsonl:6: .*chosen_spans'):
    section |= {'corrections': 'spans', 'max_drop_fraction': 0}
    data.load(section, tokenizer=make_tokenizer())


def test_a_row_error_of_a_mark_has_its_row():
  with pytest.raises(errors.RowError, match='several_pairs'):
    corrections.check_one_pair_each(
      records.Record('a', ('b', 'c'), ((0, 1), (1, 0)))
    )
