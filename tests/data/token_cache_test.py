"""The token cache: hits, misses, damage, and a process killed in a write.

Run as a program it fills the cache, slowly: the test's victim.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dpo_jax import assets, tokenizers
from dpo_jax.data import store, token_cache, tokenise
from dpo_jax.data.sources import row_formats
from tests import templates


class Bytes(templates.Plain):
  """Bytes as tokens."""

  bos_id, eos_id, add_bos, fingerprint = 256, 257, True, 'bytes'
  end_of_turn = tokenizers.EndOfTurn('.', '', '', None)

  def encode_parts(self, texts, *, start):
    del start
    return [list(text.encode()) for text in texts]

  def encode_written(self, text, spans, *, start):
    assert not spans
    return self.encode_parts([text], start=start)[0]

  def starts_after(self, ids):
    return bool(ids)

  def apply_chat(self, messages, *, add_generation_prompt=False, **variables):
    del variables
    marks = {'user': '>', 'assistant': '.'}
    text = ''.join(m['content'] + marks[m['role']] for m in messages)
    return text.removesuffix('' if add_generation_prompt else '>')


SETTINGS = {'max_length': 64, 'max_prompt_length': 32}


def load(
  path,
  tokenizer=None,
  settings=SETTINGS,
  corrections=None,
  turns='last',
  **options,
):
  options = {'path': str(path), 'kind': 'pairs'} | options
  return token_cache.load(
    'jsonl',
    options,
    row_formats.jsonl(**options),
    tokenizer=tokenizer or Bytes(),
    settings=settings,
    corrections=corrections,
    turns=turns,
  )


def assert_equal(a, b):
  for name in store.ARRAYS:
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
  assert a.files == b.files


@pytest.fixture
def path(tmp_path, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  path = tmp_path / 'pairs.jsonl'
  rows = [{'prompt': f'p{i}', 'chosen': 'a', 'rejected': 'b'} for i in range(9)]
  rows.append({'prompt': 'p'})
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def entries():
  return sorted(p for p in assets.cache_dir('tokens').iterdir())


def test_second_load_is_a_hit(path, monkeypatch):
  first = load(path)
  monkeypatch.setattr(tokenise, 'tokenise', None)
  second = load(path)
  assert (first.hit, second.hit) == (False, True)
  assert_equal(first.records, second.records)
  assert first.report == second.report
  assert second.report.counts == {'missing_field': 1}
  assert isinstance(second.records.tokens.base, np.memmap)
  assert bytes(second.records.completions(3)[0].tolist()[:-1]) == b'a'


def change_row(path):
  path.write_text(path.read_text().replace('p3', 'p4'))
  return {}


def change_tokenizer(path):
  tokenizer = Bytes()
  tokenizer.fingerprint = 'other'
  return {'tokenizer': tokenizer}


CHANGES = {
  'row': change_row,
  'tokenizer': change_tokenizer,
  'max_length': lambda path: {'settings': SETTINGS | {'max_length': 63}},
  'truncation': lambda path: {'settings': SETTINGS | {'truncation': 'drop'}},
  'bos': lambda path: {'settings': SETTINGS | {'bos': 'never'}},
  'kind': lambda path: {'kind': 'sft'},
  'corrections': lambda path: {'corrections': 'diff'},
}


@pytest.mark.parametrize('name', CHANGES)
def test_any_change_is_a_miss(path, name):
  load(path)
  changed = CHANGES[name](path)
  assert not load(path, **changed).hit
  assert load(path, **changed).hit
  assert len(entries()) == 2


def test_extras_are_kept(path):
  first, second = load(path, corrections='diff'), load(path, corrections='diff')
  assert (first.hit, second.hit) == (False, True)
  # Of 'p0' and the answers 'a' and 'b', each with EOS after and BOS before.
  marks = [0, 0, 0, 1, 0, 1, 0] * 9
  for found in (first, second):
    assert list(found.records.extras) == ['corrected']
    np.testing.assert_array_equal(found.records.extras['corrected'], marks)
  (entry,) = entries()
  (entry / 'corrected.npy').write_bytes(b'')
  assert not load(path, corrections='diff').hit


def test_a_default_spelled_out_is_a_hit(path):
  load(path)
  assert load(path, settings=SETTINGS | {'bos': 'auto'}).hit


def flip_byte(entry):
  file = entry / 'tokens.npy'
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)


def empty_meta(entry):
  (entry / 'meta.json').write_text('')


def foreign_meta(entry):
  (entry / 'meta.json').write_text('{"arrays": 3}')


def lost_array(entry):
  (entry / 'rows.npy').unlink()


def cut_array(entry):
  file = entry / 'offsets.npy'
  file.write_bytes(file.read_bytes()[:-8])


def swapped_arrays(entry):
  other = (entry / 'rows.npy').read_bytes()
  (entry / 'offsets.npy').write_bytes(other)


@pytest.mark.parametrize(
  'damage',
  [
    flip_byte,
    empty_meta,
    foreign_meta,
    lost_array,
    cut_array,
    swapped_arrays,
  ],
)
def test_damaged_entry_is_made_again(path, damage, caplog):
  first = load(path)
  wanted = {
    name: np.array(getattr(first.records, name)) for name in store.ARRAYS
  }
  (entry,) = entries()
  damage(entry)
  with caplog.at_level('WARNING'):
    again = load(path)
  assert not again.hit
  assert 'damaged, made again' in caplog.text
  for name, value in wanted.items():
    np.testing.assert_array_equal(getattr(again.records, name), value)
  assert load(path).hit


def test_killed_write_leaves_nothing_taken_for_real(path, tmp_path):
  root = pathlib.Path(__file__).parents[2]
  process = subprocess.Popen(
    [sys.executable, __file__, str(path)],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(root)},
  )
  # Three of the arrays are in their files.
  assert process.stdout.readline() == b'in the middle\n'
  (left,) = entries()
  assert (left / 'tokens.npy').exists()
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  after = load(path)
  assert not after.hit
  assert len(after.records) == 9
  assert load(path).hit
  # What the killed process left is not mistaken for an entry.
  assert len(entries()) == 2 and left.name.startswith('.')


def test_chats_are_rendered_up_to_the_answer(path):
  prompt = [{'role': 'user', 'content': 'Hi.'}]
  row = {'prompt': prompt, 'chosen': 'a', 'rejected': 'b'}
  path.write_text(json.dumps(row))
  assert bytes(load(path).records.prompt(0)[1:].tolist()) == b'Hi.>'
  first, _ = load(path).records.completions(0)
  assert first.tolist() == [*b'a', Bytes.eos_id]


def test_whose_answers_are_scored_is_in_the_key_and_in_the_entry(path):
  turns = [('user', 'q'), ('assistant', 'a'), ('user', 'r'), ('assistant', 'b')]
  row = {'messages': [{'role': r, 'content': c} for r, c in turns]}
  path.write_text(json.dumps(row))
  last, every = (load(path, kind='sft', turns=t) for t in ('last', 'all'))
  first, *rest = last.records.completion_spans(0)
  assert not rest and last.records.scored[first].all()
  assert not last.records.scored[: first.start].any()
  assert last.hit is every.hit is False
  again = load(path, kind='sft', turns='all')
  assert again.hit and again.records.prompt(0).tolist() == [256, *b'q>']
  (ids,) = again.records.completions(0)
  assert ids.tolist() == [*b'a.r>b', Bytes.eos_id]
  for found in (again, every):
    (span,) = found.records.completion_spans(0)
    assert found.records.scored[span].tolist() == [1, 0, 0, 0, 1, 1]
  assert len({x.records.fingerprint() for x in (last, every, again)}) == 2
  with pytest.raises(ValueError, match="Did you mean 'last'"):
    load(path, kind='sft', turns='lasts')


def test_two_writers_agree(path, monkeypatch):
  def raced(folder, tokens, report):
    monkeypatch.setattr(token_cache, 'write', write)
    load(path)
    write(folder, tokens, report)

  write = token_cache.write
  monkeypatch.setattr(token_cache, 'write', raced)
  assert len(load(path).records) == 9
  assert len(entries()) == 1
  assert load(path).hit


def test_nothing_usable_is_not_stored(path):
  path.write_text('{}\n')
  found = load(path)
  assert len(found.records) == 0 and found.report.dropped == 1
  assert entries() == []


def _fill_slowly(path):
  save, saved = np.save, []

  def slow_save(*args):
    save(*args)
    saved.append(args)
    if len(saved) == 3:
      print('in the middle', flush=True)
      time.sleep(600)

  np.save = slow_save
  load(path)


if __name__ == '__main__':
  _fill_slowly(sys.argv[1])
