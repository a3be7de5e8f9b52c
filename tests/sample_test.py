"""The sample door: prompts in, samples out, a chat through a pipe."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tokenizers as hf_tokenizers

from configs import sample as page
from dpo_jax import (
  defaults,
  models,
  registry,
  sample,
  tokenizers,
  weights,
)
from dpo_jax.data import prompts as prompts_lib
from dpo_jax.evals import best_of_n, samples

ROOT = pathlib.Path(__file__).parent.parent
TEXTS = ['The film is superb.', 'Her acting is dull!', 'user assistant system']
TEMPLATE = (
  '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}'
  '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny random Llama with its tokenizer and chat template."""
  path = tmp_path_factory.mktemp('tiny') / 'model'
  tokenizer = hf_tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(TEXTS * 9, 280, special_tokens=['<eos>'])
  config = models.ModelConfig(
    vocab_size=tokenizer.get_vocab_size(),
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=16,
    max_positions=96,
    tie_embeddings=True,
  )
  weights.save(path, config, models.init(jax.random.key(0), config))
  tokenizer.save(str(path / 'tokenizer.json'))
  settings = {'eos_token': '<eos>', 'chat_template': TEMPLATE}
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return path


@pytest.fixture(scope='module')
def tokenizer(folder):
  return tokenizers.load(folder)


def _command(*args, stdin='', path=str(ROOT), **env):
  env = dict(os.environ, PYTHONPATH=path) | env
  return subprocess.run(
    [sys.executable, '-m', 'dpo_jax.sample', *args],
    cwd=ROOT,
    env=env,
    input=stdin,
    capture_output=True,
    text=True,
  )


def test_prompts_of_a_file_give_rows(folder, tmp_path):
  prompts, out = tmp_path / 'prompts.jsonl', tmp_path / 'out.jsonl'
  asked = [{'role': 'user', 'content': 'dull?'}]
  lines = [{'prompt': 'The film'}, {'prompt': asked, 'chosen': 'x'}]
  prompts.write_text('\n\n'.join(map(json.dumps, lines)))
  done = _command(
    f'--config.model.uri={folder}',
    f'--prompts={prompts}',
    f'--out={out}',
    '--config.num_samples=3',
    '--config.max_new_tokens=5',
    '--config.batch_size=1',
  )
  assert not done.returncode, done.stderr
  rows = [json.loads(line) for line in out.read_text('utf-8').splitlines()]
  assert [row['prompt'] for row in rows] == (
    ['The film'] * 3 + ['<|user|>dull?\n<|assistant|>'] * 3
  )
  assert len({row['text'] for row in rows}) > 3
  assert all(row['length'] <= 5 for row in rows)
  assert done.stdout.count('  sample  ') == 6 and '  The film' in done.stdout


@pytest.mark.long
def test_compiled_programs_are_kept(folder, tmp_path):
  env = dict(
    DPO_JAX_CACHE=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0'
  )
  shown, kept = [], []
  for _ in range(2):
    done = _command(
      'The film',
      f'--config.model.uri={folder}',
      '--config.max_new_tokens=5',
      **env,
    )
    assert not done.returncode, done.stderr
    shown.append(done.stdout)
    files = [p for p in (tmp_path / 'compiled').iterdir() if p.is_file()]
    kept.append({p.name: p.stat().st_mtime_ns for p in files})
  assert shown[0] == shown[1]
  assert any('advance' in name for name in kept[0])
  # The second command wrote no program, but noted which it read.
  assert kept[0].keys() == kept[1].keys() and kept[0] != kept[1]


def _run(folder, **values):
  values = defaults.sampling().to_dict() | values
  values['model']['uri'] = str(folder)
  return registry.bind(sample.check, values, 'the config')()


def test_the_seed_decides(folder, tokenizer):
  texts, mesh = [], dict(devices=2, fsdp=2)
  for seed in (3, 3, 4):
    run = _run(folder, seed=seed, max_new_tokens=5, batch_size=1, mesh=mesh)
    config, params = sample.load(run.sampling, tokenizer, [])
    table = params['embed']['tokens']
    assert table.addressable_data(0).size == table.size / 2
    # The same prompt in two parts: each has a key of its own.
    parts = list(sample.sample(run, params, config, tokenizer, [[5]] * 9))
    assert list(map(len, parts)) == [8, 1]
    texts.append([row['text'] for rows in parts for row in rows])
  assert texts[0] == texts[1] != texts[2]
  assert texts[0][0] != texts[0][8]


def test_flags_may_follow_prompts_and_greedy_samples_agree(folder):
  done = _command(
    'The film',
    '--config=configs/sample.py',
    f'--config.model.uri={folder}',
    '--config.temperature=0',
    '--config.num_samples=2',
    'dull',
    '--config.max_new_tokens=4',
    '--chat_format',
  )
  assert not done.returncode, done.stderr
  shown = done.stdout
  first, second = '<|user|>The film', '<|user|>dull'
  assert shown.index(first) < shown.index(second)
  of_first = shown[: shown.index(second)].split('  sample  ')
  assert len(of_first) == 3
  assert of_first[1].split() == of_first[2].split()[: len(of_first[1].split())]


def test_a_chat_streams_remembers_and_forgets(folder):
  lines = [
    'The film',
    'dull',
    '/reset',
    '/nothing',
    '',
    'x' * 99,
    '/quit',
    'no',
  ]
  done = _command(
    '--chat',
    f'--config.model.uri={folder}',
    '--config.max_new_tokens=4',
    '--config.temperature=0',
    stdin='\n'.join(lines),
  )
  assert not done.returncode, done.stderr
  help_line, *answers = done.stdout.split('\n')
  assert '/reset' in help_line
  assert "No command '/nothing'" in answers[-3]
  assert 'model has 96 positions: /reset' in answers[-2]
  assert answers[-1] == '' and len(answers) >= 5


class _Heard:
  """Stands for `sampling`: keeps what it is given and answers in order."""

  def __init__(self, answers):
    self.answers, self.given = list(answers), []

  def stream(self, params, config, prompt_ids, **options):
    self.given.append((prompt_ids, options))
    yield from self.answers.pop(0)


def _chat(monkeypatch, tokenizer, said, answers):
  """What a chat printed, and what the model was asked."""
  config = models.ModelConfig(
    vocab_size=tokenizer.vocab_size,
    num_layers=1,
    d_model=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    d_ff=8,
    max_positions=96,
  )
  heard, said = _Heard(answers), iter(said)
  monkeypatch.setattr(sample, 'sampling', heard)
  monkeypatch.setattr('builtins.input', lambda prompt: next(said))
  sample.chat(_run('somewhere').sampling, None, config, tokenizer)
  return heard.given


def test_a_turn_sees_the_turns_before_it(monkeypatch, tokenizer, capsys):
  eos = tokenizer.eos_id
  answers = [
    [*tokenizer.encode('Été 🎬'), eos],
    tokenizer.encode('cut'),
    [eos],
  ]
  said = ['one', ' two ', '/reset', 'three', '/quit']
  given = _chat(monkeypatch, tokenizer, said, answers)
  prompts = [tokenizer.decode(ids) for ids, _ in given]
  assert prompts == [
    '<|user|>one\n<|assistant|>',
    '<|user|>one\n<|assistant|>Été 🎬\n<|user|>two\n<|assistant|>',
    '<|user|>three\n<|assistant|>',
  ]
  assert capsys.readouterr().out.split('\n')[1:] == ['Été 🎬', 'cut', '', '']
  keys = [jax.random.key_data(o['key']).tolist() for _, o in given]
  assert keys[0] != keys[1] != keys[2]
  room = [o['max_new_tokens'] for _, o in given]
  assert room == [96 - len(ids) for ids, _ in given]


def test_half_a_character_waits_for_its_other_half(
  monkeypatch, tokenizer, capsys
):
  seen = []

  class Watched(list):
    def __iter__(self):
      for token in super().__iter__():
        yield token
        seen.append(capsys.readouterr().out)

  ids = tokenizer.encode('a🎬')
  assert len(ids) == 5
  _chat(monkeypatch, tokenizer, ['hello', '/quit'], [Watched(ids)])
  assert seen[0].endswith('\na') and seen[1:] == ['', '', '', '🎬']


def test_an_interrupted_answer_is_kept(monkeypatch, tokenizer, capsys):
  def interrupted():
    yield from tokenizer.encode('so far')
    raise KeyboardInterrupt

  given = _chat(
    monkeypatch, tokenizer, ['a', 'b', '/quit'], [interrupted(), []]
  )
  assert '<|assistant|>so far\n<|user|>b' in tokenizer.decode(given[1][0])
  assert 'so far\n' in capsys.readouterr().out


def test_the_best_of_several_is_kept(folder, tmp_path):
  """Of what the same command without --best_of draws."""
  prompts, out = tmp_path / 'prompts.txt', tmp_path / 'out.jsonl'
  all_of_them, curve = tmp_path / 'all.jsonl', tmp_path / 'curve.json'
  prompts.write_text('The film is superb\nHer acting\nuser')
  module = tmp_path / f'reward_{tmp_path.name}.py'
  module.write_text('def f(prompts, texts):\n  return list(map(len, texts))\n')
  common = [
    f'--config.model.uri={folder}',
    f'--prompts={prompts}',
    '--config.reward.name=function',
    f'--config.reward.path={module.stem}:f',
    '--config.max_new_tokens=5',
    '--config.batch_size=2',
  ]
  path = os.pathsep.join([str(ROOT), str(tmp_path)])
  best = _command(
    *common, '--best_of=4', f'--out={out}', f'--curve={curve}', path=path
  )
  assert not best.returncode, best.stderr
  done = _command(
    *common, '--config.num_samples=4', f'--out={all_of_them}', path=path
  )
  assert not done.returncode, done.stderr
  drawn, kept = samples.read(all_of_them), samples.read(out)
  assert [row['function'] for row in drawn] == [
    len(row['text']) for row in drawn
  ]
  assert len(drawn) == 12 and len(kept) == 3
  for i, row in enumerate(kept):
    most = max(drawn[4 * i : 4 * i + 4], key=lambda row: row['function'])
    assert row == most | {'best_of': 4}
  assert len({row['function'] for row in drawn}) > 3
  for shown, rows in ((best.stdout, kept), (done.stdout, drawn)):
    found = re.findall(r'  reward  (\S+) \(function\)', shown)
    assert list(map(float, found)) == [row['function'] for row in rows]
  scores = np.reshape([row['function'] for row in drawn], (3, 4))
  expected = best_of_n.make_curve(scores, 'function')
  assert json.loads(curve.read_text()) == expected._asdict()
  assert curve.with_suffix('.png').exists()


def test_the_page_shows_the_values_without_a_page():
  shown, default = page.get_config().to_dict(), defaults.sampling().to_dict()
  assert shown['model'].pop('uri') and default['model'].pop('uri') is None
  assert shown == default


ERRORS = {
  'no model': (['a'], 'Set --config.model.uri'),
  'no prompts': (['--config.model.uri={model}'], 'No prompts'),
  'two ways': (['--config.model.uri={model}', 'a', '--chat'], 'Too many ways'),
  'no such file': (
    ['--config.model.uri={model}', '--prompts={folder}/promts.jsonl'],
    "Did you mean 'prompts.jsonl'",
  ),
  'no such model': (
    ['--config.model.uri={folder}/modle', 'a'],
    "Did you mean 'model'",
  ),
}


_first, *_others = ERRORS


@pytest.mark.parametrize(
  'name',
  [_first, *(pytest.param(n, marks=pytest.mark.long) for n in _others)],
)
def test_errors_are_a_line(name, folder):
  (folder.parent / 'prompts.jsonl').write_text('')
  args, message = ERRORS[name]
  places = dict(model=folder, folder=folder.parent)
  done = _command(*(arg.format(**places) for arg in args))
  assert done.returncode == 1 and message in done.stderr
  assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_a_chat_needs_a_template(folder, tmp_path):
  bare = tmp_path / 'bare'
  bare.mkdir()
  for file in folder.iterdir():
    (bare / file.name).symlink_to(file)
  (bare / 'tokenizer_config.json').unlink()
  (bare / 'tokenizer_config.json').write_text('{"eos_token": "<eos>"}')
  done = _command('--chat', f'--config.model.uri={bare}')
  assert done.returncode == 1 and 'no chat template' in done.stderr


BAD_LINES = {
  'not JSON': ('{"prompt": ', 'Expecting value'),
  'no prompt': ('{"text": "a"}', 'no prompt'),
  'a list': ('["a"]', 'an object was expected'),
  'a number': ('{"prompt": 3}', 'not 3'),
  'no messages': ('{"prompt": []}', 'empty list of messages'),
  'answered': (
    '{"prompt": [{"role": "assistant", "content": "x"}]}',
    "ends with 'assistant'",
  ),
}


@pytest.mark.parametrize('name', BAD_LINES)
def test_a_bad_line_is_named(name, tokenizer, tmp_path):
  line, message = BAD_LINES[name]
  file = tmp_path / 'prompts.jsonl'
  file.write_text(f'{{"prompt": "good"}}\n\n{line}\n')
  with pytest.raises(ValueError, match=f'prompts.jsonl:3: .*{message}'):
    prompts = prompts_lib.read(str(file))
    prompts_lib.encode(prompts, tokenizer, chat_format=False)


def test_lines_of_a_text_file_are_prompts(tokenizer, tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_text('The film\n \n  is dull\n')
  prompts = prompts_lib.read(str(file))
  ids = prompts_lib.encode(prompts, tokenizer, chat_format=False)
  assert list(map(tokenizer.decode, ids)) == ['The film', '  is dull']
  asked = prompts_lib.encode(prompts[:1], tokenizer, chat_format=True)
  assert tokenizer.decode(asked[0]) == '<|user|>The film\n<|assistant|>'
  # Nothing at all is continued from the root alone.
  nothing = [prompts_lib.Prompt('', 'prompt 1')]
  assert prompts_lib.encode(nothing, tokenizer, chat_format=False) == [[0]]
  file.rename(tmp_path / 'prompts.csv')
  with pytest.raises(ValueError, match='does not end with'):
    prompts_lib.read(str(tmp_path / 'prompts.csv'))
  (tmp_path / 'empty.txt').write_text('\n')
  with pytest.raises(ValueError, match='holds no prompts'):
    prompts_lib.read(str(tmp_path / 'empty.txt'))


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('seed', -1),
    ('num_samples', 0),
    ('max_new_tokens', 0),
    ('batch_size', 0),
    ('temperature', -1),
    ('top_k', 0),
    ('top_p', 1.5),
  ],
)
def test_impossible_values_are_errors(option, value):
  with pytest.raises(ValueError, match=f'{option} is {value}'):
    _run('somewhere', **{option: value})


def test_a_prompt_that_leaves_no_room_is_an_error(folder, tokenizer):
  prompts = [[5] * 90, [5] * 91]
  run = _run(folder, max_new_tokens=6)
  sample.load(run.sampling, tokenizer, prompts[:1])
  with pytest.raises(ValueError, match=r'Prompt 2 has 91 .* leaves 90'):
    sample.load(run.sampling, tokenizer, prompts)


def test_a_tokenizer_of_another_model_is_an_error(folder, tokenizer):
  larger = types.SimpleNamespace(vocab_size=tokenizer.vocab_size + 1)
  with pytest.raises(ValueError, match='they belong to two models'):
    sample.load(_run(folder).sampling, larger, [])
