"""Files of rows: globs, gzip, damage; config sections bound to sources."""

import gzip
import json

import pytest

from dpo_jax import data
from dpo_jax.chat import errors
from dpo_jax.data import records
from dpo_jax.data.sources import row_formats


def lines(*prompts):
  rows = [{'prompt': p, 'chosen': ' b', 'rejected': ' c'} for p in prompts]
  return ''.join(json.dumps(row) + '\n' for row in rows)


def read(path, **options):
  items = list(row_formats.jsonl(path=path, **options).rows(None))
  good = [(r.file, r.row, r.prompt) for r in items if not is_error(r)]
  return good, [(e.row, e.reason) for e in items if is_error(e)]


def is_error(item):
  return isinstance(item, errors.RowError)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'b.jsonl').write_text(lines('b1', 'b2'))
  with gzip.open(tmp_path / 'a.jsonl.gz', 'wt') as f:
    f.write(lines('a1'))
  (tmp_path / 'notes.txt').write_text('not data')
  return tmp_path


def test_files_and_globs(folder):
  a, b = f'{folder}/a.jsonl.gz', f'{folder}/b.jsonl'
  from_a, from_b = [(a, 1, 'a1')], [(b, 1, 'b1'), (b, 2, 'b2')]
  assert read(a) == (from_a, [])
  assert read(folder / 'b.jsonl') == (from_b, [])
  assert read([b, a]) == (from_b + from_a, [])
  assert read(f'{folder}/*') == (from_a + from_b, [])
  assert read(f'{folder}/**/[b-z].jsonl') == (from_b, [])


def test_a_name_with_brackets_is_a_file(tmp_path):
  path = tmp_path / 'run[1].jsonl'
  path.write_text(lines('p'))
  assert read(str(path))[0] == [(str(path), 1, 'p')]


def test_kinds_of_rows(folder):
  (record, _) = row_formats.jsonl(path=f'{folder}/b.jsonl', kind='sft').rows(
    None
  )
  assert record == records.Record(
    'b1', (' b',), ((0,),), file=f'{folder}/b.jsonl', row=1
  )


def test_bad_rows_are_counted_by_line(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  good = lines('p').encode()
  path.write_bytes(
    b'\xef\xbb\xbf' + good + b'\n{"prompt": \n' + b'{"prompt": "\xff"}\n'
    b'[1]\n' + b'[' * 100_000 + b'\n' + b'1' * 5000 + b'\n   \n'
    b'{"text": "\\ud800"}\n' + good.strip()
  )
  kept, dropped = read(path)
  # Line 2 and line 8 are blank.
  assert [row for _, row, _ in kept] == [1, 10]
  assert dropped == [
    (3, 'malformed_json'),
    (4, 'bad_utf8'),
    (5, 'not_an_object'),
    (6, 'malformed_json'),
    (7, 'malformed_json'),
    (9, 'no_preference'),
  ]


@pytest.mark.parametrize('cut', [20, -5])
def test_damaged_gzip_is_an_error(folder, cut):
  path = folder / 'a.jsonl.gz'
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(ValueError, match=r'a\.jsonl\.gz.*damaged or incomplete'):
    read(path)


def test_not_gzip_is_an_error(folder):
  path = folder / 'c.jsonl.gz'
  path.write_text(lines('p'))
  with pytest.raises(ValueError, match='damaged'):
    read(path)


@pytest.mark.parametrize(
  ('path', 'error', 'message'),
  [
    ('c.jsonl', FileNotFoundError, "Did you mean 'b.jsonl'"),
    ('*.json', FileNotFoundError, r'holds a\.jsonl\.gz, b\.jsonl, notes\.txt'),
    ('x/*/y.jsonl', FileNotFoundError, r'holds a\.jsonl\.gz, b\.jsonl'),
    ('notes.txt', ValueError, r'does not end with \.jsonl'),
    ('', ValueError, r'is a directory.*holds a\.jsonl\.gz'),
  ],
)
def test_wrong_path(folder, path, error, message):
  with pytest.raises(error, match=message):
    row_formats.jsonl(path=f'{folder}/{path}')


def test_wrong_list(folder):
  with pytest.raises(ValueError, match='empty list'):
    row_formats.jsonl(path=[])
  with pytest.raises(ValueError, match='twice'):
    row_formats.jsonl(path=[f'{folder}/b.jsonl', f'{folder}/*'])


@pytest.fixture
def section(folder, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(folder / 'cache'))
  path = f'{folder}/b.jsonl'
  return {
    'source': 'jsonl',
    'path': path,
    'max_length': 8,
    'max_prompt_length': 4,
  }


def test_load(section, make_tokenizer):
  tokenizer = make_tokenizer()
  tokens = data.load(section, tokenizer=tokenizer)
  assert len(tokens) == 2 and tokens.arity == 2
  assert tokenizer.decode(tokens.completions(1)[0]) == ' b</s>'
  assert tokens.where(1).endswith('b.jsonl:2')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'max_len': 8}, "option of data source 'jsonl' 'max_len'.*'max_length'"),
    ({'splits': 'train'}, "Unknown option .*'splits'.*Did you mean 'split'"),
    ({'source': 'json'}, "Did you mean 'jsonl'"),
    ({'kind': 'pair'}, "Did you mean 'pairs'"),
    ({'path': None}, 'needs path'),
    ({'max_length': None}, 'needs max_length'),
    ({'source': None}, 'needs a source: jsonl'),
  ],
)
def test_wrong_section(section, make_tokenizer, change, message):
  changed = {k: v for k, v in (section | change).items() if v is not None}
  with pytest.raises(ValueError, match=message):
    data.load(changed, tokenizer=make_tokenizer())


def test_too_many_drops(section, folder, make_tokenizer):
  with open(folder / 'b.jsonl', 'a') as f:
    f.write('{\n' * 6)
  for _ in ('tokenised', 'from the cache'):
    with pytest.raises(ValueError, match=r'75.00%(.|\n)*b.jsonl:3: '):
      data.load(section, tokenizer=make_tokenizer())
  section['max_drop_fraction'] = 0.75
  assert len(data.load(section, tokenizer=make_tokenizer())) == 2
