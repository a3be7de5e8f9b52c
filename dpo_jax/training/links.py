"""Who of a run's processes is there: a connection of each to process 0.

They meet at the coordinator's port before JAX begins, which would abort those
that wait in vain. The connections stay: when a process dies, the system closes
its own, whatever its devices or JAX are doing; when a machine does, TCP finds
out. All others then end at once, and say why. A process that fails says so
first, and the others end after it.
"""

import contextlib
import json
import os
import re
import selectors
import socket
import sys
import threading
import time
from typing import NamedTuple

# Seconds that the others get to find what one has failed of themselves.
GRACE = 5.0
FAILED = 1  # Exit status.
AGAIN = 'The same command, in all processes, goes on from the last checkpoint.'
_HELLO = 'dpo_jax process {} {} {}\n'  # Count, index, host.
_HELLO_LINE = re.compile(_HELLO.format(r'(\d+)', r'(\d+)', r'(\S+)'))


class Place(NamedTuple):
  """Which of how many processes this is; coordinator: host:port of process 0.

  local_devices: those that this process may use; None for all.
  """

  coordinator: str
  count: int
  index: int
  local_devices: tuple[int, ...] | None = None

  def __str__(self):
    return _name(self.index, self.count, socket.gethostname())

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(':')
    return host.strip('[]'), int(port)


def _name(index: int, count: int, host: str) -> str:
  return f'Process {index} of {count} (on {host})'


def meet(place: Place, timeout: int, heartbeat: int) -> tuple['Links', str]:
  """Waits for all; the connections, and where JAX's service is to be.

  timeout: seconds, of all of it. heartbeat: seconds of silence after which a
  machine is gone. ValueError in every process where one does not come, or has
  other numbers.
  """
  until = time.monotonic() + timeout
  if place.index:
    link, found = _join(place, until, timeout)
    sockets = {0: link}
  else:
    sockets, found = _host(place, until, timeout)
  for link in sockets.values():
    link.settimeout(None)
    _keep_alive(link, heartbeat)
  host = place.coordinator.rpartition(':')[0]
  return Links(place.index, found['hosts'], sockets), f'{host}:{found["port"]}'


def _host(place: Place, until: float, timeout: int):
  """Process 0's part: {process: connection}, what all are told."""
  port = place.address[1]
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  options = dict(family=family, dualstack_ipv6=dual, backlog=place.count)
  try:
    server = socket.create_server(('', port), **options)
  except OSError as error:
    raise ValueError(
      f'{place} cannot listen at port {port}, where the others look for it: '
      f'{error.strerror}. Take another port.'
    ) from error
  links, hosts, refusal = {}, {0: socket.gethostname()}, None
  with server:
    while not refusal and len(hosts) < place.count:
      server.settimeout(max(until - time.monotonic(), 0.01))
      try:
        link, _ = server.accept()
      except TimeoutError:
        absent = sorted(set(range(place.count)) - hosts.keys())
        refusal = (
          f'Of {place.count} processes {len(hosts)} came to '
          f'{place.coordinator} within {timeout} s (distributed.timeout). '
          f'Missing: {", ".join(map(str, absent))}.'
        )
        break
      link.settimeout(5)
      given = _HELLO_LINE.fullmatch(_line(link))
      if given is None:
        link.close()  # Not one of us.
        continue
      _forget_gone(links, hosts)
      count, index, host = int(given[1]), int(given[2]), given[3]
      if count != place.count:
        refusal = (
          f'Process {index} (on {host}) is one of {count} processes, process 0 '
          f'(on {hosts[0]}) of {place.count}.'
        )
      elif index in hosts:
        refusal = (
          f'There are two processes {index} of {count}, on {hosts[index]} and '
          f'on {host}.'
        )
      links[index if not refusal else -1], hosts[index] = link, host
  with socket.create_server(('', 0), **options) as free:
    about = dict(port=free.getsockname()[1], refusal=refusal)
  about['hosts'] = [hosts[i] for i in sorted(hosts)]
  for link in links.values():
    with contextlib.suppress(OSError):
      link.sendall(json.dumps(about).encode() + b'\n')
  if refusal:
    raise ValueError(refusal)
  return links, about


def _forget_gone(links: dict, hosts: dict) -> None:
  """Those that went before all had come may come again."""
  for index in [i for i, link in links.items() if _ended(link)]:
    links.pop(index).close()
    del hosts[index]


def _join(place: Place, until: float, timeout: int):
  """The others' part: their connection, and what process 0 says."""
  hello = _HELLO.format(place.count, place.index, socket.gethostname())
  problem = 'no answer'
  while time.monotonic() < until:
    try:
      link = socket.create_connection(place.address, timeout=5)
      link.sendall(hello.encode())
      # Process 0 may have begun to wait later, and knows who is missing.
      link.settimeout(max(until - time.monotonic(), 0) + timeout)
      about = json.loads(_line(link))
    except (OSError, ValueError) as error:
      problem = error
      time.sleep(0.2)
      continue
    if about['refusal']:
      raise ValueError(about['refusal'])
    return link, about
  raise ValueError(
    f'{place} did not reach the coordinator {place.coordinator} within '
    f'{timeout} s (distributed.timeout): {problem}. Process 0 must run there, '
    'its port open to this machine.'
  )


def _line(link: socket.socket) -> str:
  """What comes before the next newline, no byte more."""
  text = b''
  while not text.endswith(b'\n') and len(text) < 1 << 20:
    try:
      data = link.recv(1)
    except OSError:
      break
    if not data:
      break
    text += data
  return text.decode('utf-8', 'replace')


class Links:
  """The connections of one process; a thread listens to them.

  index, hosts: of this process, and the machines of all. sockets: process ->
  connection; process 0 has one to each, the others one to process 0.
  """

  def __init__(self, index: int, hosts: list[str], sockets: dict):
    self._index, self._hosts, self._sockets = index, hosts, dict(sockets)
    self._left = set()  # Those that may go without a word.
    self._leaving = False
    self._lock = threading.Lock()
    threading.Thread(target=self._listen, daemon=True).start()

  def leave(self) -> None:
    """This process will end, and that is in order."""
    self._leaving = True
    self._say(f'left {self._index}')

  def fail(self, reason: str) -> None:
    """Tells the others why this process ends, and ends it."""
    self._leaving = True
    self._say(f'failed {self._index} {" ".join(reason.split())[:500]}')
    self._end()

  def _end(self) -> None:
    """With process 0 JAX's service ends, which would abort the others."""
    until = time.monotonic() + 2 * GRACE
    while not self._index and self._sockets and time.monotonic() < until:
      time.sleep(0.05)
    sys.stdout.flush()
    os._exit(FAILED)

  def _say(self, line: str, but: int | None = None) -> None:
    with self._lock:
      for index, link in list(self._sockets.items()):
        if index != but:
          # What an error means, the listener finds.
          with contextlib.suppress(OSError):
            link.sendall(line.encode() + b'\n')

  def _listen(self) -> None:
    buffers = dict.fromkeys(self._sockets, b'')
    with selectors.DefaultSelector() as ready:
      for index, link in self._sockets.items():
        ready.register(link, selectors.EVENT_READ, index)
      while self._sockets:
        for key, _ in ready.select():
          index, data = key.data, _receive(key.fileobj)
          *lines, buffers[index] = (buffers[index] + data).split(b'\n')
          for line in lines:
            self._hear(line.decode())
          if not data:
            ready.unregister(key.fileobj)
            self._gone(index)

  def _hear(self, line: str) -> None:
    what, index, *reason = line.split(' ', 2)
    index = int(index)
    self._left.add(index)
    if not self._index:
      self._say(line, but=index)
    if what == 'lost':
      self._report_after(0, f'{self._called(index)} is gone')
    elif what == 'failed':
      reason = f'{self._called(index)} failed: {"".join(reason)}'
      self._report_after(GRACE, reason)

  def _gone(self, index: int) -> None:
    with self._lock:
      self._sockets.pop(index).close()
    if index not in self._left and not self._leaving:
      if not self._index:
        self._say(f'lost {index}')
      self._report_after(0, f'{self._called(index)} is gone')

  def _called(self, index: int) -> str:
    return _name(index, len(self._hosts), self._hosts[index])

  def _report_after(self, seconds: float, reason: str) -> None:
    """In a thread of its own: the end waits for what is still to be heard."""
    later = threading.Timer(seconds, self._report, [reason])
    later.daemon = True
    later.start()

  def _report(self, reason: str) -> None:
    if self._leaving:
      return
    self._leaving = True
    text = f'\n{reason}, so process {self._index} ends. {AGAIN}\n'
    sys.stderr.write(text)
    sys.stderr.flush()
    self._end()


def _ended(link: socket.socket) -> bool:
  """Whether the other side has closed a connection that says nothing yet."""
  before = link.gettimeout()
  link.setblocking(False)
  try:
    return not link.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    link.settimeout(before)


def _receive(link) -> bytes:
  try:
    return link.recv(65536)
  except OSError:
    return b''


def _keep_alive(link: socket.socket, seconds: int) -> None:
  """Lets TCP notice a machine that is silent for so long."""
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  every = max(seconds // 4, 1)
  for name, value in (
    ('TCP_KEEPIDLE', every),
    ('TCP_KEEPINTVL', every),
    ('TCP_KEEPCNT', 3),
    ('TCP_USER_TIMEOUT', 1000 * seconds),
  ):
    if hasattr(socket, name):  # Not on every system.
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
