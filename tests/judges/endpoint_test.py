"""A judge behind a real HTTP server: bias, faults, kills, and its key."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import zlib

import pytest

from dpo_jax import judge as judge_lib
from dpo_jax import judges, rewards
from dpo_jax.judges.preference import prefer
from tests.judges import server

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', server.KEY)
  monkeypatch.delenv('OPENAI_BASE_URL', raising=False)


def _sides(folder, a, b):
  """Files of answers of these qualities."""
  for side, values in (('a', a), ('b', b)):
    rows = [
      {'prompt': f'Prompt {i}?', 'text': f'An answer worth {x} to {side}.'}
      for i, x in enumerate(values)
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'{side}.jsonl').write_text(text)
  return {s: str(folder / f'{s}.jsonl') for s in 'ab'}


def _page(folder, running, a, b, **changes):
  options = dict(
    name='endpoint',
    model='the-judge',
    base_url=running.url,
    concurrency=4,
    retries=3,
    timeout_s=20.0,
  )
  return {
    **_sides(folder, a, b),
    'judge': options | changes.pop('judge', {}),
    **changes,
  }


def _judged(folder, page):
  found = judge_lib.judge(folder / 'run', page, yes=True)
  return found['all']


def test_the_better_answer_wins_from_either_side(tmp_path):
  with server.running(server.better) as running:
    page = _page(tmp_path, running, a=[3, 1, 5, 7], b=[2, 2, 2, 2])
    found = _judged(tmp_path, page)
  assert found['win_rate'] == 3 / 4 and found['votes'] == 4
  votes = judges.read(tmp_path / 'run' / 'votes.jsonl')
  assert {vote['verdict'] for vote in votes} == {'a', 'b'}
  assert votes[0]['tokens'] == [9, 3]
  assert votes[0]['reply'].startswith('One of them is better.')
  written = json.loads((tmp_path / 'run' / 'verdict.json').read_text())
  assert written['groups']['all'] == found
  assert written['judge'] == 'the-judge'


def test_a_judge_that_likes_the_first(tmp_path):
  """It says A in 4 of 10 cases, and is right otherwise; a wins 60 of 100."""

  def judge(text, first, second, count):
    if zlib.crc32(text.encode()) % 10 < 4:
      return 'A'
    return server.better(text, first, second, count)

  a = [3] * 60 + [1] * 40
  with server.running(judge) as running:
    for order in ('random', 'both'):
      folder = tmp_path / order
      folder.mkdir()
      page = _page(folder, running, a=a, b=[2] * 100, order=order)
      found = _judged(folder, page)
      assert found['prompts'] == 100
      assert found['votes'] == (200 if order == 'both' else 100)
      # 0.4 / 2 + 0.6 x 0.6, whatever side was shown first.
      assert found['win_rate'] == pytest.approx(0.56, abs=0.08)
      assert found['low'] < 0.56 < found['high']
      # 0.4 + 0.6 / 2.
      assert found['first_wins'] == pytest.approx(0.7, abs=0.1)
      assert found['first_wins_low'] > 0.5


FAULTS = {
  0: (429, {'error': {'message': 'slow down'}}),
  1: (500, {'error': {'message': 'broken'}}),
  2: (503, 'not JSON'),
  3: 'late',
}


def test_faults_are_survived_and_counted(tmp_path):
  def judge(text, first, second, count):
    number = int(text.partition('Prompt ')[2].partition('?')[0])
    if count == 0 and (fault := FAULTS.get(number)):
      if fault != 'late':
        return fault
      time.sleep(1.5)
    if number == 4:
      return 'Both have merits. A is longer, B is shorter, I could go on.'
    if number == 5:
      return "I'm sorry, I can't compare these."
    if number == 6 and count == 0:
      return (200, '{"choices": [')
    if number == 7:
      return 'Neither.\nTie'
    return server.better(text, first, second, count)

  with server.running(judge) as running:
    page = _page(
      tmp_path,
      running,
      a=[3] * 9,
      b=[2] * 9,
      judge=dict(timeout_s=1.0, retries=2),
    )
    found = _judged(tmp_path, page)
    counts = {name: found[name] for name in ('unparsable', 'refused', 'ties')}
    assert counts == dict(unparsable=1, refused=1, ties=1)
    # Of 9, one has no answer yet and two decide nothing.
    assert found['votes'] == 6 and found['win_rate'] == 5.5 / 6
    before = len(running.asked)
    assert _judged(tmp_path, page)['votes'] == 7
    assert len(running.asked) == before + 1
  votes = judges.read(tmp_path / 'run' / 'votes.jsonl')
  assert len({vote['id'] for vote in votes}) == len(votes) == 9


def test_equal_answers_are_a_tie_that_costs_nothing(tmp_path):
  with server.running(server.better) as running:
    page = _page(tmp_path, running, a=[1, 2], b=[1, 1])
    text = (tmp_path / 'b.jsonl').read_text().replace('to b', 'to a')
    (tmp_path / 'b.jsonl').write_text(text)
    found = _judged(tmp_path, page)
    assert len(running.asked) == 1
  assert (found['ties'], found['identical'], found['win_rate']) == (1, 1, 0.75)


def test_a_judge_that_can_answer_nothing_is_not_asked_on(tmp_path):
  """It says what it was told; one refusal among answers is no reason."""
  told = (400, {'error': {'message': 'use max_completion_tokens'}})
  with server.running(lambda *_: told) as running:
    page = _page(tmp_path, running, a=[3] * 40, b=[2] * 40)
    with pytest.raises(ValueError, match='use max_completion_tokens'):
      _judged(tmp_path, page)
    assert 10 <= len(running.asked) < 20

  def moderated(text, first, second, count):
    if 'Prompt 3?' in text:
      return (403, {'error': {'message': 'flagged'}})
    return server.better(text, first, second, count)

  with server.running(moderated) as running:
    page['judge'] |= dict(base_url=running.url, max_tokens=None)
    assert _judged(tmp_path, page)['votes'] == 39


def test_a_directory_takes_other_ways_to_the_judge(tmp_path):
  with server.running(server.better) as running:
    page = _page(tmp_path, running, a=[3, 1], b=[2, 2])
    found = _judged(tmp_path, page)
    page['judge'] |= dict(concurrency=1, retries=0, prices=(1.0, 2.0))
    assert _judged(tmp_path, page) == found
    assert len(running.asked) == 2
    page['judge'] |= dict(model='another')
    with pytest.raises(ValueError, match=r'judge\.model: "the-judge" -> "anot'):
      _judged(tmp_path, page)
    page['judge'] |= dict(model='the-judge')
    with open(page['a'], 'a') as file:
      file.write('\n')
    with pytest.raises(ValueError, match=r'a \(.*a.jsonl\): SHA-256'):
      _judged(tmp_path, page)


def test_replies_that_are_cut_off(tmp_path):
  """In the midst of an emoji, and before the verdict."""

  def judge(text, first, second, count):
    if 'Prompt 0?' in text:
      return 'So sad \ud83d'
    body = dict(
      id='x',
      object='chat.completion',
      created=0,
      model='m',
      choices=[
        dict(
          index=0,
          finish_reason='length',
          message=dict(role='assistant', content='Accuracy: A'),
        )
      ],
    )
    return (200, body)

  with server.running(judge) as running:
    found = _judged(tmp_path, _page(tmp_path, running, a=[3, 1], b=[2, 2]))
  assert (found['unparsable'], found['win_rate']) == (2, None)


def test_a_key_that_is_any_word_garbles_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'e')
  with server.running(server.better) as running:
    found = _judged(tmp_path, _page(tmp_path, running, a=[3, 1], b=[2, 2]))
  assert found['win_rate'] == 0.5 and not found['unparsable']


def test_only_so_many_prompts_of_files_are_asked(tmp_path):
  with server.running(server.better) as running:
    page = _page(
      tmp_path, running, a=[3] * 9, b=[2] * 9, num_prompts=2, skip_prompts=3
    )
    # The files may have other orders.
    lines = (tmp_path / 'b.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'b.jsonl').write_text(''.join(lines[::-1]))
    assert _judged(tmp_path, page)['votes'] == 2
    numbers = [re.search(r'Prompt (\d)', text)[1] for text in running.asked]
    assert sorted(numbers) == ['3', '4']


def _command(folder, page, *flags):
  (folder / 'page.py').write_text(f'def get_config():\n  return {page!r}\n')
  command = [
    sys.executable,
    '-m',
    'dpo_jax.judge',
    f'--config={folder / "page.py"}',
    f'--workdir={folder / "run"}',
    *flags,
  ]
  env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu')
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def test_what_was_killed_asks_nothing_twice(tmp_path):
  path = tmp_path / 'run' / 'votes.jsonl'
  with server.running(server.slow(0.1)) as running:
    page = _page(tmp_path, running, a=range(1, 41), b=[20.5] * 40)
    process = _command(tmp_path, page, '--yes')
    while len(running.answered) < 15:
      assert process.poll() is None, process.communicate()[0]
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = judges.read(path)
    # All but those whose answers were on their way.
    assert 40 > len(kept) >= 15 - 2 * 4
    before = len(running.asked)
    with path.open('a') as file:
      file.write(kept[0]['id'][:9])  # As if killed while it wrote a line.
    process = _command(tmp_path, page, '--yes')
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert len(running.asked) - before == 40 - len(kept)
  votes = judges.read(path)
  assert votes[: len(kept)] == kept
  assert len({vote['id'] for vote in votes}) == len(votes) == 40
  assert 'Win rate of' in text and '50.0%' in text


def test_the_key_is_nowhere(tmp_path):
  """Though the endpoint tells it in replies and errors."""

  def judge(text, first, second, count):
    if 'Prompt 0?' in text:
      return (400, {'error': {'message': f'bad key {server.KEY}'}})
    return f'Your key is {server.KEY}.\nA'

  def refuses(*_):
    return (401, {'error': {'message': f'wrong key {server.KEY}'}})

  for name, behaviour in (('replies', judge), ('refuses', refuses)):
    folder = tmp_path / name
    folder.mkdir()
    with server.running(behaviour) as running:
      page = _page(folder, running, a=[3] * 9, b=[2] * 9)
      process = _command(folder, page, '--yes')
      text = process.communicate()[0]
    assert (process.returncode != 0) == (name == 'refuses')
    assert server.KEY not in text
    if name == 'refuses':
      assert 'wrong key [key]' in text and len(running.asked) < 9
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert len(files) > 3
    for path in files:
      assert server.KEY.encode() not in path.read_bytes(), path
  votes = (tmp_path / 'replies' / 'run' / 'votes.jsonl').read_text()
  assert 'Your key is [key].' in votes


def test_a_judge_is_a_preference_of_online_methods():
  def judge(text, first, second, count):
    return (
      "I won't."
      if '7' in first + second
      else server.better(text, first, second, count)
    )

  with server.running(judge) as running:
    preference = rewards.build_preference(
      dict(
        path='dpo_jax.judges.preference:prefer',
        options=dict(model='m', base_url=running.url, retries=0),
      )
    )
    wins = preference(['p'] * 4, list('9173'), list('2222'))
    assert wins.tolist() == [1, 0, 0.5, 1]
    assert len(running.asked) == 4
    assert preference(['p'], ['x 1'], ['x 1']).tolist() == [0.5]
    assert len(running.asked) == 4
  fails = (500, {'error': {'message': 'no'}})
  with server.running(lambda *_: fails) as running:
    options = dict(model='m', base_url=running.url, retries=0)
    with pytest.raises(ValueError, match='cannot be asked: InternalServerErr'):
      prefer(['p'] * 2, list('91'), list('22'), **options)


def test_nothing_is_asked_without_yes(tmp_path):
  with server.running(server.better) as running:
    page = _page(
      tmp_path, running, a=[3, 1], b=[2, 2], judge=dict(prices=(10.0, 30.0))
    )
    bill = r'2 questions: about \d+ tokens sent, at most 512 received, about '
    with pytest.raises(ValueError, match=rf'{bill}0.0\d in all. Give --yes'):
      judge_lib.judge(tmp_path / 'run', page)
  assert not running.asked


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(base_url='http://127.0.0.1:9/v1', retries=0), 'cannot be asked'),
    (dict(key_variable='NO_SUCH_KEY'), 'set the environment variable NO_SUCH'),
    (dict(template='dialog'), "Did you mean 'dialogue'"),
    (dict(template='no_such.txt'), 'no_such.txt'),
    (dict(concurrency=0), 'judge.concurrency is 0'),
    (dict(prices=(1.0,)), r'judge.prices is \(1.0,\); expected two'),
    (dict(key_variable='sk-mine'), 'key_variable is no name of an environm'),
    (dict(timeout_s=0.0), 'judge.timeout_s is 0.0'),
    (dict(modle='x'), "Did you mean 'model'"),
  ],
)
def test_what_cannot_be(changes, message, tmp_path):
  with server.running(server.better) as running:
    page = _page(tmp_path, running, a=[3], b=[2], judge=changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      _judged(tmp_path, page)
    assert not running.asked
  assert not (tmp_path / 'run' / 'votes.jsonl').exists()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{prompt} {first}', r"\['first', 'prompt'\]; expected"),
    ('{prompt} {first} {second} {third}', 'third'),
    ('{prompt} {first} {second} {', 'write {{ and }} for braces'),
  ],
)
def test_templates_that_cannot_be(text, message, tmp_path):
  path = tmp_path / 'template.txt'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    judges.build(dict(name='endpoint', model='m', template=str(path)))


def test_a_template_of_ones_own(tmp_path):
  path = tmp_path / 'template.txt'
  path.write_text('{{x}} {prompt}\nA: \n{first}\n\nB: \n{second}\n')
  with server.running(server.better) as running:
    page = _page(tmp_path, running, [3], [2], judge=dict(template=str(path)))
    assert _judged(tmp_path, page)['win_rate'] == 1
    assert running.asked[0].startswith('{x} Prompt 0?\nA: \nAn answer worth')
