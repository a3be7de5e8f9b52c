"""The page on which people vote: over HTTP, and in a real browser."""

import concurrent.futures
import contextlib
import json
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

from dpo_jax import judges
from dpo_jax.evals import win_rates
from tests.judges import endpoint_test, server

ROOT = pathlib.Path(__file__).parents[2]
COUNT = 12


def _comparisons():
  return [
    judges.Comparison('all', f'Prompt {i}?', f'worth {i}', f'worth {5.5}')
    for i in range(COUNT)
  ]


@contextlib.contextmanager
def _serving(path, seed=0):
  with judges.File(path) as votes:
    ballot = judges.people.Ballot(_comparisons(), votes, seed=seed)
    with judges.people.Server(ballot, 0) as running:
      thread = threading.Thread(target=running.serve_forever, daemon=True)
      thread.start()
      try:
        yield running.url
      finally:
        running.shutdown()
        thread.join()


def _get(url):
  with urllib.request.urlopen(url, timeout=20) as reply:
    return json.loads(reply.read())


def _vote(url, **fields):
  request = urllib.request.Request(
    f'{url}vote',
    json.dumps(fields).encode(),
    {'Content-Type': 'application/json'},
  )
  with urllib.request.urlopen(request, timeout=20) as reply:
    return json.loads(reply.read())


def _votes_rightly(url, rater):
  """A rater who finds the larger number better; returns what was shown."""
  state = _get(f'{url}next?rater={urllib.parse.quote(rater)}')
  shown = []
  while (question := state['question']) is not None:
    shown.append(question)
    first, second = (server.quality(question[x]) for x in ('first', 'second'))
    verdict = 'first' if first > second else 'second'
    again = dict(rater=rater, id=question['id'], verdict=verdict)
    state = _vote(url, **again)
    assert _vote(url, **again | {'verdict': 'tie'}) == state  # Not counted.
  return shown


def test_raters_are_apart_and_blind(tmp_path):
  path = tmp_path / 'people.jsonl'
  names = ['Ada', 'Grace', 'Jo B']
  with _serving(path) as url:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      shown = list(pool.map(lambda name: _votes_rightly(url, name), names))
    for questions in shown:
      assert {q['prompt'] for q in questions} == {
        c.prompt for c in _comparisons()
      }
      assert {*questions[0]} == {'id', 'prompt', 'first', 'second'}
    orders = [[q['prompt'] for q in questions] for questions in shown]
    assert orders[0] != orders[1] != orders[2]
  votes = judges.read(path)
  assert len(votes) == 3 * COUNT == len({vote['id'] for vote in votes})
  assert {vote['rater'] for vote in votes} == {'Ada', 'Grace', 'Jo B'}
  for vote in votes:
    assert vote['verdict'] == (
      'a' if server.quality(vote['a']) > server.quality(vote['b']) else 'b'
    )
  assert {vote['first'] for vote in votes} == {'a', 'b'}
  found = win_rates.of_votes(votes, [judges.outcome(v) for v in votes])
  assert (found['votes'], found['prompts']) == (36, 12)
  assert found['win_rate'] == 0.5


def test_equal_answers_in_two_groups_are_one_question(tmp_path):
  both = [c._replace(group=g) for c in _comparisons() for g in ('T=0', 'T=1')]
  with judges.File(tmp_path / 'people.jsonl') as votes:
    ballot = judges.people.Ballot(both, votes, seed=0)
    state = ballot.next('Ada')
    assert state['total'] == COUNT
    ballot.vote('Ada', state['question']['id'], 'first')
  groups = [vote['group'] for vote in judges.read(tmp_path / 'people.jsonl')]
  assert groups == ['T=0', 'T=1']


def test_a_vote_that_cannot_be_written_is_no_vote(tmp_path):
  """The disk is full: nothing of it is left, and it can be given again."""
  path = tmp_path / 'people.jsonl'
  with judges.File(path) as votes:
    ballot = judges.people.Ballot(_comparisons(), votes, seed=0)
    question = ballot.next('Ada')['question']
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, kept[1]))
    try:
      with pytest.raises(OSError):
        ballot.vote('Ada', question['id'], 'first')
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, kept)
      signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b''
    assert ballot.next('Ada')['done'] == 0
    assert ballot.vote('Ada', question['id'], 'second')['done'] == 1
  assert len(judges.read(path)) == 1


def test_a_rater_goes_on_where_the_server_was_stopped(tmp_path):
  path = tmp_path / 'people.jsonl'
  with _serving(path) as url:
    state = _get(f'{url}next?rater=Ada')
    for _ in range(5):
      question = state['question']
      state = _vote(url, rater='Ada', id=question['id'], verdict='skip')
  with _serving(path) as url:
    assert _get(f'{url}next?rater=Ada') == state
    assert (state['done'], state['total']) == (5, COUNT)
    assert _get(f'{url}next?rater=Grace')['done'] == 0


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(verdict='first'), 'a vote needs rater, id, verdict'),
    (dict(rater='', id='x', verdict='first'), 'a rater needs a name'),
    (dict(rater='Ada', id='x', verdict='first'), "no vote: question 'x'"),
    (dict(rater='Ada', id=[1], verdict='first'), 'no vote: question'),
    (dict(rater=['Ada'], id='x', verdict='first'), 'a rater needs a name'),
  ],
)
def test_what_is_no_vote(tmp_path, fields, message):
  with _serving(tmp_path / 'people.jsonl') as url:
    with pytest.raises(urllib.error.HTTPError) as error:
      _vote(url, **fields)
    assert error.value.code == 400
    assert message in error.value.read().decode()
  assert judges.read(tmp_path / 'people.jsonl') == []


def test_a_form_of_another_page_cannot_vote(tmp_path):
  with _serving(tmp_path / 'people.jsonl') as url:
    question = _get(f'{url}next?rater=Ada')['question']
    body = json.dumps(dict(rater='Ada', id=question['id'], verdict='first'))
    request = urllib.request.Request(
      f'{url}vote', body.encode(), {'Content-Type': 'text/plain'}
    )
    with pytest.raises(urllib.error.HTTPError, match='404'):
      urllib.request.urlopen(request, timeout=20)
  assert judges.read(tmp_path / 'people.jsonl') == []


def test_people_agree_with_each_other_and_a_judge():
  """Of one prompt two raters agree; of the other they do not."""

  def vote(prompt, verdict):
    return dict(prompt=prompt, a='x', b='y', verdict=verdict, first='a')

  people = [
    *[vote('p', verdict) for verdict in ('a', 'a', 'tie')],
    *[vote('q', verdict) for verdict in ('a', 'b')],
    *[vote('r', verdict) for verdict in ('b', 'b')],
  ]
  judge = [vote('p', 'a'), vote('q', 'a'), vote('r', 'a'), vote('r', 'b')]
  (found,) = win_rates.agreement(people, judge).values()
  assert found == dict(human_human=2 / 3, pairs=3, human_judge=3 / 4, votes=4)
  assert '66.7%' in win_rates.agreement_table(people, judge)


@pytest.mark.parametrize(
  'end',
  [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)],
)
def test_the_command_serves_until_it_is_stopped(tmp_path, monkeypatch, end):
  monkeypatch.setenv('OPENAI_API_KEY', server.KEY)
  page = endpoint_test._sides(tmp_path, a=[3, 1, 5], b=[2, 2, 2])
  page |= dict(judge=dict(name='reward', reward='vader'))
  judge = endpoint_test._command(tmp_path, page)
  assert judge.communicate() and judge.returncode == 0
  process = endpoint_test._command(tmp_path, page, '--people', '--port=0')
  for line in process.stdout:
    if line.startswith('Compare answers at '):
      url = line.split()[3]
      break
  assert (
    'Which answer is better?' in urllib.request.urlopen(url).read().decode()
  )
  _votes_rightly(url, 'Ada')
  process.send_signal(end)
  text = process.communicate(timeout=60)[0]
  assert process.returncode == 0, text
  assert '66.7%' in text and '3 votes on 3 prompts' in text
  assert 'people with each other nan% (0 pairs' in text


@pytest.mark.long
def test_a_browser_votes_with_keys_and_survives_reloads(tmp_path):
  """Chromium, without a screen: browser.py is its own process."""
  starts = [sys.executable, '-c', 'from PySide6 import QtWebEngineWidgets']
  found = subprocess.run(starts, capture_output=True, text=True)
  if found.returncode:
    reason = found.stderr.strip().split('\n')[-1]
    pytest.skip(f"needs pip install -e '.[browser]': {reason}")
  path, picture = tmp_path / 'people.jsonl', tmp_path / 'page.png'
  with _serving(path) as url:
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'tests.judges.browser',
        url,
        str(picture),
        'Ada <b>',
        'abtsXaab',
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert not done.returncode, done.stdout + done.stderr
    state = _get(f'{url}next?rater=Ada%20%3Cb%3E')
  assert picture.stat().st_size > 10_000
  votes = judges.read(path)
  # X is a reload, and no vote.
  assert state['done'] == len(votes) == 7
  assert {vote['rater'] for vote in votes} == {'Ada <b>'}
  shown = {'a': 'first', 'b': 'second', 't': 'tie', 's': 'skip'}
  for key, vote in zip('abtsaab', votes):
    side = {
      'first': vote['first'],
      'second': {'a': 'b', 'b': 'a'}[vote['first']],
    }
    said = shown[key]
    assert vote['verdict'] == side.get(said, said)
  assert f'7 of {COUNT} done, rater Ada <b>' in done.stdout
