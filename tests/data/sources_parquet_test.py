"""Parquet files, names of columns, directories of files, held-out rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.chat import errors
from dpo_jax.data import records
from dpo_jax.data.sources import row_formats, rows


def write(path, values, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(values), path, **options)
  return str(path)


def read(source):
  """(records, {line: reason of a dropped row})."""
  items = list(source.rows(None))
  bad = {i.row: i.reason for i in items if isinstance(i, errors.RowError)}
  return [i for i in items if isinstance(i, records.Record)], bad


def pair(i, **fields):
  return {'prompt': f'p{i}', 'chosen': f' c{i}', 'rejected': f' r{i}'} | fields


def test_rows_of_all_row_groups(tmp_path):
  path = write(
    tmp_path / 'a.parquet', [pair(i) for i in range(25)], row_group_size=7
  )
  found, bad = read(row_formats.parquet(path=path))
  assert not bad
  assert found == [
    records.Record(
      f'p{i}', (f' c{i}', f' r{i}'), ((0, 1),), file=path, row=i + 1
    )
    for i in range(25)
  ]


def test_only_known_columns_are_decoded(tmp_path, monkeypatch):
  asked = []
  whole = pq.ParquetFile.iter_batches

  def spy(self, **options):
    asked.append(options['columns'])
    return whole(self, **options)

  monkeypatch.setattr(pq.ParquetFile, 'iter_batches', spy)
  path = write(tmp_path / 'a.parquet', [pair(1, vector=[0.5] * 9, id=3)])
  assert len(read(row_formats.parquet(path=path))[0]) == 1
  assert asked == [['prompt', 'chosen', 'rejected']]


def test_nulls_are_fields_that_are_not_there(tmp_path):
  values = [
    {'prompt': 'p', 'completion': ' a', 'label': True},
    {'prompt': 'q', 'completion': ' b', 'label': None},
    {'prompt': None, 'completion': ' c', 'label': None},
  ]
  path = write(tmp_path / 'a.parquet', values)
  found, bad = read(row_formats.parquet(path=path, kind='unpaired'))
  assert [r.labels for r in found] == [(True,)]
  assert bad == {2: 'missing_field', 3: 'missing_field'}
  found, bad = read(row_formats.parquet(path=path, kind='sft'))
  assert [r.prompt for r in found] == ['p', 'q'] and bad == {3: 'missing_field'}


def test_rows_of_two_shapes_in_one_file(tmp_path):
  values = [pair(1, completion=None), {'prompt': 'q', 'completion': ' b'}]
  found, bad = read(
    row_formats.parquet(path=write(tmp_path / 'a.parquet', values), kind='sft')
  )
  assert [r.completions for r in found] == [(' c1',), (' b',)] and not bad


@pytest.mark.parametrize('form', ['parquet', 'jsonl'])
def test_columns_of_other_names(tmp_path, form):
  values = [{'question': 'p', 'good': ' a', 'bad': ' b', 'text': 'x'}]
  path = tmp_path / f'a.{form}'
  if form == 'parquet':
    write(path, values)
  else:
    path.write_text(json.dumps(values[0]))
  make = getattr(row_formats, form)
  columns = {'prompt': 'question', 'chosen': 'good', 'rejected': 'bad'}
  ((record,), _) = read(make(path=str(path), columns=columns))
  assert (record.prompt, record.completions) == ('p', (' a', ' b'))
  with pytest.raises(ValueError, match=r"field in columns 'promt'.*'prompt'"):
    make(path=str(path), columns={'promt': 'question'})
  with pytest.raises(ValueError, match='columns names none'):
    make(path=str(path), columns={})


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    (None, r'no column prompt, chosen, .*It has: question, good'),
    ({'prompt': 'questions'}, r"no column questions\. Did you mean 'question'"),
  ],
)
def test_columns_that_are_not_there(tmp_path, columns, message):
  path = write(tmp_path / 'a.parquet', [{'question': 'p', 'good': ' a'}])
  with pytest.raises(ValueError, match=message):
    row_formats.parquet(path=path, columns=columns)


def test_directories(tmp_path):
  for i, name in enumerate(['train-0', 'train-1', 'test-0']):
    write(tmp_path / 'data' / f'{name}.parquet', [pair(i)])
  (tmp_path / 'data' / 'train.txt').write_text('')
  source = row_formats.parquet(path=str(tmp_path), files='data/train*')
  assert [r.prompt for r in read(source)[0]] == ['p0', 'p1']
  assert source.files[0][0] == f'{tmp_path}/data/train-0.parquet'
  source = row_formats.parquet(path=f'{tmp_path}/data/t*st-*.parquet')
  assert [r.prompt for r in read(source)[0]] == ['p2']
  with pytest.raises(
    ValueError, match=r"files='\*\*/\*\.parquet'.*holds data/"
  ):
    row_formats.parquet(path=str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"matches 'valid.'.*holds data/"):
    row_formats.parquet(path=str(tmp_path), files='valid*')
  with pytest.raises(ValueError, match='is a file; files='):
    row_formats.parquet(path=f'{tmp_path}/data/test-0.parquet', files='*')


@pytest.mark.parametrize('damage', ['cut', 'other', 'page'])
def test_damaged_files_are_errors(tmp_path, damage):
  path = tmp_path / 'a.parquet'
  write(path, [pair(i) for i in range(3000)], compression='none')
  content = bytearray(path.read_bytes())
  if damage == 'cut':
    content = content[:-100]
  elif damage == 'other':
    content = b'{"prompt": "p"}'
  else:
    content[10:2000] = bytes(1990)
  path.write_bytes(bytes(content))
  with pytest.raises(ValueError, match=r'a\.parquet.*damaged or incomplete'):
    read(row_formats.parquet(path=str(path)))


def prompts(source):
  return [r.prompt for r in read(source)[0]]


def test_splits_are_a_partition_by_prompt(tmp_path):
  values = [pair(i % 200, chosen=f' {i}') for i in range(600)]
  path = write(tmp_path / 'a.parquet', values)
  other = tmp_path / 'b.jsonl'
  other.write_text(''.join(json.dumps(v) + '\n' for v in reversed(values)))

  def part(split, make=row_formats.parquet, path=path, fraction=0.2):
    source = make(path=str(path), split=split, held_out_fraction=fraction)
    return prompts(source)

  train, test = part('train'), part('test')
  assert sorted(train + test) == sorted(v['prompt'] for v in values)
  assert not set(train) & set(test)
  assert 20 < len(set(test)) < 60
  # Order and format of the file do not matter; a larger share holds out more.
  assert sorted(part('test', row_formats.jsonl, other)) == sorted(test)
  assert set(test) < set(part('test', fraction=0.4))
  assert part('all') == [v['prompt'] for v in values]


USER = {'role': 'user', 'content': 'Hi.'}
SAID = {'role': 'assistant', 'content': 'Yo.'}
PART = {'type': 'text', 'text': 'Hi.'}


@pytest.mark.parametrize(
  ('row', 'prompt'),
  [
    ({'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}, 'p'),
    ({'prompt': 'p', 'completions': ['a', 'b'], 'scores': [0, 1]}, 'p'),
    ({'text': 'a'}, 'a'),
    ({'prompt': '', 'completion': 'a'}, 'a'),
    # One user message is the same prompt as its text.
    ({'prompt': [USER], 'chosen': 'a', 'rejected': 'b'}, 'Hi.'),
    ({'prompt': 'Hi.', 'chosen': [USER, SAID], 'rejected': [USER]}, 'Hi.'),
    ({'messages': [USER, SAID]}, 'Hi.'),
    # However it is written.
    ({'messages': [USER | {'name': None}, SAID]}, 'Hi.'),
    ({'messages': [USER | {'content': [PART]}, SAID]}, 'Hi.'),
    (
      {'messages': [USER, SAID, USER, SAID]},
      json.dumps([USER, SAID, USER], sort_keys=True),
    ),
  ],
)
def test_the_prompt_that_decides(row, prompt):
  assert rows.prompt_of(row, 'pairs') == prompt


def test_unusable_rows_are_counted_once(tmp_path):
  path = tmp_path / 'a.jsonl'
  lines = [json.dumps(pair(i)) for i in range(50)] + ['{', '[]', '{}']
  path.write_text('\n'.join(lines))
  reasons = {
    split: read(
      row_formats.jsonl(path=str(path), split=split, held_out_fraction=0.5)
    )[1]
    for split in rows.SPLITS
  }
  assert set(reasons['all']) == {51, 52, 53}
  assert reasons['train'] == reasons['all'] and not reasons['test']


def test_one_prompt_cannot_be_split(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text((json.dumps(pair(1)) + '\n') * 5)
  sides = 0
  for split in ('train', 'test'):
    source = row_formats.jsonl(path=str(path), split=split)
    try:
      assert len(read(source)[0]) == 5
      sides += 1
    except ValueError as e:
      assert 'All 5 rows are on the other side' in str(e)
  assert sides == 1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'tests'}, "split 'tests'.*Did you mean 'test'"),
    ({'split': 'test', 'held_out_fraction': 1}, 'held_out_fraction=1'),
    ({'held_out_fraction': 0.0}, 'held_out_fraction=0.0'),
  ],
)
def test_wrong_splits(tmp_path, options, message):
  path = write(tmp_path / 'a.parquet', [pair(1)])
  with pytest.raises(ValueError, match=message):
    row_formats.parquet(path=path, **options)


def test_shares_are_uniform_and_pinned():
  """They decide what is held out: no version may change them."""
  shares = [rows.share(f'p{i}') for i in range(2000)]
  assert min(shares) >= 0 and max(shares) < 1
  for bound in (0.01, 0.1, 0.5):
    count = sum(s < bound for s in shares)
    spread = (2000 * bound * (1 - bound)) ** 0.5
    assert abs(count - 2000 * bound) < 4 * spread
  assert rows.share('p0') == pytest.approx(PINNED, abs=1e-15)


PINNED = 0.08830806665026611


def test_left_out_rows_are_no_faults():
  def rule(value):
    return None if value < 3 else {'value': value}

  items = [rows.Row(i, 'f', i + 1) for i in range(5)]
  found = list(rows.convert(iter(items), rule))
  assert found == [rows.Row({'value': i}, 'f', i + 1) for i in (3, 4)]
