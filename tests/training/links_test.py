"""Processes that meet, or don't, and what the others hear of their end."""

import contextlib
import socket
import threading
import time

import pytest

from dpo_jax.training import links

HOST = socket.gethostname()


@pytest.fixture
def coordinator():
  with socket.create_server(('localhost', 0)) as server:
    return f'localhost:{server.getsockname()[1]}'


@pytest.fixture
def ends(monkeypatch):
  """Exit statuses of processes, which go on."""
  seen = []
  monkeypatch.setattr(links.os, '_exit', seen.append)
  monkeypatch.setattr(links, 'GRACE', 0.2)
  return seen


def _meet(coordinator, numbers, timeout=20):
  """What `meet` gives, or raises, in processes of these (count, index)."""
  found = [None] * len(numbers)

  def run(i):
    place = links.Place(coordinator, *numbers[i])
    try:
      found[i] = links.meet(place, timeout, 60)
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


def _close(*all_links):
  for one in all_links:
    one.leave()
  for one in all_links:
    for link in list(one._sockets.values()):
      # As the end of a process does, whatever its threads are at.
      with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
  _until(lambda: not any(one._sockets for one in all_links))


def test_all_meet_and_leave_without_a_word(coordinator, ends, capsys):
  found = _meet(coordinator, [(3, 2), (3, 0), (3, 1)])
  (address,) = {address for _, address in found}
  assert address.startswith('localhost:') and address != coordinator
  _close(*(one for one, _ in found))
  assert not ends and not capsys.readouterr().err


def test_who_does_not_come_is_missed_by_all(coordinator):
  began = time.monotonic()
  found = _meet(coordinator, [(4, 0), (4, 2)], timeout=1)
  assert time.monotonic() - began < 10
  message = (
    f'Of 4 processes 2 came to {coordinator} within 1 s '
    '(distributed.timeout). Missing: 1, 3.'
  )
  assert found == [message] * 2


def test_numbers_that_differ_are_told_to_both(coordinator):
  found = _meet(coordinator, [(2, 0), (3, 1)])
  message = (
    f'Process 1 (on {HOST}) is one of 3 processes, process 0 (on {HOST}) of 2.'
  )
  assert found == [message] * 2


def test_two_of_one_number_are_told_to_all(coordinator):
  found = _meet(coordinator, [(3, 0), (3, 1), (3, 1)])
  message = f'There are two processes 1 of 3, on {HOST} and on {HOST}.'
  assert found == [message] * 3


def test_one_that_went_may_come_again(coordinator, ends):
  """Before all are there, though the last of the others comes first."""
  host, _, port = coordinator.rpartition(':')
  found = []

  def come(index, after):
    time.sleep(after)
    found.extend(_meet(coordinator, [(3, index)]))

  def go():
    time.sleep(0.5)
    with socket.create_connection((host, int(port))) as link:
      link.sendall(links._HELLO.format(3, 1, HOST).encode())

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
  (message,) = _meet(coordinator, [(2, 1)], timeout=1)
  assert f'Process 1 of 2 (on {HOST}) did not reach the' in message
  assert f'coordinator {coordinator} within 1 s' in message
  assert 'refused' in message


def test_a_port_that_is_taken(coordinator):
  port = int(coordinator.rpartition(':')[2])
  with socket.create_server(('', port), family=socket.AF_INET6):
    (message,) = _meet(coordinator, [(2, 0)], timeout=1)
  assert f'Process 0 of 2 (on {HOST}) cannot listen at port {port}' in message


def test_strangers_are_not_counted(coordinator):
  address = links.Place(coordinator, 2, 1).address

  def knock():
    _until(lambda: not socket.socket().connect_ex(address))
    with socket.create_connection(address) as link:
      link.sendall(b'GET / HTTP/1.1\r\n')

  thread = threading.Thread(target=knock)
  thread.start()
  found = _meet(coordinator, [(2, 0)], timeout=3)
  thread.join()
  assert 'Of 2 processes 1 came' in found[0]


@pytest.fixture
def three(coordinator, ends):
  """The connections of three processes, by their index."""
  found = _meet(coordinator, [(3, 0), (3, 1), (3, 2)])
  yield [one for one, _ in found]
  _close(*(one for one, _ in found))


def _die(one):
  """What the system does for a process that is killed."""
  one._leaving = True  # Its threads do not go with it here.
  for link in list(one._sockets.values()):
    link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize('index', [0, 1])
def test_all_others_end_after_a_death(three, ends, capsys, index):
  _die(three[index])
  _until(lambda: len(ends) == 2)
  assert ends == [links.FAILED] * 2
  text = capsys.readouterr().err
  for other in {0, 1, 2} - {index}:
    message = f'Process {index} of 3 (on {HOST}) is gone, so process {other}'
    assert f'{message} ends. {links.AGAIN}' in text


def test_all_others_end_after_a_failure_and_say_its_reason(three, ends, capsys):
  three[2].fail('ValueError: no such\nfile')
  _until(lambda: len(ends) == 3)
  text = capsys.readouterr().err
  for other in (0, 1):
    message = f'Process 2 of 3 (on {HOST}) failed: ValueError: no such file, so'
    assert f'{message} process {other} ends.' in text


def test_who_fails_too_does_not_speak_of_others(three, ends, capsys):
  for one in reversed(three):
    one.fail('ValueError: as all')
  _until(lambda: len(ends) == 3)
  time.sleep(2 * links.GRACE)
  assert not capsys.readouterr().err
