"""votes.jsonl: an object a line for each answer of a judge, appended at once.

  {"id": of the question, "group": "T=0.25", "prompt": text, "a": text,
   "b": text, "first": "a" or "b", "verdict": "a", "b", "tie", "skip", "refused"
   or "unparsable", "judge": its name, "rater": null or who}

and what else a judge says: "outcome" for side a (a probability), "reply",
"tokens".
"""

import json
import os
import pathlib
import threading
from typing import Any, TextIO

from dpo_jax import assets
from dpo_jax.judges import verdicts

FIELDS = ('prompt', 'a', 'b', 'verdict')


class File:
  """The votes of a file; a context that appends to it, from any thread.

  A line that was cut short by a crash is cut off. ValueError that names the
  line for what is no vote.
  """

  def __init__(self, path: pathlib.Path):
    self._path, self._lock = path, threading.Lock()
    self._file: TextIO | None = None
    self.votes = []

  def __enter__(self) -> 'File':
    if self._path.exists():
      with self._path.open('rb+') as file:
        whole = file.read()
        file.truncate(whole.rfind(b'\n') + 1)
      self.votes = read(self._path)
    self._file = self._path.open('a', encoding='utf-8')
    return self

  def __exit__(self, *_):
    self._file.close()

  def append(self, vote: dict[str, Any]) -> None:
    """Adds a vote; it is on disk when this returns."""
    line = json.dumps(vote, ensure_ascii=False) + '\n'
    with self._lock:
      self._file.write(line)
      self._file.flush()
      os.fsync(self._file.fileno())
      self.votes.append(vote)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The votes of a file; ValueError that names the line for what is none."""
  out = []
  text = assets.read_text(pathlib.Path(path))
  for number, line in enumerate(text.split('\n'), start=1):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    try:
      vote = json.loads(line)
    except ValueError as error:
      raise ValueError(f'{where} is not JSON: {error}') from error
    missing = [x for x in FIELDS if not isinstance(vote, dict) or x not in vote]
    if missing:
      raise ValueError(f'{where}: a vote needs {", ".join(missing)}.')
    if vote['verdict'] not in verdicts.OUTCOMES:
      raise ValueError(
        f'{where}: verdict is {vote["verdict"]!r}; expected one of '
        f'{", ".join(verdicts.OUTCOMES)}.'
      )
    out.append(vote)
  return out
