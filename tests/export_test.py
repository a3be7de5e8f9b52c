"""The door out: what `transformers` makes of an exported folder."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util

from dpo_jax import (
  export,
  models,
  sampling,
  tokenizers,
  train,
  types,
  weights,
)
from dpo_jax.models import decoder, parallel
from dpo_jax.training import checkpoints, metrics, sharding
from tests import tiny
from tests.weights import gguf_file_test

ROOT = pathlib.Path(__file__).parent.parent
TEMPLATE = '{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}'
PROMPT = 'The film'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run of a tiny model with a chat template."""
  folder = tmp_path_factory.mktemp('exported')
  tiny.write(folder, num_train=16)
  path = folder / 'model' / 'tokenizer_config.json'
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'chat_template': TEMPLATE})
  )
  config = tiny.page(folder)
  config |= dict(steps=4, log_every=2, eval_every=2)
  config['checkpoints'] = dict(every=2, keep=2, best='eval/loss')
  train.train(folder / 'run', config)
  return folder / 'run'


@pytest.fixture(scope='module')
def exported(run):
  """The run's folder, exported by the command."""
  out = run.parent / 'out'
  done = _command(str(run), f'--out={out}')
  assert not done.returncode, done.stderr
  return out


def _command(*args):
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  command = [sys.executable, '-m', 'dpo_jax.export', *args]
  return subprocess.run(
    command, cwd=ROOT, env=env, capture_output=True, text=True
  )


def _export(source, out, checkpoint=None, tokenizer=None, **options):
  chosen = export.choose(
    str(source), checkpoint=checkpoint, tokenizer=tokenizer
  )
  export.export(chosen, out, **options)
  return out


def _flat(params):
  return {
    name: np.asarray(x)
    for name, x in traverse_util.flatten_dict(params, sep='/').items()
  }


def _same(a, b):
  """Whether two trees have the same bits."""
  a, b = _flat(a), _flat(b)
  return a.keys() == b.keys() and all(
    a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
  )


def _theirs(folder, **options):
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, **options
  )
  assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'))
  return model.eval()


def _compare_logits(folder, config, params):
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
  hidden = models.forward(
    params, config, jnp.asarray(ids), decoder.plain_layout(2, 9)
  )
  ours = np.asarray(models.logits(params, config, hidden))
  with torch.no_grad():
    model = _theirs(folder, dtype=torch.float32)
    theirs = model(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_transformers_reads_a_run(run, exported):
  """The logits, the greedy text and the chat of what was trained."""
  config, params = weights.load(run / 'params')
  assert _same(weights.load(exported)[1], params)
  _compare_logits(exported, config, params)

  ours = tokenizers.load(run / 'params')
  theirs = transformers.AutoTokenizer.from_pretrained(exported)
  ids = theirs(PROMPT, return_tensors='pt')
  assert ids.input_ids[0].tolist() == ours.encode(PROMPT)
  # Start, end and filling are those of generation_config.json.
  model = _theirs(exported)
  assert model.generation_config.eos_token_id == ours.eos_id
  assert model.generation_config.pad_token_id == ours.eos_id
  found = model.generate(**ids, max_new_tokens=12, do_sample=False)[0]
  drawn = sampling.sample(
    params,
    config,
    [ours.encode(PROMPT)],
    key=jax.random.key(0),
    max_new_tokens=12,
    num_samples=1,
    eos_id=ours.eos_id,
    temperature=0.0,
  )
  length = int(drawn.lengths_BxS[0, 0])
  new = found[len(ids.input_ids[0]) :].tolist()
  assert new == drawn.tokens_BxSxT[0, 0, :length].tolist()
  assert theirs.decode(new) == ours.decode(new)

  chat = [{'role': 'user', 'content': 'dull?'}]
  rendered = theirs.apply_chat_template(chat, tokenize=False)
  assert rendered == ours.apply_chat(chat) == 'user: dull?'


def test_the_card_says_how_the_run_went(run, exported):
  text = (exported / 'README.md').read_text('utf-8')
  for said in (
    f'| Base model | `{run.parent / "model"}` |',
    '| Objective | dpo: beta=0.1, label_smoothing=0.0, ',
    f'| Reference | `{run.parent / "model"}` |',
    f'path={run.parent / "train.jsonl"}',
    f'path={run.parent / "eval.jsonl"}',
    '| Steps | 4, of 8 examples each; planned: 4 steps |',
    'stored as float32',
    f'jax {jax.__version__}',
    '\n- dpo\n---\n',
  ):
    assert said in text
  last = metrics.read_jsonl(run / 'metrics.jsonl')[-1]
  assert '| Held out, 21 examples | step 0 | step 4 | 95 % interval |' in text
  for name in ('rewards/accuracies', 'rewards/margins', 'loss'):
    shown = text.partition(f'\n| {name} |')[2].partition('\n')[0].split('|')
    assert float(shown[1]) == pytest.approx(last[f'eval/{name}'], abs=1e-4)
    ends = [last.get(f'eval/{name}_{end}') for end in ('low', 'high')]
    expected = '' if None in ends else '{:.4f} to {:.4f}'.format(*ends)
    assert shown[2].strip() == expected

  page = exported / 'training_config.py'
  spec = importlib.util.spec_from_file_location('page', page)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.get_config().to_dict() == json.loads(
    (run / 'config.json').read_text()
  )


@pytest.fixture(scope='module')
def unfinished(run):
  """The run as if it had been stopped before its end."""
  path = run.parent / 'unfinished'
  shutil.copytree(run, path, ignore=shutil.ignore_patterns('params', '.lock'))
  return path


def test_checkpoints_are_exported_without_the_data(run, unfinished, tmp_path):
  config = json.loads((unfinished / 'config.json').read_text())
  for part in ('train', 'eval'):
    config[f'{part}_data']['path'] = f'/nowhere/{part}.jsonl'
  (unfinished / 'config.json').write_text(json.dumps(config))
  _, trained = weights.load(run / 'params')
  rows = metrics.read_jsonl(run / 'metrics.jsonl')
  losses = {r['step']: r['eval/loss'] for r in rows if 'eval/loss' in r}
  best = min((2, 4), key=losses.get)
  for checkpoint, step in ((None, 4), ('latest', 4), ('best', best), ('2', 2)):
    out = _export(unfinished, tmp_path / str(checkpoint), checkpoint)
    assert _same(weights.load(out)[1], trained) == (step == 4)
    text = (out / 'README.md').read_text()
    assert f'| Steps | {step}, of' in text
    assert f'| loss | 0.6931 | {losses[step]:.4f} |' in text


def test_a_checkpoint_of_many_devices_is_exported_by_one(run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(run, folder, ignore=shutil.ignore_patterns('checkpoints'))
  config, params = weights.load(run / 'params')
  mesh = sharding.make_mesh(data=1, fsdp=4, devices=4)
  split = jax.device_put(params, parallel.shardings(mesh, config))
  state = types.TrainState(jnp.int32(4), split, None, None, jax.random.key(0))
  with checkpoints.open(folder / 'checkpoints', keep=1) as saved:
    saved.save(4, state, {})
  done = _command(
    str(folder), f'--out={tmp_path / "out"}', '--checkpoint=latest'
  )
  assert not done.returncode, done.stderr
  assert _same(weights.load(tmp_path / 'out')[1], params)


def test_what_has_no_weights_is_refused(run, unfinished, tmp_path):
  bare = tmp_path / 'bare'
  bare.mkdir()
  shutil.copy(run / 'config.json', bare)
  with pytest.raises(ValueError, match=r'no metrics\.jsonl. It holds: config'):
    _export(bare, tmp_path / 'out')
  shutil.copy(run / 'metrics.jsonl', bare)
  for source, checkpoint, said in (
    (run.parent, None, r'no config\.json; it holds: .*model.*run'),
    (bare, None, 'no checkpoints. It holds: config.json, metrics.jsonl'),
    (unfinished, 'params', 'not ended. It holds: checkpoints of steps 2, 4'),
    (run / 'params' / '..' / '..' / 'model', 'best', 'no directory of one'),
  ):
    with pytest.raises(ValueError, match=said):
      _export(source, tmp_path / 'out', checkpoint)
  for checkpoint in ('3', 'lastest'):
    with pytest.raises(ValueError, match=f"'{checkpoint}'.*Known: 2, 4"):
      _export(unfinished, tmp_path / 'out', checkpoint)
  with pytest.raises(ValueError, match=r"'bfloat61'.*Did you mean 'bfloat16'"):
    _export(run, tmp_path / 'out', dtype='bfloat61')
  with pytest.raises(FileNotFoundError, match='runz'):
    _export(run.with_name('runz'), tmp_path / 'out')
  with pytest.raises(ValueError, match=r"'5 boxes'.*5GB"):
    export.parse_size('5 boxes')
  assert export.parse_size('1.5 gb') == 1_500_000_000
  assert not (tmp_path / 'out').exists()


def test_the_command_says_what_is_wrong(run, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'mine').write_text('kept')
  done = _command(str(run), f'--out={tmp_path / "full"}')
  assert done.returncode == 1 and 'give a new folder' in done.stderr
  assert 'Traceback' not in done.stderr
  assert (tmp_path / 'full' / 'mine').read_text() == 'kept'


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
  def fail(*args):
    raise OSError('full')

  monkeypatch.setattr(export, '_generation', fail)
  with pytest.raises(OSError, match='full'):
    _export(run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_shards_and_rounding(run, tmp_path):
  """Files of the given size hold the trained values, rounded to nearest."""
  config, params = weights.load(run / 'params')
  out = _export(run, tmp_path / 'out', dtype='bfloat16', max_shard_bytes=30_000)
  shards = sorted(p.name for p in out.glob('*.safetensors'))
  assert len(shards) > 1 and shards[0] == (
    f'model-00001-of-{len(shards):05d}.safetensors'
  )
  assert max((out / name).stat().st_size for name in shards) < 32_000
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert _same(weights.load(out, dtype=jnp.bfloat16)[1], rounded)
  assert _theirs(out, dtype='auto').dtype == torch.bfloat16
  _compare_logits(out, config, weights.load(out)[1])


def test_what_float16_cannot_hold_is_refused(tmp_path, exported):
  config, params = weights.load(exported)
  params['final_norm']['scale'] = params['final_norm']['scale'] * 1e6
  weights.save(tmp_path / 'model', config, params)
  with pytest.raises(ValueError, match=r'model\.norm\.weight.*65504'):
    _export(
      tmp_path / 'model',
      tmp_path / 'out',
      tokenizer=str(exported),
      dtype='float16',
    )
  out = _export(exported, tmp_path / 'half', dtype='float16')
  assert _theirs(out, dtype='auto').dtype == torch.float16
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_come_back_bit_for_bit(dtype, exported, tmp_path):
  """Folder to folder; the second has no trace of the first's run."""
  first = _export(exported, tmp_path / 'first', dtype=dtype)
  second = _export(first, tmp_path / 'second', dtype=dtype)
  for file in ('model.safetensors', 'config.json', 'tokenizer.json'):
    assert (first / file).read_bytes() == (second / file).read_bytes()
  assert _same(weights.load(first)[1], weights.load(second)[1])
  text = (second / 'README.md').read_text()
  assert f'`{first}`, converted' in text and '## Results' not in text
  assert not (second / 'training_config.py').exists()


def test_a_gguf_file_becomes_a_folder(exported, tmp_path, monkeypatch):
  tokenizer = tokenizers.load(exported)
  monkeypatch.setattr(gguf_file_test, '_V', tokenizer.vocab_size)
  tensors = gguf_file_test._llama_tensors(np.random.default_rng(0))
  tensors = {name: x / 9 for name, x in tensors.items()}
  gguf_file_test._write(
    tmp_path / 'x.gguf', tensors, kind=gguf_file_test._Q.Q8_0
  )
  out = _export(tmp_path / 'x.gguf', tmp_path / 'out', tokenizer=str(exported))
  config, params = weights.load(tmp_path / 'x.gguf')
  assert _same(weights.load(out)[1], params)
  _compare_logits(out, config, params)
