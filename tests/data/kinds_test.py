"""Every kind of record from its rows to the arrays of a batch."""

import numpy as np
import pytest

from dpo_jax import data, types
from dpo_jax.data import batches, preview


def pairs(n=6):
  return [
    {'prompt': f'p{i}', 'chosen': f' good {i}', 'rejected': f' bad {i}'}
    for i in range(n)
  ]


def singles(labels):
  return [
    {'prompt': f'p{i}', 'completion': f' c{i}', 'label': bool(label)}
    for i, label in enumerate(labels)
  ]


def ranked(*sizes):
  return [
    {
      'prompt': f'p{i}',
      'completions': [f' c{j}' for j in range(n)],
      'scores': list(range(n)),
    }
    for i, n in enumerate(sizes)
  ]


def examples_of(batch, tokenizer):
  """[(prompt, [(text, label) of its completions])] of a batch's examples."""
  out = []
  row = preview.first_row(batch)
  for slots in row.example_slots_RxExK[row.example_weight_RxE > 0]:
    found = [preview.completion(row, slot) for slot in slots]
    text = tokenizer.decode(found[0].prompt.tolist()).removeprefix('<s>')
    completions = [
      (
        tokenizer.decode(c.tokens.tolist()).removesuffix('</s>'),
        None if c.label == types.NO_LABEL else bool(c.label),
      )
      for c in found
    ]
    assert not any(c.faults for c in found)
    out.append((text, completions))
  return out


def read(tokens, tokenizer):
  (packed,) = batches.eval_batches(tokens, 1, batch_size=100)
  assert len(packed) == 1
  return sorted(examples_of(packed[0], tokenizer), key=str)


def test_pairs_unpair(load, make_tokenizer):
  tokens = load(pairs(), kind='unpaired')
  assert (len(tokens), tokens.arity, tokens.kind) == (6, 1, 'unpaired')
  wanted = [
    (f'p{i}', [(f' {word} {i}', word == 'good')])
    for i in range(6)
    for word in ('good', 'bad')
  ]
  assert read(tokens, make_tokenizer()) == sorted(wanted, key=str)


@pytest.mark.parametrize('rows', [pairs(), singles([1, 0, 0, 1, 0])])
def test_kto_has_answers_of_others(load, make_tokenizer, rows):
  own = read(load(rows, kind='unpaired'), make_tokenizer())
  tokens = load(rows, kind='kto')
  assert (tokens.arity, tokens.kind) == (2, 'kto')
  found = read(tokens, make_tokenizer())
  assert [(prompt, [c]) for prompt, (c, _) in found] == own
  owner = {c: prompt for prompt, [(c, _)] in own}
  mismatched = [other for _, (_, (other, _)) in found]
  assert sorted(mismatched) == sorted(owner)
  for prompt, (_, (other, label)) in found:
    assert label is None and owner[other] != prompt


def test_the_seed_of_kto_decides(load):
  same, again, other = (
    load(pairs(20), kind='kto', mismatch_seed=seed).tokens for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(same, again)
  assert not np.array_equal(same, other)
  np.testing.assert_array_equal(same, load(pairs(20), kind='kto').tokens)


def test_a_prompt_is_computed_once_for_both(load):
  tokens = load(pairs(), kind='kto')
  (packed,) = batches.eval_batches(tokens, 1, batch_size=12)
  layout = packed[0].layout
  assert np.count_nonzero(layout.tree_length_RxT) == len(tokens)
  assert layout.branch_RxL.max() == 4


def test_mismatched_answers_are_cut_to_their_room(load, make_tokenizer):
  rows = singles([1, 0])
  rows[0]['completion'] = ' a long and winding answer'
  tokens = load(rows, kind='kto', max_length=12, max_prompt_length=6)
  _, mismatched = tokens.completions(1)
  prompt, whole = tokens.prompt_length(1), tokens.completions(0)[0]
  assert prompt + len(mismatched) == 12 > prompt + 2
  np.testing.assert_array_equal(mismatched, whole[: len(mismatched)])
  assert make_tokenizer().eos_id not in mismatched


@pytest.mark.parametrize('labels', [[1, 1, 1], [0, 0]])
@pytest.mark.parametrize('kind', ['unpaired', 'kto'])
def test_one_class_is_an_error(load, kind, labels):
  counts = f'{sum(labels)} .* desirable and {len(labels) - sum(labels)} und'
  # Made, then from the cache.
  for _ in range(2):
    with pytest.raises(ValueError, match=rf'^f\.jsonl:1 .*{counts}.*{kind!r}'):
      load(singles(labels), kind=kind)


def test_one_record_has_nobody_to_swap_with(load):
  with pytest.raises(ValueError, match=r'f\.jsonl:1 is the only record'):
    load(pairs(1), kind='kto')


def test_batches_have_both_classes(load):
  """In the order of the file a quarter of the batches would have one."""
  rows = singles([1] * 30 + [0] * 90)
  for kind in ('unpaired', 'kto'):
    tokens = load(rows, kind=kind)
    packed = batches.train_batches(tokens, 30, 1, 0, batch_size=8)
    for batch in (packed[i] for i in range(len(packed))):
      own = batch.example_slots_RxExK[0, :, 0]
      labels = batch.slot_label_RxS[0, own][batch.example_weight_RxE[0] > 0]
      assert len(labels) == 8 and 1 <= labels.sum() <= 3


def test_targeted(load, make_tokenizer):
  rows = pairs(3)
  for row, target in zip(rows, (' other', ' good 1', ' bad 2')):
    row['target'] = target
  tokens = load(rows, kind='targeted')
  assert (tokens.arity, tokens.kind) == (3, 'targeted')
  found = [
    (prompt, [c for c, _ in completions])
    for prompt, completions in read(tokens, make_tokenizer())
  ]
  assert found == [
    ('p0', [' good 0', ' bad 0', ' other']),
    ('p1', [' good 1', ' bad 1', ' good 1']),
    ('p2', [' good 2', ' bad 2', ' bad 2']),
  ]
  assert tokens.completion_counts.tolist() == [3, 2, 2]


def test_a_target_that_cutting_made_equal_is_kept(load):
  (row,) = pairs(1)
  row |= {'chosen': ' good and more', 'target': ' good and less'}
  cut = dict(max_length=7, max_prompt_length=5)
  tokens = load([row], kind='targeted', **cut)
  chosen, rejected, target = tokens.completions(0)
  np.testing.assert_array_equal(chosen, target)
  assert not np.array_equal(chosen, rejected)
  row['rejected'] = ' good and less'
  with pytest.raises(ValueError, match='identical_tokens'):
    load([row], kind='targeted', **cut)


def test_rankings_of_k(load, make_tokenizer):
  tokens = load(ranked(4, 4, 4), kind='ranking')
  assert tokens.arity == 4
  for prompt, completions in read(tokens, make_tokenizer()):
    assert prompt in ('p0', 'p1', 'p2')
    assert [c for c, _ in completions] == [' c3', ' c2', ' c1', ' c0']


def test_rankings_of_different_k_are_an_error(load):
  with pytest.raises(ValueError, match=r'f.jsonl:3 .* 3 .* f.jsonl:1 .* 4'):
    load(ranked(4, 4, 3), kind='ranking')


@pytest.mark.parametrize('share', [True, False])
def test_an_example_that_does_not_fit_is_an_error(load, share):
  tokens = load(ranked(4, 4), kind='ranking')
  longest = int(np.diff(tokens.offsets[tokens.first_span]).max())
  if not share:
    longest = tokens.prompt_length(0) + int(tokens.completion_lengths(0).max())

  def pack(limit, records=tokens):
    return batches.train_batches(
      records, 1, 1, 0, batch_size=2, max_tree_tokens=limit, share_prompt=share
    )

  assert pack(longest)[0].example_weight_RxE.sum() == 2
  with pytest.raises(
    ValueError,
    match=rf'f\.jsonl:[12]: .*the 4 completions .* {longest} tokens .*='
    f'{longest - 1}, and an example is not split',
  ):
    pack(longest - 1)
  # A completion by itself has nothing to be split off.
  assert pack(2, load(pairs(2), kind='unpaired'))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'mismatch_seed': 0}, "mismatch_seed=0 belongs to kind='kto'"),
    (
      {'kind': 'unpaired', 'mismatch_seed': 1},
      "belongs to kind='kto'; this is kind='unpaired'",
    ),
    ({'kind': 'kto', 'mismatch_seed': -1}, 'mismatch_seed is -1; expected 0'),
    (
      {'kind': 'kto', 'mismatch_seed': 0.5},
      'mismatch_seed is 0.5; expected an integer',
    ),
    ({'kind': 'kto', 'mismatch_seed': True}, 'mismatch_seed is True; expected'),
    ({'kind': 'kto', 'corrections': 'diff'}, "belongs to kind='pairs'"),
    ({'kind': 'unpair'}, "Did you mean 'unpaired'"),
    ({'mismatch': 1}, "Did you mean 'mismatch_seed'"),
  ],
)
def test_options_of_other_kinds_are_errors(load, options, message):
  with pytest.raises(ValueError, match=message):
    load(pairs(), **options)


def test_what_is_dropped_is_counted(load):
  rows = [*pairs(3), {'prompt': 'p', 'completions': [' a'], 'scores': [1]}]
  with pytest.raises(ValueError, match=r'missing_field +1 (.|\n)*f.jsonl:4: '):
    load(rows, kind='unpaired', max_drop_fraction=0)
  assert len(load(rows, kind='kto', max_drop_fraction=0.25)) == 3


def test_records_of_another_kind_do_not_fit(load):
  tokens = load(pairs(), kind='kto')
  fits = dict(vocab_size=400, max_positions=64)
  data.check_fits(tokens, arity=2, kinds=('kto',), **fits)
  data.check_fits(tokens, arity=2, **fits)
  with pytest.raises(
    ValueError, match=r"f\.jsonl:1: .*kind='kto'.*takes 'pairs' or 'ranking'"
  ):
    data.check_fits(tokens, arity=2, kinds=('pairs', 'ranking'), **fits)
  with pytest.raises(ValueError, match=r'compare 2 completions.*takes 3'):
    data.check_fits(tokens, arity=3, kinds=('kto',), **fits)


@pytest.mark.parametrize(
  ('kind', 'shown'),
  [
    ('pairs', 'preferred: 1 > 2'),
    ('ranking', 'preferred: 1 > 2'),
    ('targeted', 'preferred: 1 > 2 (target 3)'),
    ('unpaired', 'completion 2, undesirable: '),
    ('kto', 'mismatched: 3 for 1, 4 for 2'),
  ],
)
def test_preview_says_what_examples_are(load, make_tokenizer, kind, shown):
  rows = [row | {'target': ' other'} for row in pairs(3)]
  tokens = load(rows, kind=kind)
  (packed,) = batches.eval_batches(tokens, 1, batch_size=6)
  text = preview.preview(packed[0], tokens, make_tokenizer())
  assert shown in text and 'WRONG' not in text
  assert ('completion 1, desirable' in text) == (kind in ('unpaired', 'kto'))
  if kind == 'kto':
    assert 'completion 3: ' in text
  assert ('preferred' in text) == (kind in ('pairs', 'ranking', 'targeted'))


def test_rated(load, make_tokenizer):
  """Numbers as they are, whatever their range: 0, 1 and -1 are no labels."""
  ratings = [-1, 0, 1, 4.5, 1, 1]
  rows = [
    {'prompt': f'p{i}', 'completion': f' c{i}', 'rating': rating}
    for i, rating in enumerate(ratings)
  ]
  tokens = load([*rows, *ranked(3)], kind='rated')
  assert tokens.kind == 'rated' and tokens.arity == 1
  assert tokens.labels.tolist() == [*ratings, 0, 1, 2]
  (packed,) = batches.eval_batches(tokens, 1, batch_size=100)
  batch = packed[0]
  labels = np.asarray(batch.slot_label_RxS)
  used = np.asarray(batch.slot_record_RxS) >= 0
  assert sorted(labels[used].tolist()) == sorted([*ratings, 0, 1, 2])
  text = preview.preview(batch, tokens, make_tokenizer(add_bos=True))
  assert ', rated' in text and 'desirable' not in text
  # All of one class would be an error for labels.
  assert len(load([r | {'rating': 1.0} for r in rows], kind='rated')) == 6
  assert len(load(rows, kind='sft')) == 6


@pytest.mark.parametrize('rating', [None, True, '5', float('nan')])
def test_a_rating_is_a_number(load, rating):
  rows = [{'prompt': 'p', 'completion': ' c', 'rating': rating}]
  with pytest.raises(ValueError, match=r'rating|dropped'):
    load(rows, kind='rated')
