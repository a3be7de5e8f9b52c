"""Fetches repositories of the Hugging Face hub, at pinned commits."""

import contextlib
import contextvars
import pathlib
import re
from collections.abc import Iterator

# The files of a model; not the copies of its weights for other frameworks.
_MODEL_FILES = ['*.json', '*.safetensors', '*.jinja', '*.model', '*.txt']
_pinned = contextvars.ContextVar('commits of repositories', default=None)


@contextlib.contextmanager
def pinned(commits: dict[str, str]) -> Iterator[None]:
  """A context in which repositories are read at the commits in `commits`.

  commits: 'hf://owner/name', with '@revision' if the URI has one -> commit.
  Other repositories are added to it when they are read.
  """
  token = _pinned.set(commits)
  try:
    yield
  finally:
    _pinned.reset(token)


def parse(uri: str, rest: str) -> tuple[str | None, ...]:
  """(kind, 'owner/name', revision, file); None for parts the URI lacks.

  References of the hub such as refs/pr/1 are revisions with slashes.
  """
  match = re.fullmatch(
    r'(datasets/|models/)?([\w.-]+/[\w.-]+)'
    r'(?:@(refs/(?:pr|convert|heads)/[^/]+|[^/]+))?(?:/(.+))?',
    rest,
  )
  if not match:
    raise ValueError(f'{uri!r} is not hf://owner/name[@revision][/file].')
  return match.groups()


def fetch(uri: str, rest: str) -> pathlib.Path:
  """A repository's file or snapshot, from the hub or its local cache."""
  import huggingface_hub as hub

  given, name, revision, file = parse(uri, rest)
  repository = f'hf://{given or ""}{name}' + (
    f'@{revision}' if revision else ''
  )
  commits = _pinned.get()
  commits = {} if commits is None else commits
  commit = commits.get(repository)
  errors = []
  for kind in [given.rstrip('s/')] if given else ['model', 'dataset']:
    try:
      options = {'repo_type': kind, 'revision': commit or revision}
      if file:
        path = pathlib.Path(hub.hf_hub_download(name, file, **options))
        snapshot = path.parents[file.count('/')]
      else:
        if kind == 'model':
          options['allow_patterns'] = _MODEL_FILES
        path = snapshot = pathlib.Path(hub.snapshot_download(name, **options))
      commits[repository] = snapshot.name
      return path
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
      text = str(error).strip() or type(error).__name__
      errors.append(f'as a {kind}: {text.splitlines()[0]}')
      absent = isinstance(error, hub.errors.RepositoryNotFoundError)
      if not (absent or hub.constants.HF_HUB_OFFLINE):
        break
  at = f' at {commit}, the commit that the run started with' if commit else ''
  raise FileNotFoundError(
    f'Could not fetch {uri!r}{at}. ' + '; '.join(errors) + '. Without access '
    'to the hub, set HF_HUB_OFFLINE=1 with an HF_HOME that holds it, or give a '
    'local path. A gated or private repository needs HF_TOKEN.'
  )
