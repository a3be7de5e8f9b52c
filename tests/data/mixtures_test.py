"""Mixtures: shares of the parts, order and random access, sections."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from dpo_jax import build, data, pairs, settings
from dpo_jax.data import mixtures, order, store
from dpo_jax.data import records as records_lib
from dpo_jax.methods import collection, reference


def part(sizes, name='f', label=None, extras=(), kind='pairs'):
  """Records with these numbers of examples, each a pair of its own."""
  builder = store.Builder()
  for i, n in enumerate(sizes):
    record = records_lib.Record(
      prompt='',
      completions=('',) * 2 * n,
      examples=tuple((2 * e, 2 * e + 1) for e in range(n)),
      labels=None if label is None else (label,) * 2 * n,
      file=name,
      row=i + 1,
    )
    builder.add(record, [i + 1, 7], [[c, 0] for c in range(2 * n)])
  tokens = builder.finish()
  given = {x: np.arange(len(tokens.tokens)) for x in extras}
  return dataclasses.replace(tokens, kind=kind, extras=given)


def mixed(weights=(0.5, 0.3, 0.2)):
  sizes = ([1] * 40, [3, 1, 2] * 9, [6, 1] * 3)
  names = 'abc'
  return mixtures.concatenate(
    {n: part(s, name=n) for n, s in zip(names, sizes)},
    dict(zip(names, weights)),
  )


def visited(stream, end, batch=1):
  """[(record, example)] of the first examples."""
  return [
    (record, example)
    for begin in range(0, end, batch)
    for record, examples in stream.slice(begin, min(begin + batch, end))
    for example in examples
  ]


def part_of(records, record):
  ends = np.cumsum([p.records for p in records.parts])
  return int(np.searchsorted(ends, record, side='right'))


def test_records_of_all_parts():
  parts = {'a': part([1, 2], 'x', extras='r'), 'b': part([3], 'y', extras='r')}
  both = mixtures.concatenate(parts, {'a': 1, 'b': 3})
  assert [p.share for p in both.parts] == [0.25, 0.75]
  assert [both.where(i) for i in range(3)] == ['x:1', 'x:2', 'y:1']
  place = 0
  for tokens in parts.values():
    for i in range(len(tokens)):
      assert both.prompt(place).tolist() == tokens.prompt(i).tolist()
      assert np.array_equal(both.examples(place), tokens.examples(i))
      spans = both.completion_spans(place), tokens.completion_spans(i)
      for mine, its in zip(*spans, strict=True):
        assert np.array_equal(both.tokens[mine], tokens.tokens[its])
        assert np.array_equal(both.extras['r'][mine], tokens.extras['r'][its])
      place += 1
  assert len(both) == place == 3 and both.kind == 'pairs'


def test_what_is_scored_of_parts():
  all_of, some = part([1]), part([1])
  scored = np.array([0, 0, 0, 1, 1, 1], bool)
  some = dataclasses.replace(some, scored=scored)
  both = mixtures.concatenate({'a': all_of, 'b': some}, {'a': 1, 'b': 1})
  for record, tokens in enumerate((all_of, some)):
    for c in (0, 1):
      places = both.scored_places(record, c)
      assert places.tolist() == tokens.scored_places(0, c).tolist()
  assert not both.scored[:2].any()


@pytest.mark.parametrize('weights', [(0.5, 0.3, 0.2), (1, 1, 1), (80, 1, 19)])
@pytest.mark.parametrize('seed', [0, 1])
def test_any_run_of_examples_has_its_shares(weights, seed):
  records = mixed(weights)
  stream = order.ExampleStream(records, seed=seed)
  found = [
    part_of(records, r) for r, _ in visited(stream, 3 * stream.per_epoch)
  ]
  for p, share in enumerate(np.array(weights) / sum(weights)):
    counts = np.concatenate([[0], np.cumsum(np.array(found) == p)])
    for length in (7, 50, len(found) // 2, len(found)):
      runs = counts[length:] - counts[:-length]
      # Two records of the largest size, at both ends of the run.
      assert np.abs(runs - share * length).max() <= 2 * 6


def test_no_record_comes_again_before_the_others_of_its_part():
  records = mixed()
  stream = order.ExampleStream(records, seed=3)
  turns = [
    r for r, _ in itertools.groupby(visited(stream, 2000), lambda x: x[0])
  ]
  orders = []
  for p, info in enumerate(records.parts):
    mine = [r for r in turns if part_of(records, r) == p]
    first = sum(x.records for x in records.parts[:p])
    everything = set(range(first, first + info.records))
    epochs = [
      tuple(mine[i : i + info.records])
      for i in range(0, len(mine) - info.records, info.records)
    ]
    assert len(epochs) > 3
    assert all(set(epoch) == everything for epoch in epochs)
    assert len(set(epochs)) == len(epochs)  # Shuffled anew.
    orders.append([[r - first for r in epoch] for epoch in epochs])
  # Each part has an order of its own.
  assert orders[1][0][:6] != orders[2][0]


def test_examples_of_a_record_stay_together():
  records = mixed()
  found = visited(order.ExampleStream(records, seed=0), 1000)
  for record, group in itertools.groupby(found[:-6], lambda x: x[0]):
    examples = [example for _, example in group]
    assert len(examples) == records.example_counts[record]


@pytest.mark.parametrize('weights', [(0.5, 0.3, 0.2), (0.01, 0.98, 0.01)])
def test_positions_are_independent_of_what_was_asked_before(weights):
  records = mixed(weights)
  stream = order.ExampleStream(records, seed=5)
  whole = visited(stream, 1200)
  assert visited(order.ExampleStream(records, seed=5), 1200, batch=3) == whole
  for begin in (1150, 3, 700, 701, 0, 1199):
    fresh = order.ExampleStream(records, seed=5)
    assert visited(fresh, begin + 1)[begin] == whole[begin]
    ((record, (example,)),) = fresh.slice(begin, begin + 1)
    assert (record, example) == whole[begin]


@pytest.mark.parametrize('length', [1, 7, 64])
def test_windows_do_not_matter(length, monkeypatch):
  records = mixed((0.01, 0.98, 0.01))
  whole = order.ExampleStream(records, seed=5)
  monkeypatch.setattr(order, 'MAX_WINDOW', length)
  cut = order.ExampleStream(records, seed=5)
  assert cut.per_epoch == whole.per_epoch
  assert visited(cut, 300) == visited(whole, 300)
  begin = whole.per_epoch
  assert cut.slice(begin, begin + 9) == whole.slice(begin, begin + 9)


def test_an_epoch_sees_every_record():
  for weights in ((0.5, 0.3, 0.2), (0.01, 0.98, 0.01), (3, 2, 1)):
    records = mixed(weights)
    stream = order.ExampleStream(records, seed=2)
    found = visited(stream, stream.per_epoch)
    assert {r for r, _ in found} == set(range(len(records)))
    lengths = [
      p.records
      and records.example_counts[first : first + p.records].sum() / p.share
      for p, first in zip(records.parts, (0, 40, 67))
    ]
    assert abs(stream.per_epoch - max(lengths)) <= 3 * 6


@pytest.mark.parametrize('seed', range(4))
def test_an_epoch_sees_every_record_whatever_their_sizes(seed):
  rng = np.random.default_rng(seed)
  parts = {n: part(rng.integers(1, 30, rng.integers(1, 9))) for n in 'abc'}
  weights = dict(zip('abc', rng.random(3) + 0.01))
  records = mixtures.concatenate(parts, weights)
  stream = order.ExampleStream(records, seed=seed)
  found = {r for r, _ in stream.slice(0, stream.per_epoch)}
  assert found == set(range(len(records)))
  # The last record to come may be pushed beyond the mean length.
  records = mixtures.concatenate(
    {'a': part([11]), 'b': part([18, 2, 12])}, {'a': 0.6337, 'b': 0.6658}
  )
  pushed = order.ExampleStream(records, seed=0)
  assert {r for r, _ in pushed.slice(0, pushed.per_epoch)} == {0, 1, 2, 3}
  assert pushed.per_epoch == 65 > 32 / 0.6658 * (0.6337 + 0.6658)
  assert visited(stream, 99) == visited(stream, 99, batch=7)


def test_epochs_of_a_run_see_every_record(monkeypatch):
  monkeypatch.setattr(settings, 'num_steps', lambda s, examples: examples)
  s = types.SimpleNamespace(seed=2)
  for weights in ((0.5, 0.3, 0.2), (0.01, 0.98, 0.01)):
    records = mixed(weights)
    stream = order.ExampleStream(records, seed=2)
    examples = build.num_steps(s, records)
    assert {r for r, _ in visited(stream, examples)} == set(range(len(records)))
  assert build.num_steps(s, part([1, 3])) == 4


def test_prompts_to_complete_are_of_all_parts():
  records = mixed()
  first = order.unshuffled(records)[:10]
  assert {part_of(records, i) for i in first} == {0, 1, 2}
  wanted = [records.prompt(i).tolist() for i in first]
  assert pairs.choose_prompts(records, 10) == wanted


def test_natural_weights_visit_each_once():
  sizes = ([2] * 10, [1] * 20, [5, 5])
  records = mixtures.concatenate(
    {n: part(s) for n, s in zip('abc', sizes)}, {'a': 20, 'b': 20, 'c': 10}
  )
  stream = order.ExampleStream(records, seed=0)
  assert stream.per_epoch == 50
  for epoch in range(3):
    found = stream.slice(50 * epoch, 50 * epoch + 50)
    assert sorted(r for r, _ in found) == list(range(32))


def test_one_part_is_no_mixture():
  sizes = [1, 3, 2] * 5
  plain = order.ExampleStream(part(sizes), seed=4)
  alone = mixtures.concatenate({'a': part(sizes)}, {'a': 0.1})
  assert visited(order.ExampleStream(alone, seed=4), 90) == visited(plain, 90)


def test_without_a_seed_all_are_visited_once():
  records = mixed((0.01, 0.98, 0.01))
  stream = order.ExampleStream(records, seed=None)
  assert stream.per_epoch == records.example_counts.sum()
  found = [r for r, _ in stream.slice(0, stream.per_epoch)]
  assert sorted(found) == list(range(len(records)))
  for p in range(3):
    mine = [r for r in found if part_of(records, r) == p]
    assert mine == sorted(mine)


def test_the_first_records_without_a_seed_are_of_all_parts():
  """Held-out examples are the first so many, and so are sampled prompts."""
  parts = {'a': part([1] * 300), 'b': part([1] * 100)}
  records = mixtures.concatenate(parts, {'a': 1, 'b': 9})
  stream = order.ExampleStream(records, seed=None)
  for n in (8, 40, 256):
    found = [part_of(records, r) for r, _ in stream.slice(0, n)]
    assert abs(found.count(1) - n / 4) <= 1


def test_what_a_run_visits_is_what_its_reference_scores():
  """A record that comes twice, the second time in part, is scored as whole."""
  records = mixtures.concatenate(
    {'a': part([4]), 'b': part([1] * 9)}, {'a': 0.6, 'b': 0.4}
  )
  stream = order.ExampleStream(records, seed=0)
  for n in range(1, 30):
    wanted = {}
    for record, example in visited(stream, min(n, stream.per_epoch)):
      wanted.setdefault(record, set()).update(example)
    scored = reference.singles(records, num_examples=n, seed=0)
    for record in range(len(records)):
      used = {int(c) for (c,) in scored.examples(record)}
      assert used == wanted.get(record, set())


def test_classes_are_spread_within_parts():
  parts = {
    'a': [part([1] * 10, label=True), part([1] * 20, label=False)],
    'b': [part([1] * 9, label=True), part([1] * 3, label=False)],
  }
  joined = {}
  for name, two in parts.items():
    both = mixtures.concatenate(dict(zip('xy', two)), {'x': 1, 'y': 1})
    joined[name] = dataclasses.replace(both, parts=())
  records = mixtures.concatenate(joined, {'a': 1, 'b': 1})
  found = order.ExampleStream(records, seed=0)
  labels = np.array([records.labels_of(r)[0] for r, _ in visited(found, 600)])
  # A third of one half and three quarters of the other.
  counts = np.concatenate([[0], np.cumsum(labels)])
  runs = counts[48:] - counts[:-48]
  assert np.abs(runs - 48 * (1 / 6 + 3 / 8)).max() <= 4


def test_a_record_of_two_epochs_is_in_a_batch_twice():
  records = mixtures.concatenate(
    {'a': part([1] * 4), 'b': part([2, 1])}, {'a': 1, 'b': 2}
  )
  # Else a loss that counts completions would count it once.
  found = order.ExampleStream(records, seed=3).slice(0, 8)
  assert [r for r, _ in found].count(4) == 2
  assert sum(len(examples) for _, examples in found) == 8


def test_the_order_is_pinned():
  """It decides what a resumed run sees: no version may change it."""
  records = mixtures.concatenate(
    {'a': part([1] * 4), 'b': part([2, 1])}, {'a': 1, 'b': 2}
  )
  stream = order.ExampleStream(records, seed=3)
  assert [r for r, _ in stream.slice(0, 8)] + [
    r for i in range(8, 16) for r, _ in stream.slice(i, i + 1)
  ] == PINNED


PINNED = [5, 1, 4, 2, 4, 3, 5, 0, 4, 4, 5, 3, 4, 4]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kind': 'ranking'}, "kind is 'ranking' for 'b' and 'pairs' for 'a'"),
    ({'extras': 'r'}, 'extras'),
  ],
)
def test_unlike_parts(change, message):
  parts = {'a': part([1]), 'b': part([1], **change)}
  with pytest.raises(ValueError, match=message):
    mixtures.concatenate(parts, {'a': 1, 'b': 1})


@pytest.fixture
def section(tmp_path, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  for name, count in (('few', 3), ('many', 9)):
    rows = [
      {'prompt': f'{name} {i}', 'chosen': ' good', 'rejected': ' bad'}
      for i in range(count)
    ]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / f'{name}.jsonl').write_text(lines)
  parts = {
    name: dict(source='jsonl', path=f'{tmp_path}/{name}.jsonl', weight=weight)
    for name, weight in (('many', 1), ('few', 1.0))
  }
  return dict(source='mixture', parts=parts, max_length=32, truncation='drop')


def test_load(section, make_tokenizer):
  tokenizer = make_tokenizer()
  tokens = data.load(section, tokenizer=tokenizer)
  assert [(p.records, p.share) for p in tokens.parts] == [(3, 0.5), (9, 0.5)]
  assert tokenizer.decode(tokens.prompt(2).tolist()) == 'few 2'
  assert tokenizer.decode(tokens.prompt(3).tolist()) == 'many 0'
  section['parts']['few']['max_length'] = 2
  with pytest.raises(ValueError, match='too_long'):
    data.load(section, tokenizer=tokenizer)


def test_labels_may_be_of_one_class_in_a_part(
  section, tmp_path, make_tokenizer
):
  for name, label in (('few', True), ('many', False)):
    rows = [
      {'prompt': f'{i}', 'completion': ' a', 'label': label} for i in range(4)
    ]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / f'{name}.jsonl').write_text(lines)
  section['kind'] = 'unpaired'
  tokens = data.load(section, tokenizer=make_tokenizer())
  assert sorted(tokens.labels) == [0] * 4 + [1] * 4
  del section['parts']['few']
  with pytest.raises(ValueError, match='needs some of both'):
    data.load(section, tokenizer=make_tokenizer())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'parts': None}, 'needs parts=dict'),
    ({'parts': {}}, 'needs parts=dict'),
    ({'parts': {'few': 'a.jsonl'}}, "'few' of the mixture is no section"),
    ({'splits': 'train'}, "option of data source 'jsonl' 'splits'.*'split'"),
    ({'weight': 0}, "weight=0 of part 'few'"),
    ({'weight': True}, 'weight=True'),
    ({'weight': float('nan')}, 'weight=nan'),
    ({'weight': None}, 'weight=None'),
    ({'source': 'mixture'}, "'few' of the mixture is a mixture"),
    ({'source': 'json'}, "Did you mean 'jsonl'.*mixture"),
  ],
)
def test_wrong_sections(section, make_tokenizer, change, message):
  if set(change) & {'weight', 'source'}:
    section['parts']['few'] |= change
  else:
    section |= change
  with pytest.raises(ValueError, match=message):
    data.load(section, tokenizer=make_tokenizer())


def test_prompts_of_a_mixture_come_by_their_shares():
  """However many examples their records have, for any number of epochs."""
  records = mixtures.concatenate(
    {'a': part([6] * 10, name='a'), 'b': part([1] * 10, name='b')},
    dict(a=0.5, b=0.5),
  )
  stream = collection.prompt_stream(records, seed=0)
  drawn = [i for i, _ in stream.slice(0, 200)]
  assert sum(i < 10 for i in drawn) == pytest.approx(100, abs=1)
  for first in (0, 10):
    own = [i for i in drawn if first <= i < first + 10]
    for begin in range(0, 90, 10):
      assert sorted(own[begin : begin + 10]) == list(range(first, first + 10))
