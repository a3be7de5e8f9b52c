"""A chat completions endpoint on loopback, whose judge does as it is told."""

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

KEY = 'sk-a-secret-that-nobody-may-see'
_SHOWN = re.compile(r'A: ?\n(.*?)\n\n.*?B: ?\n(.*?)\n', re.DOTALL)


class Server(http.server.ThreadingHTTPServer):
  """judge(text of the question, first, second, times it was asked) -> reply.

  A reply is text, or (status, body) for a fault. asked: the questions, in the
  order in which they came; answered: those whose reply was sent.
  """

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, judge: Callable[..., Any]):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.judge = judge
    self.asked, self.answered = [], []
    self.lock = threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}/v1'


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._send(200, {'object': 'list', 'data': []})

  def do_POST(self):
    length = int(self.headers['Content-Length'])
    request = json.loads(self.rfile.read(length))
    text = request['messages'][0]['content']
    first, second = _SHOWN.search(text).groups()
    with self.server.lock:
      count = self.server.asked.count(text)
      self.server.asked.append(text)
    reply = self.server.judge(text, first, second, count)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      if isinstance(reply, tuple):
        return self._send(*reply)
      message = {'role': 'assistant', 'content': reply}
      choice = {'index': 0, 'finish_reason': 'stop', 'message': message}
      usage = {'prompt_tokens': 9, 'completion_tokens': 3, 'total_tokens': 12}
      body = dict(
        id='x',
        object='chat.completion',
        created=0,
        model=request['model'],
        choices=[choice],
        usage=usage,
      )
      self._send(200, body)
      with self.server.lock:
        self.server.answered.append(text)

  def _send(self, status: int, body: Any):
    content = body if isinstance(body, str) else json.dumps(body)
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(content.encode())))
    self.end_headers()
    self.wfile.write(content.encode())


@contextlib.contextmanager
def running(judge: Callable[..., Any]) -> Iterator[Server]:
  with Server(judge) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


def quality(text: str) -> float:
  """What the answers of these tests are worth: the number that they hold."""
  return float(re.search(r'\d+(\.\d+)?', text)[0])


def better(text: str, first: str, second: str, count: int) -> str:
  """A judge that is right."""
  del text, count
  letter = 'A' if quality(first) > quality(second) else 'B'
  return f'One of them is better.\nBetter: {letter}'


def slow(seconds: float):
  """The same judge, that takes so long."""

  def judge(*args):
    time.sleep(seconds)
    return better(*args)

  return judge
