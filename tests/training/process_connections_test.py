"""Processes connect, or report who is missing; the death of one ends all."""

import contextlib
import socket
import threading
import time

import pytest

from dpo_jax.training import process_connections

HOST = socket.gethostname()


@pytest.fixture
def coordinator():
  with socket.create_server(('localhost', 0)) as server:
    return f'localhost:{server.getsockname()[1]}'


@pytest.fixture
def ends(monkeypatch):
  """The exit statuses that processes would have had; none exits."""
  seen = []
  monkeypatch.setattr(process_connections.os, '_exit', seen.append)
  monkeypatch.setattr(process_connections, 'GRACE', 0.2)
  return seen


def _connect(coordinator, numbers, timeout=20):
  """Results, or errors, of `connect` in processes of these (count, index)."""
  found = [None] * len(numbers)

  def run(i):
    place = process_connections.Process(coordinator, *numbers[i])
    try:
      found[i] = process_connections.connect(place, timeout, 60)
    except ValueError as error:
      found[i] = str(error)

  threads = [
    threading.Thread(target=run, args=[i]) for i in range(len(numbers))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return found


def _until(condition):
  began = time.monotonic()
  while not condition():
    assert time.monotonic() - began < 10
    time.sleep(0.01)


def _close(*all_connections):
  for one in all_connections:
    one.leave()
  for one in all_connections:
    for link in list(one._sockets.values()):
      # As when a process ends, whatever its threads do.
      with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
  _until(lambda: not any(one._sockets for one in all_connections))


def test_all_connect_and_leave_silently(coordinator, ends, capsys):
  found = _connect(coordinator, [(3, 2), (3, 0), (3, 1)])
  (address,) = {address for _, address in found}
  assert address.startswith('localhost:') and address != coordinator
  _close(*(one for one, _ in found))
  assert not ends and not capsys.readouterr().err


def test_all_report_the_missing_processes(coordinator):
  began = time.monotonic()
  found = _connect(coordinator, [(4, 0), (4, 2)], timeout=1)
  assert time.monotonic() - began < 10
  message = (
    f'2 of 4 processes connected to {coordinator} within 1 s '
    '(distributed.timeout). Missing: 1, 3.'
  )
  assert found == [message] * 2


def test_different_counts_are_reported_to_both(coordinator):
  found = _connect(coordinator, [(2, 0), (3, 1)])
  message = (
    f'Process 1 (on {HOST}) is one of 3 processes, process 0 (on {HOST}) of 2.'
  )
  assert found == [message] * 2


def test_two_processes_with_one_index_are_reported_to_all(coordinator):
  found = _connect(coordinator, [(3, 0), (3, 1), (3, 1)])
  message = f'There are two processes 1 of 3, on {HOST} and on {HOST}.'
  assert found == [message] * 3


def test_a_process_that_died_may_connect_again(coordinator, ends):
  """Process 1 dies before all have connected, and is started again."""
  host, _, port = coordinator.rpartition(':')
  found = []

  def come(index, after):
    time.sleep(after)
    found.extend(_connect(coordinator, [(3, index)]))

  def go():
    time.sleep(0.5)
    with socket.create_connection((host, int(port))) as link:
      link.sendall(process_connections._HELLO.format(3, 1, HOST).encode())

  threads = [threading.Thread(target=go)]
  for index, after in ((0, 0), (2, 1.0), (1, 1.5)):
    threads.append(threading.Thread(target=come, args=(index, after)))
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not any(isinstance(one, str) for one in found), found
  _close(*(one for one, _ in found))
  assert not ends


def test_a_coordinator_that_is_not_there(coordinator):
  (message,) = _connect(coordinator, [(2, 1)], timeout=1)
  assert f'Process 1 of 2 (on {HOST}) did not reach the' in message
  assert f'coordinator {coordinator} within 1 s' in message
  assert 'refused' in message


def test_a_port_that_is_taken(coordinator):
  port = int(coordinator.rpartition(':')[2])
  with socket.create_server(('', port), family=socket.AF_INET6):
    (message,) = _connect(coordinator, [(2, 0)], timeout=1)
  assert f'Process 0 of 2 (on {HOST}) cannot listen at port {port}' in message


def test_other_programs_are_not_counted(coordinator):
  address = process_connections.Process(coordinator, 2, 1).address

  def knock():
    _until(lambda: not socket.socket().connect_ex(address))
    with socket.create_connection(address) as link:
      link.sendall(b'GET / HTTP/1.1\r\n')

  thread = threading.Thread(target=knock)
  thread.start()
  found = _connect(coordinator, [(2, 0)], timeout=3)
  thread.join()
  assert '1 of 2 processes connected' in found[0]


@pytest.fixture
def three(coordinator, ends):
  """The connections of three processes, by their index."""
  found = _connect(coordinator, [(3, 0), (3, 1), (3, 2)])
  yield [one for one, _ in found]
  _close(*(one for one, _ in found))


def _die(one):
  """Closes connections as the system does for a killed process."""
  one._ending = True  # Its threads go on in this test.
  for link in list(one._sockets.values()):
    link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize('index', [0, 1])
def test_all_others_end_after_a_death(three, ends, capsys, index):
  _die(three[index])
  _until(lambda: len(ends) == 2)
  assert ends == [process_connections.FAILED] * 2
  text = capsys.readouterr().err
  for other in {0, 1, 2} - {index}:
    message = f'Process {index} of 3 (on {HOST}) is gone, so process {other}'
    assert f'{message} ends. {process_connections.RESUME}' in text


def test_all_others_end_after_a_failure_and_report_it(three, ends, capsys):
  three[2].fail('ValueError: no such\nfile')
  _until(lambda: len(ends) == 3)
  text = capsys.readouterr().err
  for other in (0, 1):
    message = f'Process 2 of 3 (on {HOST}) failed: ValueError: no such file, so'
    assert f'{message} process {other} ends.' in text


def test_a_process_that_fails_itself_does_not_report_others(
  three, ends, capsys
):
  for one in reversed(three):
    one.fail('ValueError: as all')
  _until(lambda: len(ends) == 3)
  time.sleep(2 * process_connections.GRACE)
  assert not capsys.readouterr().err
