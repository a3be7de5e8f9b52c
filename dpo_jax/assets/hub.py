"""Repositories of the hub, at commits that a run can hold on to."""

import contextlib
import contextvars
import pathlib
import re
from collections.abc import Iterator

# What a model is made of; other frameworks' copies of the weights stay away.
_MODEL_FILES = ['*.json', '*.safetensors', '*.jinja', '*.model', '*.txt']
_pinned = contextvars.ContextVar('commits of repositories', default=None)


@contextlib.contextmanager
def pinned(commits: dict[str, str]) -> Iterator[None]:
  """Within, a repository is read at the commit that `commits` has for it.

  commits: 'hf://owner/name', with '@revision' where a URI has one, to a commit.
  A repository that is not among them is added once it is read.
  """
  token = _pinned.set(commits)
  try:
    yield
  finally:
    _pinned.reset(token)


def parse(uri: str, rest: str) -> tuple[str | None, ...]:
  """Kind, 'owner/name', revision and file; None for what is left out.

  The hub's own references, as refs/pr/1, are revisions with slashes.
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
  """The file or snapshot of a repository, from the hub or its cache."""
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
      said = str(error).strip() or type(error).__name__
      errors.append(f'as a {kind}: {said.splitlines()[0]}')
      absent = isinstance(error, hub.errors.RepositoryNotFoundError)
      if not (absent or hub.constants.HF_HUB_OFFLINE):
        break
  at = f' at {commit}, the commit that the run began with' if commit else ''
  raise FileNotFoundError(
    f'Could not fetch {uri!r}{at}. ' + '; '.join(errors) + '. Without access '
    'to the hub, set HF_HUB_OFFLINE=1 with an HF_HOME that holds it, or give a '
    'local path. A gated or private repository needs HF_TOKEN.'
  )
