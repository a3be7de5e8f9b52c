"""Whole writes, and reads of files that are not what they should be."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dpo_jax import assets


def _files(folder):
  return sorted(p.name for p in folder.rglob('*') if p.is_file())


def test_atomic_path_renames_a_file_or_a_directory(tmp_path):
  with assets.atomic_path(tmp_path / 'a' / 'file') as temp:
    temp.write_text('x')
    assert not (tmp_path / 'a' / 'file').exists()
  assert (tmp_path / 'a' / 'file').read_text() == 'x'
  with assets.atomic_path(tmp_path / 'dir') as temp:
    temp.mkdir()
    (temp / 'inner').write_text('y')
  assert (tmp_path / 'dir' / 'inner').read_text() == 'y'
  assert _files(tmp_path) == ['file', 'inner']


@pytest.mark.parametrize('directory', [False, True])
def test_atomic_path_leaves_nothing_behind_on_failure(tmp_path, directory):
  with (
    pytest.raises(RuntimeError),
    assets.atomic_path(tmp_path / 'target') as temp,
  ):
    if directory:
      temp.mkdir()
    (temp / 'inner' if directory else temp).write_text('half')
    raise RuntimeError
  assert list(tmp_path.iterdir()) == []


def test_atomic_path_replaces_files_but_not_directories(tmp_path):
  (tmp_path / 'file').write_text('old')
  with assets.atomic_path(tmp_path / 'file') as temp:
    temp.write_text('new')
  assert (tmp_path / 'file').read_text() == 'new'
  (tmp_path / 'dir').mkdir()
  (tmp_path / 'dir' / 'kept').write_text('')
  with (
    pytest.raises(FileExistsError, match='dir'),
    assets.atomic_path(tmp_path / 'dir') as temp,
  ):
    temp.mkdir()
  assert _files(tmp_path) == ['file', 'kept']


def test_killed_writer_leaves_only_junk_that_is_removed_later(tmp_path):
  code = (
    'import sys, time; from dpo_jax import assets\n'
    'with assets.atomic_path(sys.argv[1]) as temp:\n'
    '  temp.write_text("half"); print("written", flush=True); time.sleep(60)\n'
  )
  target = tmp_path / 'target'
  writer = subprocess.Popen(
    [sys.executable, '-c', code, str(target)], stdout=subprocess.PIPE
  )
  assert writer.stdout.readline() == b'written\n'
  writer.send_signal(signal.SIGKILL)
  writer.wait()
  assert not target.exists()
  (junk,) = tmp_path.iterdir()
  with assets.atomic_path(target) as temp:
    temp.write_text('whole')
  assert junk.exists()  # It could belong to a live process.
  _age(junk)
  with assets.atomic_path(target) as temp:
    temp.write_text('whole')
  assert _files(tmp_path) == ['target']


def _age(path):
  yesterday = time.time() - 25 * 3600
  os.utime(path, (yesterday, yesterday))


def test_only_our_own_junk_is_removed(tmp_path):
  """Ours: the target's name and 16 hex digits, a day old."""
  kept = ['.mine.tmp', '.target.tmp', '.target.mine.tmp', '.x.target.tmp']
  kept += [f'.other.{"0" * 16}.tmp', f'.target.{"0" * 15}g.tmp']
  for name in kept:
    (tmp_path / name).mkdir()
    (tmp_path / name / 'work').write_text('precious')
  for name in (f'.target.{"0" * 16}.tmp', f'.target.{"a" * 16}.tmp'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'half').write_text('')
  young = tmp_path / f'.target.{"b" * 16}.tmp'
  for path in tmp_path.iterdir():
    _age(path)
  young.write_text('')
  with assets.atomic_path(tmp_path / 'target') as temp:
    temp.write_text('whole')
  found = {p.name for p in tmp_path.iterdir()}
  assert found == {*kept, young.name, 'target'}


@pytest.mark.parametrize('content', ['directory', 'file'])
def test_atomic_path_loses_a_race(tmp_path, monkeypatch, content):
  """Another process renames its own to the target just before we do."""
  target, replace = tmp_path / 'target', os.replace

  def late(source, destination):
    if content == 'file':
      target.write_text('theirs')
    else:
      target.mkdir()
      (target / 'theirs').write_text('')
    replace(source, destination)

  monkeypatch.setattr(os, 'replace', late)
  with (
    pytest.raises(FileExistsError, match='target'),
    assets.atomic_path(target) as temp,
  ):
    temp.mkdir()
    (temp / 'ours').write_text('')
  names = ['target'] if content == 'file' else ['theirs']
  assert _files(tmp_path) == names


def test_atomic_path_keeps_a_directory_where_a_file_should_go(tmp_path):
  (tmp_path / 'target').mkdir()
  with (
    pytest.raises(FileExistsError, match='target'),
    assets.atomic_path(tmp_path / 'target') as temp,
  ):
    temp.write_text('')
  assert [p.name for p in tmp_path.iterdir()] == ['target']


# Reads.


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'no JSON'),
    (b'{"a": 1', 'no JSON'),
    (b'[1]', 'no JSON object.*list'),
    (b'{"a": "\xff"}', 'no UTF-8'),
  ],
)
def test_bad_json_is_named(tmp_path, content, words):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(ValueError, match=rf'x\.json.*{words}'):
    assets.read_json(tmp_path / 'x.json')


def test_a_directory_where_a_file_is_expected(tmp_path):
  (tmp_path / 'x.json').mkdir()
  with pytest.raises(OSError, match=r'x\.json'):
    assets.read_json(tmp_path / 'x.json')
  with pytest.raises(OSError, match=r'x\.json'):
    assets.read_gguf(tmp_path / 'x.json')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read anything')
def test_a_file_that_may_not_be_read(tmp_path):
  (tmp_path / 'x').write_text('{}')
  (tmp_path / 'x').chmod(0)
  for read in (assets.read_json, assets.read_gguf):
    with pytest.raises(PermissionError, match='x'):
      read(tmp_path / 'x')
