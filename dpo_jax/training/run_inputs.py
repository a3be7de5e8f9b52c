"""inputs.json: fingerprints of what a run reads, compared when it resumes.

  {"fingerprints": {"train_data": {"source": "pairs.jsonl", "sha256": "..."},
                    "eval_data": ..., "model.tokenizer": ..., "model.uri": ...,
                    "model.reference": ...},
   "commits": {"hf://owner/name": "..."}}

model.reference is missing if it is the policy's start. A resumed run reads a
repository of the hub at the commit that the run began with.

On two CPU cores the 135M parameters of SmolLM2 take 0.1 seconds of CPU time,
after 0.6 of compiling; 100M tokens of records take 0.4 (SHA-256).
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax import assets, types
from dpo_jax.training import fingerprints, processes

NAME = 'inputs.json'
_SHOWN_FILES = 3  # Of a data section, in errors.


class Input(NamedTuple):
  """An input's path or uri, which errors show, and its fingerprint in hex."""

  source: str
  sha256: str


def of_data(tokenizer_uri: str, tokenizer, **sections) -> dict[str, Input]:
  """name -> input, of the tokenizer and of records by their section's name."""
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
  """Collective; ValueError in every process if one has read other inputs.

  what: names the inputs in the error.
  """
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
    files = assets.files_at(uri)
    lines += [f'{uri}, {assets.quick_fingerprint(file)}' for file in files]
  processes.agree('model', '\n'.join(lines))


class Inputs:
  """The known inputs of a run, kept in a file; in memory if `path` is None.

  Collective: every process calls the same methods in the same order; process 0
  reads and writes the file.
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
    """ValueError for inputs that differ from the run's, or among processes.

    what: names the inputs in the error. New inputs are added to the run's.
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
        f'{"; ".join(changed)}. Restore the former ones, or give a new '
        f'--workdir.{self._how_to_ignore()}'
      )
    self._found |= found

  def check_data(self, tokenizer_uri: str, tokenizer, **sections: Any) -> None:
    """`check` of a tokenizer and of records by the name of their section."""
    self.check('data', of_data(tokenizer_uri, tokenizer, **sections))

  def check_params(self, name: str, uri: str, params: types.Params) -> str:
    """The fingerprint of parameters; ValueError if the run has known others."""
    sha256 = fingerprints.of_params(params)
    self.check('parameters', {name: Input(uri, sha256)})
    return sha256

  def check_files(
    self, name: str, source: str, files: Callable[[], Iterable[pathlib.Path]]
  ) -> None:
    """`check` of files that are one input, and that process 0 alone needs."""
    found = processes.Group().in_first(lambda: assets.fingerprint_of(files()))
    self.check(name, {name: Input(source, found)})

  def _how_to_ignore(self) -> str:
    if self._path is None:
      return ''
    return (
      f' To resume with these inputs all the same, remove {str(self._path)!r}.'
    )

  def save(self) -> None:
    """Writes the file; ValueError if processes have read different commits."""
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
  """Yields a run's inputs; within, the hub is read at the run's commits."""
  inputs = Inputs(folder / NAME)
  with assets.pinned(inputs.commits):
    yield inputs


def _read(path: pathlib.Path) -> dict:
  return assets.read_json(path) if path.exists() else {}
