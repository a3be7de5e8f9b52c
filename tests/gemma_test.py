"""The real Gemma 3 270M, for those who agree to its terms.

Fetched only where DPO_JAX_GEMMA=1 says so: https://ai.google.dev/gemma/terms.
"""

import os

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import quickstart
from dpo_jax import assets, models, train, weights
from dpo_jax.models import presets
from dpo_jax.training import metrics

pytestmark = [
  pytest.mark.gemma,
  pytest.mark.slow,
  pytest.mark.download,
  pytest.mark.skipif(
    os.environ.get('DPO_JAX_GEMMA') != '1',
    reason='set DPO_JAX_GEMMA=1 if you agree to the Gemma terms',
  ),
]


def test_logits_equal_transformers(movie_file):
  """Over more tokens than the window holds."""
  path = assets.resolve(assets.GEMMA3_270M)
  config, params = weights.load(path)
  assert config == presets.get('gemma-3-270m')
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    path.parent, gguf_file=path.name
  )
  text = movie_file.read_text('utf-8').split('\t')[2:120:2]
  tokens = np.array(tokenizer(' '.join(text)).input_ids[:600])[None]
  assert tokens.shape == (1, 600) and config.window == 512

  @jax.jit
  def last_logits(params):
    hidden = models.forward(params, config, tokens)
    return models.logits(params, config, hidden[:, -100:])

  with torch.no_grad():
    expected = peer(torch.as_tensor(tokens), logits_to_keep=100).logits.numpy()
  error = np.abs(np.asarray(last_logits(params)) - expected).max()
  assert error <= 1e-4 * np.abs(expected).max()


def test_a_short_dpo_run(tmp_path):
  """The quickstart's data; what it saves is Gemma, and has learned."""
  page = quickstart.get_config().to_dict()
  page |= dict(steps=6, eval_every=6, log_every=2, samples=None)
  page['model']['uri'] = assets.GEMMA3_270M
  page['train_batches']['batch_size'] = 24
  page['eval_data']['num_groups'] = 64
  page['schedule'] = dict(name='constant', peak=5e-6, warmup_steps=1)
  page['checkpoints'] = dict(every=6, keep=1, background=False)
  page['mesh'] = dict(devices=1)
  train.train(tmp_path / 'run', page)
  first, last = (
    row
    for row in metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
    if 'eval/loss' in row
  )
  assert first['eval/loss'] == pytest.approx(np.log(2), abs=1e-3)
  assert last['eval/loss'] < 0.68
  assert last['eval/rewards/accuracies_low'] > 0.5
  config, _ = weights.load(tmp_path / 'run' / 'params')
  assert config == presets.get('gemma-3-270m')
