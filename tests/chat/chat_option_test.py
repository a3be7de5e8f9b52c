"""Text for a model that has a chat template: said, and rendered on request."""

import json
from unittest import mock

import pytest
from absl import logging

from dpo_jax import data, pairs, settings, tokenizers
from dpo_jax.data import prompts as prompts_lib
from tests import builds, tiny

TEMPLATE = (
  '{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}'
  '{% if add_generation_prompt %}[assistant]{% endif %}'
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('chat')
  tiny.write(folder, num_train=8)
  path = folder / 'model' / 'tokenizer_config.json'
  config = json.loads(path.read_text()) | {'chat_template': TEMPLATE}
  path.write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize('chat', [False, True])
def test_text_for_such_a_model_is_said_once(folder, chat):
  page = tiny.page(folder)
  for part in ('train', 'eval'):
    page[f'{part}_data'] |= {'chat': chat}
  run = settings.of(page)
  with mock.patch.object(logging, 'warning') as warning:
    built = builds.load(run)
  said = [
    call.args[0] % call.args[1:]
    for call in warning.call_args_list
    if 'data.chat=True' in call.args[0]
  ]
  assert len(said) == (0 if chat else 1)
  assert chat or '8 of 8 training records are text' in said[0]
  prompt = built.tokenizer.decode(built.data.train.prompt(0).tolist())
  assert prompt.startswith('[user]') is chat


def test_pairs_of_conversations_are_read_as_they_were_sampled(folder, tmp_path):
  section = dict(
    source='jsonl',
    path=str(folder / 'train.jsonl'),
    kind='sft',
    max_length=60,
    max_prompt_length=40,
    chat=True,
  )
  config = dict(
    seed=0,
    model=dict(uri=str(folder / 'model'), tokenizer=None, dtype='float32'),
    data=section,
    num_prompts=2,
    num_completions=2,
    max_new_tokens=3,
    temperature=1.0,
    top_k=None,
    top_p=None,
    batch_size=2,
    reward='vader',
  )
  with mock.patch.object(logging, 'warning') as warning:
    path = pairs.make(tmp_path / 'run', config)
  (said,) = (c.args[0] for c in warning.call_args_list)
  assert "control_tokens='tokens'" in said
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  again = tmp_path / 'again.jsonl'
  again.write_text(
    ''.join(
      json.dumps({'prompt': row['prompt'], 'completion': ' x'}) + '\n'
      for row in rows
    )
  )
  tokenizer = tokenizers.load(config['model']['uri'])
  asked = data.load(section, tokenizer=tokenizer)
  section |= {'path': str(again), 'chat': False, 'control_tokens': 'tokens'}
  read = data.load(section, tokenizer=tokenizer)
  for i in range(2):
    assert read.prompt(i).tolist() == asked.prompt(i).tolist()
    assert tokenizer.eos_id in read.prompt(i)


def test_prompts_alone_are_those_of_sampling(folder, tmp_path):
  """kind='prompts' reads what `sample --prompts` reads."""
  user = {'role': 'user', 'content': 'Who? <eos>'}
  rows = [
    {'prompt': [user]},
    {'messages': [{'role': 'system', 'content': 'Be brief.'}, user]},
    {'prompt': 'Who?', 'system': 'Be brief.'},
    {'prompt': [user], 'completion': 'Me.'},
  ]
  path = tmp_path / 'prompts.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  tokenizer = tokenizers.load(str(folder / 'model'))
  options = dict(max_length=99, max_prompt_length=90, chat=True)
  section = dict(source='jsonl', path=str(path), kind='prompts', **options)
  found = data.load(section, tokenizer=tokenizer)
  asked = prompts_lib.encode(
    prompts_lib.read(str(path)), tokenizer, chat_format=True
  )
  assert [found.prompt(i).tolist() for i in range(4)] == asked
