"""The rules of tokens, against a plain second implementation."""

import collections
import itertools
import re

import hypothesis
import numpy as np
import pytest
import tokenizers as hf
from hypothesis import strategies as st

from dpo_jax import types
from dpo_jax.chat import errors
from dpo_jax.data import records, store, token_rules, tokenise
from dpo_jax.data.sources import rows

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
  # Every completion is in an example.
  examples += [(*range(c, n), *range(c))[:arity] for c in range(n)][
    : n * (len(set().union(*examples)) < n)
  ]
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
    weight=draw(st.integers(1, 3)),
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
    'control_tokens': draw(st.sampled_from(['text', 'drop', 'tokens'])),
  }


def characters(text, tokenizer):
  """(ids of a text whose control tokens are characters, whether it has any)."""
  backend = hf.Tokenizer.from_str(tokenizer.backend.to_str())
  backend.encode_special_tokens = True
  parts = re.split('(</?s>)', text)
  ids = [backend.encode(part, add_special_tokens=False).ids for part in parts]
  return list(itertools.chain(*ids)), len(parts) > 1


def expected(
  record,
  tokenizer,
  max_length,
  max_prompt_length,
  truncation,
  bos,
  control_tokens,
):
  """(prompt, {completion: ids}, examples, {example: reason}) of one record.

  Or the reason why all of it is dropped, in place of the first three.
  """
  begin, end = tokenizer.bos_id, tokenizer.eos_id
  body = tokenizer.encode(record.prompt)
  answers = [tokenizer.encode(c) for c in record.completions]
  if not record.rendered and control_tokens != 'tokens':
    body, found = characters(record.prompt, tokenizer)
    if found and control_tokens == 'drop':
      return 'control_tokens', {}
  left, lost = list(range(len(record.examples))), {}

  def drop(reason_of):
    """The reason to drop the whole record, if nothing is left."""
    bad = {
      e: reason_of(min(c for c in record.examples[e] if reason_of(c)))
      for e in left
      if any(reason_of(c) for c in record.examples[e])
    }
    left[:] = [e for e in left if e not in bad]
    if not left:
      return bad[min(bad)]
    lost.update(bad)
    return None

  def in_text(c):
    if answers[c] == []:
      return 'empty_completion'
    if end is not None and answers[c].count(end):
      return 'eos_in_completion'
    if begin is not None and answers[c].count(begin):
      return 'bos_in_completion'
    return None

  if reason := drop(in_text):
    return reason, {}
  adds = bos == 'always' or (bos == 'auto' and tokenizer.add_bos)
  head = []
  if adds:
    head = [begin]
    if body[:1] == [begin]:
      body = body[1:]
  elif record.rendered and begin is not None and body[:1] == [begin]:
    head, body = [begin], body[1:]
  elif not body:
    choices = [end] if bos == 'never' else [begin, end]
    head = [c for c in choices if c is not None][:1]
  tail = [end] if end is not None else []
  answers = [answer + tail for answer in answers]
  used = {c for e in left for c in record.examples[e]}
  longest = max(len(answers[c]) for c in used)
  if truncation == 'drop':
    room = max_length - len(head + body)
    if reason := drop(lambda c: 'too_long' * (len(answers[c]) > room)):
      return reason, {}
    if len(head + body) > (max_prompt_length or max_length):
      return 'prompt_too_long', {}
  elif len(head + body) + longest > max_length:
    keep = max(0, max_prompt_length - len(head))
    while len(body) > keep:
      body = body[1:] if truncation == 'keep_end' else body[:-1]
    room = max_length - len(head + body)
    answers = [answer[:room] for answer in answers]
  alone = {c for c, ids in enumerate(answers) if len(ids) == 1}
  alone = alone if not head + body else set()
  if reason := drop(lambda c: 'nothing_to_score' * (c in alone)):
    return reason, {}
  used = {c for e in left for c in record.examples[e]}
  if record.differ is None:
    ties = [g for e, g in enumerate(record.examples) if e in left]
  else:
    ties = [g for g in record.differ if used >= set(g)]
  tied = [
    {i, j}
    for g in ties
    for i, j in itertools.combinations(g, 2)
    if answers[i] == answers[j]
  ]
  bad = {
    e: 'identical_tokens'
    for e in left
    for pair in tied
    if (pair <= set(record.examples[e]))
    or (record.differ is not None and pair & set(record.examples[e]))
  }
  if len(bad) == len(left):
    return 'identical_tokens', {}
  lost.update(bad)
  kept = [x for e, x in enumerate(record.examples) if e not in lost]
  used = sorted({c for x in kept for c in x})
  return (head + body, {c: answers[c] for c in used}, kept), lost


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
      token_rules.resolve(tokenizer, **settings)
    return
  rules = token_rules.resolve(tokenizer, **settings)
  tokens, report = tokenise.tokenise(items, tokenizer, rules)

  wanted = [expected(item, tokenizer, **settings) for item in items]
  kept = [(r, w) for r, (w, _) in zip(items, wanted) if not isinstance(w, str)]
  counts = collections.Counter()
  for record, (whole, lost) in zip(items, wanted):
    if isinstance(whole, str):
      counts[whole] += record.weight
    for reason in lost.values():
      counts[reason] += record.weight / len(record.examples)
  assert report.counts == pytest.approx(counts)
  assert report.read == sum(item.weight for item in items)
  assert report.kept == pytest.approx(report.read - counts.total(), abs=1e-5)
  assert len(tokens) == len(kept)
  for i, (record, (prompt, completions, examples)) in enumerate(kept):
    assert tokens.prompt(i).tolist() == prompt
    found = [c.tolist() for c in tokens.completions(i)]
    assert found == list(completions.values())
    assert len(prompt) + max(map(len, found)) <= settings['max_length']
    place = list(completions).index
    named = [[place(c) for c in example] for example in examples]
    assert tokens.examples(i).tolist() == named
    labels = record.labels or [types.NO_LABEL] * len(record.completions)
    labels = [labels[c] for c in completions]
    np.testing.assert_array_equal(tokens.labels_of(i), labels)
    assert tokens.where(i) == f'{record.file}:{record.row}'
    assert tokens.prompt_length(i) == tokens.prompt_lengths[i] == len(prompt)
    assert tokens.completion_lengths(i).tolist() == list(map(len, found))
    assert tokens.completion_counts[i] == len(completions)
    assert tokens.example_counts[i] == len(examples)
  if kept:
    assert tokens.arity == arity


def run(items, tokenizer, **settings):
  settings = {'max_length': 64, 'max_prompt_length': 32} | settings
  rules = token_rules.resolve(tokenizer, **settings)
  return tokenise.tokenise(items, tokenizer, rules)


def pair(prompt='a', chosen=' b', rejected=' c', **fields):
  return records.Record(prompt, (chosen, rejected), ((0, 1),), **fields)


def test_text_is_not_changed_by_joining(make_tokenizer):
  tokenizer = make_tokenizer(add_bos=True)
  tokens, _ = run([pair('a movie', ' review', 'review')], tokenizer)
  prompt, (chosen, rejected) = tokens.prompt(0), tokens.completions(0)
  joined = [tokenizer.decode([*prompt, *c]) for c in (chosen, rejected)]
  assert joined == ['<s>a movie review</s>', '<s>a moviereview</s>']


def test_a_cut_prompt_keeps_the_bos_that_a_template_wrote(make_tokenizer):
  tokenizer = make_tokenizer(add_bos=False)
  record = pair('<s>' + 'abcdefgh', rendered=True)
  settings = dict(max_length=9, max_prompt_length=6)
  tokens, _ = run([record], tokenizer, **settings)
  assert tokenizer.decode(tokens.prompt(0).tolist()) == '<s>defgh'
  settings['truncation'] = 'keep_start'
  tokens, _ = run([record], tokenizer, **settings)
  assert tokenizer.decode(tokens.prompt(0).tolist()) == '<s>abcde'


def test_many_chunks_keep_their_order(make_tokenizer, monkeypatch):
  monkeypatch.setattr(tokenise, 'CHUNK', 3)
  items = [pair(f'{i}', row=i, file='f') for i in range(1, 11)]
  items[4] = errors.RowError('bad_utf8', 'detail', 'f', 5)
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


def test_a_bad_answer_takes_its_own_pairs_alone(make_tokenizer):
  """A merged row has a weight; what is lost of it is counted in rows."""
  answers = (' b', ' c</s>', '', ' d', ' b')
  pairs = ((0, 1), (0, 2), (0, 3), (3, 4), (4, 0))
  merged = records.Record('a', answers, pairs, file='f', row=4, weight=5)
  bad = records.Record('a', answers[1:3], ((0, 1),), file='f', row=9)
  tokens, report = run([merged, bad, pair('x')], make_tokenizer())
  assert tokens.examples(0).tolist() == [[0, 1], [1, 2]]
  assert len(tokens.completions(0)) == 3 and len(tokens) == 2
  assert (report.read, report.dropped, report.kept) == (7, 4, 3)
  assert report.counts == {
    'eos_in_completion': 2,
    'empty_completion': 1,
    'identical_tokens': 1,
  }
  where = [x.split(': ')[0] for x in report.examples['eos_in_completion']]
  assert where == ['f:4', 'f:9']
  with pytest.raises(ValueError, match=r'57\.14% of the rows were dropped'):
    report.check(0)


def test_reports_of_merged_rows_count_the_rows_of_the_data(make_tokenizer):
  said = [('a', ' b'), (' c', ' d'), (' c</s>', ' b'), (' d', ' d'), ('', 'a')]
  given = [
    rows.Row({'prompt': 'p', 'chosen': x, 'rejected': y}, 'f', i)
    for i, (x, y) in enumerate(said, start=1)
  ]
  items = rows.parse(rows.merge_prompts(iter(given)), 'pairs', render=None)
  tokens, report = run(items, make_tokenizer())
  assert tokens.examples(0).tolist() == [[0, 1], [2, 3]]
  assert (report.read, report.kept) == (5, 2)
  assert report.counts == {
    'eos_in_completion': 1,
    'identical_completions': 1,
    'empty_completion': 1,
  }
  # All of a prompt's rows, where nothing is left of them.
  items = rows.parse(rows.merge_prompts(iter(given[2:3] * 3)), 'pairs', None)
  _, report = run(items, make_tokenizer())
  assert (report.read, report.kept) == (3, 0)


def test_types_and_fingerprint(make_tokenizer):
  tokens, _ = run([pair(), pair('x')], make_tokenizer())
  types = [getattr(tokens, name).dtype for name in store.ARRAYS]
  assert types == [
    *(np.int32, np.int64, np.int64, np.int32, np.int64),
    *(np.float32, np.bool_, np.int32, np.int64),
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
