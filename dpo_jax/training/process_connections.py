"""TCP connections of all processes to process 0, which detect dead processes.

Processes connect at the coordinator's port before `jax.distributed` starts,
which would abort those that wait for a missing process. The connections stay
open. When a process dies, the operating system closes its connection, whatever
its devices or JAX are doing; when a machine dies, TCP's keep-alive fails. All
other processes then print which one is gone, and exit. A process that fails
sends its error first, and the others exit after it.
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

# Seconds before a process exits because of another one's error: it may fail
# with the same error by itself until then.
GRACE = 5.0
FAILED = 1  # Exit status.
RESUME = 'The same command, in all processes, resumes from the last checkpoint.'
_HELLO = 'dpo_jax process {} {} {}\n'  # Count, index, host.
_HELLO_LINE = re.compile(_HELLO.format(r'(\d+)', r'(\d+)', r'(\S+)'))


class Process(NamedTuple):
  """One of a run's processes.

  coordinator: host:port of process 0. count: how many processes there are.
  index: which of them this is, from 0 on. local_devices: those of its machine
  that it may use; None for all.
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


def connect(
  process: Process, timeout: int, heartbeat: int
) -> tuple['Connections', str]:
  """Connects all processes; also returns an address for `jax.distributed`.

  timeout: seconds until all must be connected. heartbeat: seconds of silence
  after which a machine counts as dead. ValueError in every process if one is
  missing, or if their counts or indices do not match.
  """
  until = time.monotonic() + timeout
  if process.index:
    connection, welcome = _join(process, until, timeout)
    sockets = {0: connection}
  else:
    sockets, welcome = _accept_all(process, until, timeout)
  for connection in sockets.values():
    connection.settimeout(None)
    _keep_alive(connection, heartbeat)
  host = process.coordinator.rpartition(':')[0]
  connections = Connections(process.index, welcome['hosts'], sockets)
  return connections, f'{host}:{welcome["port"]}'


def _accept_all(process: Process, until: float, timeout: int):
  """In process 0: ({index: socket}, the welcome that all get)."""
  sockets, hosts = {}, {0: socket.gethostname()}
  with _listen(process) as server:
    refusal = None
    while not refusal and len(hosts) < process.count:
      server.settimeout(max(until - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        missing = sorted(set(range(process.count)) - hosts.keys())
        refusal = (
          f'{len(hosts)} of {process.count} processes connected to '
          f'{process.coordinator} within {timeout} s (distributed.timeout). '
          f'Missing: {", ".join(map(str, missing))}.'
        )
        break
      connection.settimeout(5)
      hello = _HELLO_LINE.fullmatch(_read_line(connection))
      if hello is None:
        connection.close()  # Another program.
        continue
      _drop_closed(sockets, hosts)
      refusal = _refusal(process, hello, hosts)
      index, host = int(hello[2]), hello[3]
      # A refused process must not replace the one that has its index.
      sockets[-1 if refusal else index] = connection
      hosts.setdefault(index, host)
  with socket.create_server(('', 0), **_server_options(process)) as free:
    welcome = dict(port=free.getsockname()[1], refusal=refusal)
  welcome['hosts'] = [hosts[i] for i in sorted(hosts)]
  for connection in sockets.values():
    with contextlib.suppress(OSError):
      connection.sendall(json.dumps(welcome).encode() + b'\n')
  if refusal:
    raise ValueError(refusal)
  return sockets, welcome


def _server_options(process: Process) -> dict:
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  return dict(family=family, dualstack_ipv6=dual, backlog=process.count)


def _listen(process: Process) -> socket.socket:
  port = process.address[1]
  try:
    return socket.create_server(('', port), **_server_options(process))
  except OSError as error:
    raise ValueError(
      f'{process} cannot listen at port {port}, where the others connect: '
      f'{error.strerror}. Take another port.'
    ) from error


def _refusal(process: Process, hello: re.Match, hosts: dict) -> str | None:
  """Why a process cannot join those that have, if it cannot."""
  count, index, host = int(hello[1]), int(hello[2]), hello[3]
  if count != process.count:
    return (
      f'Process {index} (on {host}) is one of {count} processes, process 0 '
      f'(on {hosts[0]}) of {process.count}.'
    )
  if index in hosts:
    return (
      f'There are two processes {index} of {count}, on {hosts[index]} and on '
      f'{host}.'
    )
  return None


def _drop_closed(sockets: dict, hosts: dict) -> None:
  """Forgets processes that have died, so that they can be started again."""
  for index in [i for i, one in sockets.items() if _is_closed(one)]:
    sockets.pop(index).close()
    del hosts[index]


def _join(process: Process, until: float, timeout: int):
  """In other processes: (socket, process 0's welcome)."""
  hello = _HELLO.format(process.count, process.index, socket.gethostname())
  problem = 'no answer'
  while time.monotonic() < until:
    try:
      connection = socket.create_connection(process.address, timeout=5)
      connection.sendall(hello.encode())
      # Process 0, which knows who is missing, may have started later.
      connection.settimeout(max(until - time.monotonic(), 0) + timeout)
      welcome = json.loads(_read_line(connection))
    except (OSError, ValueError) as error:
      problem = error
      time.sleep(0.2)
      continue
    if welcome['refusal']:
      raise ValueError(welcome['refusal'])
    return connection, welcome
  raise ValueError(
    f'{process} did not reach the coordinator {process.coordinator} within '
    f'{timeout} s (distributed.timeout): {problem}. Process 0 must run there, '
    'with its port open to this machine.'
  )


def _read_line(connection: socket.socket) -> str:
  """The text up to the next newline; reads no byte beyond it."""
  text = b''
  while not text.endswith(b'\n') and len(text) < 1 << 20:
    try:
      data = connection.recv(1)
    except OSError:
      break
    if not data:
      break
    text += data
  return text.decode('utf-8', 'replace')


class Connections:
  """The connections of one process, and a thread that reads them.

  index: of this process. hosts: names of the machines of all processes.
  sockets: by process; process 0 has one for each other, which have one for it.
  """

  def __init__(self, index: int, hosts: list[str], sockets: dict):
    self._index, self._hosts, self._sockets = index, hosts, dict(sockets)
    self._ended = set()  # Processes whose end has been reported.
    self._ending = False  # Whether this process ends.
    self._lock = threading.Lock()
    threading.Thread(target=self._read, daemon=True).start()

  def leave(self) -> None:
    """Reports that this process ends normally."""
    self._ending = True
    self._send(f'left {self._index}')

  def fail(self, reason: str) -> None:
    """Sends the others the reason for which this process ends; exits."""
    self._ending = True
    self._send(f'failed {self._index} {" ".join(reason.split())[:500]}')
    self._exit()

  def _exit(self) -> None:
    # JAX's service in process 0 aborts the others when it ends: they go first.
    until = time.monotonic() + 2 * GRACE
    while not self._index and self._sockets and time.monotonic() < until:
      time.sleep(0.05)
    sys.stdout.flush()
    os._exit(FAILED)

  def _send(self, line: str, skip: int | None = None) -> None:
    """Sends to all connected processes but one."""
    with self._lock:
      for index, connection in list(self._sockets.items()):
        if index != skip:
          # The reading thread handles closed connections.
          with contextlib.suppress(OSError):
            connection.sendall(line.encode() + b'\n')

  def _read(self) -> None:
    buffers = dict.fromkeys(self._sockets, b'')
    with selectors.DefaultSelector() as ready:
      for index, connection in self._sockets.items():
        ready.register(connection, selectors.EVENT_READ, index)
      while self._sockets:
        for key, _ in ready.select():
          index, data = key.data, _receive(key.fileobj)
          *lines, buffers[index] = (buffers[index] + data).split(b'\n')
          for line in lines:
            self._handle(line.decode())
          if not data:
            ready.unregister(key.fileobj)
            self._handle_closed(index)

  def _handle(self, line: str) -> None:
    """A message 'left', 'lost' or 'failed', and the process that it is about.

    Process 0 forwards messages to the other processes.
    """
    kind, index, *reason = line.split(' ', 2)
    index = int(index)
    self._ended.add(index)
    if not self._index:
      self._send(line, skip=index)
    if kind == 'lost':
      self._end_after(0, f'{self._name_of(index)} is gone')
    elif kind == 'failed':
      reason = f'{self._name_of(index)} failed: {"".join(reason)}'
      self._end_after(GRACE, reason)

  def _handle_closed(self, index: int) -> None:
    with self._lock:
      self._sockets.pop(index).close()
    if index not in self._ended and not self._ending:
      if not self._index:
        self._send(f'lost {index}')
      self._end_after(0, f'{self._name_of(index)} is gone')

  def _name_of(self, index: int) -> str:
    return _name(index, len(self._hosts), self._hosts[index])

  def _end_after(self, seconds: float, reason: str) -> None:
    """Ends this process, from another thread: this one goes on reading."""
    timer = threading.Timer(seconds, self._end, [reason])
    timer.daemon = True
    timer.start()

  def _end(self, reason: str) -> None:
    if self._ending:
      return
    self._ending = True
    text = f'\n{reason}, so process {self._index} ends. {RESUME}\n'
    sys.stderr.write(text)
    sys.stderr.flush()
    self._exit()


def _is_closed(connection: socket.socket) -> bool:
  """Whether the other side has closed a connection."""
  before = connection.gettimeout()
  connection.setblocking(False)
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    connection.settimeout(before)


def _receive(connection: socket.socket) -> bytes:
  try:
    return connection.recv(65536)
  except OSError:
    return b''


def _keep_alive(connection: socket.socket, seconds: int) -> None:
  """Makes TCP close the connection to a machine that is silent for so long."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  every = max(seconds // 4, 1)
  for name, value in (
    ('TCP_KEEPIDLE', every),
    ('TCP_KEEPINTVL', every),
    ('TCP_KEEPCNT', 3),
    ('TCP_USER_TIMEOUT', 1000 * seconds),
  ):
    if hasattr(socket, name):  # Some systems lack some of these.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
