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
from typing import Any, BinaryIO

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
    self._file: BinaryIO | None = None
    self.votes = []

  def __enter__(self) -> 'File':
    if self._path.exists():
      with self._path.open('rb+') as file:
        whole = file.read()
        file.truncate(whole.rfind(b'\n') + 1)
      self.votes = read(self._path)
    self._file = self._path.open('ab', buffering=0)
    return self

  def __exit__(self, *_):
    self._file.close()

  def append(self, vote: dict[str, Any]) -> None:
    """Adds a vote; it is on disk when this returns.

    OSError if it cannot be written; the file is then as it was.
    """
    # As ASCII: a reply that is cut in an emoji has no UTF-8.
    line = (json.dumps(vote) + '\n').encode()
    with self._lock:
      end = self._file.seek(0, os.SEEK_END)
      try:
        if self._file.write(line) < len(line):
          raise OSError(f'{self._path}: the disk is full.')
        os.fsync(self._file.fileno())
      except OSError:
        self._file.truncate(end)
        raise
      self.votes.append(vote)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The votes of a file; ValueError that names the line for what is none."""
  out = []
  for where, vote in assets.read_json_lines(path):
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
