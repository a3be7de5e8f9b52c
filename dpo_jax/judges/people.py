"""A local web page on which people compare answers, blind and in random order.

GET /             the page, people.html
GET /next?rater=  what the rater has not judged yet:
                  {"question": {"id", "prompt", "first", "second"} or null,
                   "done": number, "total": number}
POST /vote        {"rater", "id", "verdict"}: first, second, tie or skip; says
                  the same as /next. A second vote of a rater on a question is
                  not counted, so that a page that is loaded again does no harm.
"""

import hashlib
import http.server
import importlib.resources
import json
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax.judges import comparisons, verdicts, votes

SAID = ('first', 'second', 'tie', 'skip')
_MOST_BYTES = 10_000


class Ballot:
  """Which questions a rater is asked, and the votes so far.

  Each rater has an own order of the comparisons, and of their sides; both
  depend on the seed and the rater's name alone. Methods may be called from any
  thread.
  """

  def __init__(
    self,
    asked: Sequence[comparisons.Comparison],
    file: votes.File,
    *,
    seed: int,
  ):
    self._file, self._seed = file, seed
    # Equal answers to a prompt in several groups are one question.
    self._groups: dict[tuple, list[comparisons.Comparison]] = {}
    for c in asked:
      self._groups.setdefault(c[1:], []).append(c)
    self._lock = threading.Lock()
    self._questions: dict[str, dict[str, comparisons.Question]] = {}
    self._known = {vote['id'] for vote in file.votes}

  def next(self, rater: str) -> dict[str, Any]:
    """What /next says; ValueError for a rater without a name."""
    with self._lock:
      return self._next(rater)

  def vote(self, rater: str, name: str, said: str) -> dict[str, Any]:
    """Saves a vote, and what /next says then; ValueError for what is none."""
    with self._lock:
      question = self._of(rater).get(name) if isinstance(name, str) else None
      if question is None or said not in SAID:
        raise ValueError(f'no vote: question {name!r}, verdict {said!r}')
      if name not in self._known:
        for comparison in self._groups[question.comparison[1:]]:
          self._file.append(
            {
              'id': name,
              **comparison._asdict(),
              'first': question.first,
              'judge': 'people',
              'rater': rater,
              'verdict': verdicts.of_sides(said, question.first),
            }
          )
        self._known.add(name)
      return self._next(rater)

  def _next(self, rater: str) -> dict[str, Any]:
    questions = self._of(rater)
    left = [name for name in questions if name not in self._known]
    shown = None
    if left:
      question = questions[left[0]]
      first, second = question.shown
      shown = dict(
        id=left[0],
        prompt=question.comparison.prompt,
        first=first,
        second=second,
      )
    total = len(questions)
    return dict(question=shown, done=total - len(left), total=total)

  def _of(self, rater: str) -> dict[str, comparisons.Question]:
    if not isinstance(rater, str) or not rater.strip() or len(rater) > 60:
      raise ValueError('a rater needs a name of at most 60 characters')
    if rater not in self._questions:
      digest = hashlib.sha256(f'{self._seed} {rater}'.encode()).digest()
      seed = int.from_bytes(digest[:8])
      asked = [same[0] for same in self._groups.values()]
      order = np.random.default_rng(seed).permutation(len(asked))
      questions = comparisons.questions(
        [asked[i] for i in order], order='random', seed=seed
      )
      judge = f'people: {rater}'
      self._questions[rater] = {q.id(judge): q for q in questions}
    return self._questions[rater]


class Server(http.server.ThreadingHTTPServer):
  """Serves a ballot to this machine; port 0 is any that is free."""

  daemon_threads = True

  def __init__(self, ballot: Ballot, port: int):
    super().__init__(('127.0.0.1', port), _Handler)
    self.ballot = ballot
    page = importlib.resources.files('dpo_jax.judges') / 'people.html'
    self.page = page.read_bytes()

  @property
  def url(self) -> str:
    """The address of the page."""
    return f'http://127.0.0.1:{self.server_address[1]}/'


class _Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *_):
    """Nothing: the terminal shows votes, not requests."""

  def do_GET(self):
    path, _, query = self.path.partition('?')
    if path == '/':
      self._send(200, self.server.page, 'text/html; charset=utf-8')
    elif path == '/next':
      rater = urllib.parse.parse_qs(query).get('rater', [''])[0]
      self._answer(lambda: self.server.ballot.next(rater))
    else:
      self._send(404, b'no such page', 'text/plain')

  def do_POST(self):
    # Another site's page can send a form here, but not this content type.
    kind = self.headers.get('Content-Type', '')
    length = int(self.headers.get('Content-Length', 0))
    if (
      self.path != '/vote'
      or not kind.startswith('application/json')
      or length > _MOST_BYTES
    ):
      return self._send(404, b'expected a vote', 'text/plain')
    body = self.rfile.read(length)

    def vote():
      fields = json.loads(body)
      names = ('rater', 'id', 'verdict')
      if not isinstance(fields, dict) or not {*names} <= {*fields}:
        raise ValueError(f'a vote needs {", ".join(names)}')
      return self.server.ballot.vote(*(fields[name] for name in names))

    return self._answer(vote)

  def _answer(self, find) -> None:
    try:
      found = find()
    except ValueError as error:
      return self._send(400, str(error).encode(), 'text/plain; charset=utf-8')
    except OSError as error:  # The vote could not be written.
      return self._send(500, str(error).encode(), 'text/plain; charset=utf-8')
    body = json.dumps(found).encode()
    return self._send(200, body, 'application/json')

  def _send(self, status: int, body: bytes, kind: str) -> None:
    self.send_response(status)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    self.send_header('Cache-Control', 'no-store')
    self.end_headers()
    self.wfile.write(body)
