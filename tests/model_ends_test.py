"""What a model's own files say ends a text does, whoever's tokenizer it has."""

import json
import pathlib
import shutil
import subprocess
import sys

import gguf
import pytest
import transformers

from dpo_jax import export, pairs, tokenizers, train, weights
from dpo_jax.evals import samples
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
  """data and model/, which lacks a tokenizer; that is in tokenizer/."""
  tiny.write(tmp_path)
  (tmp_path / 'tokenizer').mkdir()
  for path in (tmp_path / 'model').glob('tokenizer*'):
    shutil.move(path, tmp_path / 'tokenizer')
  return tmp_path


def _say(folder, name, ends):
  """Writes what ends a text into a file of the model."""
  path = folder / 'model' / name
  values = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(values | {'eos_token_id': ends}))


def _stops(folder, model='model'):
  return tokenizers.load(
    str(folder / 'tokenizer'), model=str(folder / model)
  ).stop_ids


def test_both_say_what_ends_a_text(folder):
  """<eos>, 0, is the tokenizer's; generation_config.json goes first."""
  assert _stops(folder) == (0,)
  assert _stops(folder, 'tokenizer') == (0,)
  for ends, expected in ((2, (0, 2)), ([0, 2], (0, 2)), ([5, 0], (0, 5))):
    _say(folder, 'config.json', ends)
    assert _stops(folder) == expected
  _say(folder, 'generation_config.json', [0, 7, 9])
  assert _stops(folder) == (0, 7, 9)


def test_a_gguf_file_says_what_ends_a_text(folder):
  assert _stops(folder, 'tokenizer') == (0,)
  writer = gguf.GGUFWriter(folder / 'm.gguf', 'llama')
  writer.add_eos_token_id(3)
  writer.add_eot_token_id(4)
  writer.add_uint32('tokenizer.ggml.eom_token_id', 5)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  assert _stops(folder, 'm.gguf') == (0, 3, 4, 5)


def _model(folder):
  return dict(uri=str(folder / 'model'), tokenizer=str(folder / 'tokenizer'))


def _page(folder):
  page = tiny.page(folder) | dict(steps=1, log_every=1, eval_every=1)
  page['model'] |= _model(folder)
  page['checkpoints'] = dict(every=1, keep=1)
  page['schedule']['warmup_steps'] = 0
  return page


def test_runs_and_exports_keep_them(folder):
  _say(folder, 'config.json', [0, 2])
  page = _page(folder)
  run, out = folder / 'run', folder / 'out'
  train.train(run, page)
  config = json.loads((run / 'params' / 'config.json').read_text())
  assert config['eos_token_id'] == [0, 2]
  for source in (
    export.choose(str(run)),
    export.choose(str(run), checkpoint='latest'),
    export.choose(str(folder / 'model'), tokenizer=str(folder / 'tokenizer')),
  ):
    export.export(source, out)
    for name in ('config.json', 'generation_config.json'):
      assert json.loads((out / name).read_text())['eos_token_id'] == [0, 2]
    found = transformers.GenerationConfig.from_pretrained(out)
    assert found.eos_token_id == [0, 2]
    shutil.rmtree(out)


@pytest.mark.long
def test_samples_end_there(folder):
  """Whatever such a model says first ends its text: all tokens do."""
  size = weights.read_config(str(folder / 'model')).vocab_size
  _say(folder, 'config.json', list(range(size)))
  page = _page(folder)
  page['samples'] = dict(every=1, num_prompts=2, num_samples=4)
  page['samples']['max_new_tokens'] = 6
  train.train(folder / 'run', page)
  rows = samples.read(folder / 'run' / 'samples' / '000001.jsonl')

  out = folder / 'samples.jsonl'
  flags = [f'--config.model.{k}={v}' for k, v in _model(folder).items()]
  flags += ['--config.max_new_tokens=6', f'--out={out}']
  subprocess.run(
    [sys.executable, '-m', 'dpo_jax.sample', *flags, 'The film', 'The plot'],
    cwd=ROOT,
    check=True,
  )
  rows += samples.read(out)
  assert len(rows) == 10
  assert {row['length'] for row in rows} == {1}
  assert all(row['ended'] for row in rows)

  data = page['train_data'] | dict(kind='sft')
  made = pairs.make(
    folder / 'pairs',
    dict(
      seed=0,
      model=_model(folder),
      data=data,
      num_prompts=3,
      num_completions=2,
      max_new_tokens=6,
      temperature=1.0,
      top_k=None,
      top_p=None,
      batch_size=4,
      reward='vader',
    ),
  )
  texts = [text for row in samples.read(made) for text in row['completions']]
  assert texts == [''] * 6
