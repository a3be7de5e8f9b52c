"""What a run reads, as fingerprints: kept with it, compared when it goes on.

inputs.json in a run's directory:

  {"fingerprints": {"train_data": {"source": "pairs.jsonl", "sha256": "..."},
                    "eval_data": ..., "model.tokenizer": ..., "model.uri": ...,
                    "model.reference": ...},
   "commits": {"hf://owner/name": "..."}}

model.reference is left out where it is the start. A repository of the hub is
read at its commit ever after: a run that goes on does not see what main has
become.

On two CPU cores the 135M parameters of SmolLM2 take 0.1 seconds of CPU time,
after 0.6 of compiling; 100M tokens of records 0.4 (SHA-256).
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax import assets, types
from dpo_jax.training import digest, processes, workdir

_SHOWN_FILES = 3  # Of a data section, in an error.


class Input(NamedTuple):
  """Where something is from, for errors to say, and its fingerprint in hex."""

  source: str
  sha256: str


def of_data(tokenizer_uri: str, tokenizer, **sections) -> dict[str, Input]:
  """The inputs that a tokenizer and records by their section's name are."""
  ids = f'{tokenizer.fingerprint} {tokenizer.stop_ids}'
  sha256 = hashlib.sha256(ids.encode()).hexdigest()
  found = {'model.tokenizer': Input(tokenizer_uri, sha256)}
  for name, records in sections.items():
    more = len(records.files) - _SHOWN_FILES
    shown = [*records.files[:_SHOWN_FILES], *([f'{more} more'] * (more > 0))]
    sha256 = records.fingerprint(extras=True)
    found[name] = Input(', '.join(shown), sha256)
  return found


def agree(what: str, found: Mapping[str, Input]) -> None:
  """ValueError in every process if one has read other inputs."""
  lines = [f'{name}: SHA-256 {x.sha256[:16]}' for name, x in found.items()]
  processes.agree(what, '\n'.join(lines))


def agree_on_data(tokenizer_uri: str, tokenizer, **sections: Any) -> None:
  """ValueError in every process if one has another tokenizer or records."""
  if processes.many():
    agree('data', of_data(tokenizer_uri, tokenizer, **sections))


def agree_on_weights(*uris: str) -> None:
  """ValueError in every process if one has other files of these weights."""
  if not processes.many():
    return
  lines = []
  for uri in dict.fromkeys(uris):
    path = assets.resolve(uri)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    lines += [f'{uri}, {assets.ends(file)}' for file in files if file.is_file()]
  processes.agree('model', '\n'.join(lines))


class Inputs:
  """Those of a run so far; kept in a file, or with None as path not at all.

  Of many processes all call everything alike; process 0 reads and writes.
  """

  def __init__(self, path: pathlib.Path | None = None):
    self._path = path
    kept = _read(path) if path and processes.first() else {}
    self._kept = processes.share(kept)
    self._found = {
      name: Input(**fields)
      for name, fields in self._kept.get('fingerprints', {}).items()
    }
    self.commits: dict[str, str] = dict(self._kept.get('commits', {}))

  def check(self, what: str, found: Mapping[str, Input]) -> None:
    """ValueError for what differs from what the run, or a process, has read.

    What was not known of the run before is from now on.
    """
    agree(what, found)
    changed = [
      f'{name} ({x.source}): SHA-256 {self._found[name].sha256[:16]} -> '
      f'{x.sha256[:16]}'
      for name, x in found.items()
      if self._found.get(name, x).sha256 != x.sha256
    ]
    if changed:
      raise ValueError(
        'The inputs differ from those that the run began with (then -> now): '
        f'{"; ".join(changed)}. Put back what it began with, or give a '
        f'new --workdir.{self._without()}'
      )
    self._found |= found

  def check_data(self, tokenizer_uri: str, tokenizer, **sections: Any) -> None:
    """`check` of a tokenizer and of records by the name of their section."""
    self.check('data', of_data(tokenizer_uri, tokenizer, **sections))

  def check_params(self, name: str, uri: str, params: types.Params) -> str:
    """The fingerprint of parameters; ValueError if the run has known others."""
    sha256 = digest.fingerprint(params)
    self.check('parameters', {name: Input(uri, sha256)})
    return sha256

  def _without(self) -> str:
    place = self._path and str(self._path)
    more = f' To go on with these inputs all the same, remove {place!r}.'
    return more if place else ''

  def save(self) -> None:
    """Writes what is known; ValueError if processes read other commits."""
    lines = [f'{name}: {commit}' for name, commit in self.commits.items()]
    processes.agree('commits of the hub', '\n'.join(sorted(lines)))
    now = {
      'fingerprints': {name: x._asdict() for name, x in self._found.items()},
      'commits': self.commits,
    }
    if self._path and processes.first() and now != self._kept:
      with assets.atomic_path(self._path) as temp:
        temp.write_text(json.dumps(now, indent=2) + '\n', 'utf-8')


@contextlib.contextmanager
def of_run(folder: pathlib.Path) -> Iterator[Inputs]:
  """The inputs of a run; within, the hub's repositories are at its commits."""
  inputs = Inputs(folder / workdir.INPUTS)
  with assets.pinned(inputs.commits):
    yield inputs


def _read(path: pathlib.Path) -> dict:
  return assets.read_json(path) if path.exists() else {}
