"""The tokenisation contract, against a plain second writing of it."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpo_jax.data import drops, records, store, tokenise

PIECES = ['a', ' b', ' movie', ' review', 'é', '\n', ' 漢', '</s>', '<s>']
# Most texts hold no control token: few records would be kept otherwise.
plain = st.lists(st.sampled_from(PIECES[:-2]), max_size=12).map(''.join)
text = st.one_of(plain, plain, plain, st.sampled_from([*PIECES, '<s>a']))


@st.composite
def make_record(draw, arity):
  completions = tuple(
    draw(st.lists(text, min_size=arity, max_size=3 if arity > 1 else 1))
  )
  index = st.permutations(range(len(completions))).map(lambda p: p[:arity])
  examples = draw(st.lists(index.map(tuple), min_size=1, max_size=3))
  n = len(completions)
  labels = st.lists(st.booleans(), min_size=n, max_size=n).map(tuple)
  two = st.permutations(range(n)).map(lambda p: tuple(p[:2]))
  return records.Record(
    prompt=draw(text),
    completions=completions,
    examples=tuple(examples),
    labels=draw(st.none() | labels),
    differ=draw(st.none() | st.lists(two, max_size=2).map(tuple)),
    file=draw(st.sampled_from(['a.jsonl', 'b.jsonl'])),
    row=draw(st.integers(1, 10**10)),
    rendered=draw(st.booleans()),
  )


@st.composite
def make_settings(draw):
  max_length = draw(st.integers(2, 24))
  truncation = draw(st.sampled_from(['keep_end', 'keep_start', 'drop']))
  limit = st.integers(1, max_length - 1)
  if truncation == 'drop':
    limit = st.none() | limit
  return {
    'max_length': max_length,
    'max_prompt_length': draw(limit),
    'truncation': truncation,
    'bos': draw(st.sampled_from(['auto', 'never', 'always'])),
  }


def expected(record, tokenizer, max_length, max_prompt_length, truncation, bos):
  """(prompt, completions) of one record, or the reason why it is dropped."""
  begin, end = tokenizer.bos_id, tokenizer.eos_id
  body = tokenizer.encode(record.prompt)
  answers = [tokenizer.encode(c) for c in record.completions]
  if end is not None and end in body and not record.rendered:
    return 'eos_in_prompt'
  for answer in answers:
    if answer == []:
      return 'empty_completion'
    if end is not None and answer.count(end):
      return 'eos_in_completion'
    if begin is not None and answer.count(begin):
      return 'bos_in_completion'
  adds = bos == 'always' or (bos == 'auto' and tokenizer.add_bos)
  head = []
  if adds:
    head = [begin]
    if body[:1] == [begin]:
      body = body[1:]
  elif not body:
    choices = [end] if bos == 'never' else [begin, end]
    head = [c for c in choices if c is not None][:1]
  tail = [end] if end is not None else []
  longest = max(len(answer + tail) for answer in answers)
  if len(head + body) + longest > max_length:
    if truncation == 'drop':
      return 'too_long'
    keep = max(0, max_prompt_length - len(head))
    while len(body) > keep:
      body = body[1:] if truncation == 'keep_end' else body[:-1]
    room = max_length - len(head + body)
    answers = [
      answer + tail if len(answer + tail) <= room else answer[:room]
      for answer in answers
    ]
  else:
    limit = max_prompt_length or max_length
    if truncation == 'drop' and len(head + body) > limit:
      return 'prompt_too_long'
    answers = [answer + tail for answer in answers]
  if not head + body and min(map(len, answers)) == 1:
    return 'nothing_to_score'
  groups = record.examples if record.differ is None else record.differ
  for group in groups:
    for i, j in itertools.combinations(group, 2):
      if answers[i] == answers[j]:
        return 'identical_tokens'
  return head + body, answers


@pytest.mark.parametrize('arity', [1, 2, 3])
@hypothesis.settings(
  max_examples=300,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_contract(arity, make_tokenizer, data):
  tokenizer = make_tokenizer(*data.draw(st.tuples(*[st.booleans()] * 3)))
  settings = data.draw(make_settings())
  items = data.draw(st.lists(make_record(arity), min_size=1, max_size=6))
  adds = settings['bos'] == 'always' or (
    settings['bos'] == 'auto' and tokenizer.add_bos
  )
  if adds and tokenizer.bos_id is None:
    with pytest.raises(ValueError, match="Use bos='never'"):
      tokenise.contract(tokenizer, **settings)
    return
  rules = tokenise.contract(tokenizer, **settings)
  tokens, report = tokenise.tokenise(items, tokenizer, rules)

  wanted = [expected(item, tokenizer, **settings) for item in items]
  kept = [(r, w) for r, w in zip(items, wanted) if not isinstance(w, str)]
  reasons = [w for w in wanted if isinstance(w, str)]
  assert sorted(report.counts.elements()) == sorted(reasons)
  assert (report.read, report.kept) == (len(items), len(kept))
  assert len(tokens) == len(kept)
  for i, (record, (prompt, completions)) in enumerate(kept):
    assert tokens.prompt(i).tolist() == prompt
    assert [c.tolist() for c in tokens.completions(i)] == completions
    assert len(prompt) + max(map(len, completions)) <= settings['max_length']
    assert tokens.examples(i).tolist() == [list(e) for e in record.examples]
    labels = record.labels or [np.nan] * len(completions)
    np.testing.assert_array_equal(tokens.labels_of(i), labels)
    assert tokens.where(i) == f'{record.file}:{record.row}'
    assert tokens.prompt_length(i) == tokens.prompt_lengths[i] == len(prompt)
    assert tokens.completion_lengths(i).tolist() == list(map(len, completions))
    assert tokens.completion_counts[i] == len(completions)
    assert tokens.example_counts[i] == len(record.examples)
    assert tokens.tree_lengths[i] == len(prompt) + sum(map(len, completions))
  if kept:
    assert tokens.arity == arity


def run(items, tokenizer, **settings):
  settings = {'max_length': 64, 'max_prompt_length': 32} | settings
  rules = tokenise.contract(tokenizer, **settings)
  return tokenise.tokenise(items, tokenizer, rules)


def pair(prompt='a', chosen=' b', rejected=' c', **fields):
  return records.Record(prompt, (chosen, rejected), ((0, 1),), **fields)


def test_text_is_not_changed_by_joining(make_tokenizer):
  tokenizer = make_tokenizer(add_bos=True)
  tokens, _ = run([pair('a movie', ' review', 'review')], tokenizer)
  prompt, (chosen, rejected) = tokens.prompt(0), tokens.completions(0)
  joined = [tokenizer.decode([*prompt, *c]) for c in (chosen, rejected)]
  assert joined == ['<s>a movie review</s>', '<s>a moviereview</s>']


def test_many_chunks_keep_their_order(make_tokenizer, monkeypatch):
  monkeypatch.setattr(tokenise, 'CHUNK', 3)
  items = [pair(f'{i}', row=i, file='f') for i in range(1, 11)]
  items[4] = drops.RowError('bad_utf8', 'detail', 'f', 5)
  items[8] = pair(chosen='</s>', row=9, file='f')
  tokenizer = make_tokenizer()
  tokens, report = run(items, tokenizer)
  rows = [1, 2, 3, 4, 6, 7, 8, 10]
  assert [tokens.where(i) for i in range(8)] == [f'f:{r}' for r in rows]
  assert [tokenizer.decode(tokens.prompt(i)) for i in range(8)] == [
    str(r) for r in rows
  ]
  assert report.examples['bad_utf8'] == ['f:5: detail']
  assert report.examples['eos_in_completion'][0].startswith('f:9: ')


def test_types_and_fingerprint(make_tokenizer):
  tokens, _ = run([pair(), pair('x')], make_tokenizer())
  types = [getattr(tokens, name).dtype for name in store.ARRAYS]
  assert types == [
    *(np.int32, np.int64, np.int64, np.int32, np.int64),
    *(np.float32, np.int32, np.int64),
  ]
  same, _ = run([pair(row=5), pair('x', file='g')], make_tokenizer())
  assert same.fingerprint() == tokens.fingerprint()
  others = [pair('x', labels=x) for x in ((True, False), (False, True))]
  for other in (pair('y'), *others, pair('x', ' b', ' d')):
    changed, _ = run([pair(), other], make_tokenizer())
    assert changed.fingerprint() != tokens.fingerprint()
  swapped = records.Record('x', (' b', ' c'), ((1, 0),))
  changed, _ = run([pair(), swapped], make_tokenizer())
  assert changed.fingerprint() != tokens.fingerprint()


def test_arity_is_constant(make_tokenizer):
  single = records.Record('a', (' b',), ((0,),), file='g', row=2)
  with pytest.raises(ValueError, match=r'g:2 compares 1 .* f:1 compares 2'):
    run([pair(file='f', row=1), single], make_tokenizer())


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'truncation': 'keep_ends'}, "Did you mean 'keep_end'"),
    ({'bos': 'none'}, 'bos rule'),
    ({'max_length': 1}, 'max_length=1'),
    ({'max_prompt_length': None}, 'needs max_prompt_length'),
    ({'max_prompt_length': 0}, 'max_prompt_length=0'),
    ({'max_prompt_length': 64}, 'less than max_length=64'),
    ({'bos': 'always', 'tokenizer': (False,)}, 'the tokenizer has none'),
  ],
)
def test_wrong_settings(make_tokenizer, settings, message):
  tokenizer = make_tokenizer(*settings.pop('tokenizer', ()))
  with pytest.raises(ValueError, match=message):
    run([pair()], tokenizer, **settings)
