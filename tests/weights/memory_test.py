"""Peak memory of loading and exporting a checkpoint, in its own process.

  python -m tests.weights.memory_test FOLDER TOKENIZER OUT

prints what the export of a bfloat16 checkpoint took.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

ROOT = pathlib.Path(__file__).parents[2]
# Of the model, what an export may take beside what that of a small one takes.
LIMIT = 1.3


def write(folder, config) -> int:
  """A checkpoint in bfloat16, all its values 1; the number of its bytes."""
  from dpo_jax import weights
  from dpo_jax.models import specs

  one = np.ones((), ml_dtypes.bfloat16)
  shapes = {k: s.shape for k, s in specs.flat_specs(config).items()}
  params = {k: np.broadcast_to(one, shape) for k, shape in shapes.items()}
  params = traverse_util.unflatten_dict(params, sep='/')
  weights.save(folder, config, params, dtype=one.dtype)
  return 2 * sum(map(math.prod, shapes.values()))


def _status() -> dict[str, int]:
  """Bytes of resident memory: all, what is no file, pages of files."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  fields = dict(line.split(':', 1) for line in lines)
  names = ('VmRSS', 'RssAnon', 'RssFile')
  return {name: 1024 * int(fields[name].split()[0]) for name in names}


class Peak:
  """The peak of each, sampled every 5 ms."""

  def __init__(self):
    self.before, self.seen = _status(), _status()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch)

  def _watch(self):
    while not self._ended.wait(0.005):
      now = _status()
      self.seen = {name: max(now[name], self.seen[name]) for name in now}

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    self._thread.join()


def measure(folder: str, tokenizer: str, out: str) -> dict:
  """Peaks in bytes above what an export of a small model leaves; seconds.

  `tokenizer` is such a model.
  """
  from dpo_jax import export

  export.export(export.choose(tokenizer), f'{out}_small')
  source = export.choose(folder, tokenizer=tokenizer)
  began = time.monotonic()
  with Peak() as peak:
    export.export(source, out, dtype='bfloat16')
  above = {name: peak.seen[name] - peak.before[name] for name in peak.seen}
  return {
    'before': peak.before['VmRSS'],
    **above,
    'seconds': round(time.monotonic() - began, 1),
  }


@pytest.mark.long
@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='needs /proc'
)
def test_an_export_takes_little_more_than_the_model(tmp_path):
  """A model of 0.2 billion parameters in 8 layers."""
  from dpo_jax import models
  from tests import tiny

  tiny.write(tmp_path)
  # GPT-2's kind, nearly all of it in two leaves: a copy of one would show.
  config = models.ModelConfig(
    vocab_size=8192,
    num_layers=8,
    d_model=1024,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    d_ff=10_240,
    max_positions=64,
    norm='layer',
    positions='learned',
    activation='gelu_tanh',
    gated_mlp=False,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    tie_embeddings=True,
  )
  size = write(tmp_path / 'large', config)
  assert size > 400e6
  done = subprocess.run(
    [sys.executable, '-m', 'tests.weights.memory_test']
    + [str(tmp_path / name) for name in ('large', 'model', 'out')],
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['VmRSS'] < LIMIT * size, found
  same = [
    (tmp_path / name / 'model.safetensors').read_bytes()
    for name in ('large', 'out')
  ]
  assert same[0] == same[1]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_saving_holds_one_tensor_at_a_time(dtype, tmp_path):
  from dpo_jax import models, weights

  # Nearly all of it in tensors of d_model x d_ff, which are turned over.
  size, layers = 256 * 4096, 4
  config = models.ModelConfig(
    vocab_size=64,
    num_layers=layers,
    d_model=256,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    d_ff=4096,
    max_positions=64,
    tie_embeddings=True,
  )
  write(tmp_path / 'model', config)
  _, params = weights.load(tmp_path / 'model', dtype='bfloat16')
  held = 2 * size * (2 if dtype == 'float32' else 1)
  weights.save(tmp_path / 'first', config, params, dtype=dtype)
  tracemalloc.start()
  try:
    weights.save(tmp_path / 'out', config, params, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < LIMIT * held


if __name__ == '__main__':
  print(json.dumps(measure(*sys.argv[1:])))
