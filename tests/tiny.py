"""A tiny random Llama, pairs that it can learn from, and a page to train it."""

import json
import pathlib
import random
from typing import Any

import jax
import tokenizers as hf_tokenizers

from configs import quickstart
from dpo_jax import models, weights

GOOD = ['superb', 'moving', 'a delight', 'funny and warm', 'a triumph']
BAD = ['dull', 'a mess', 'lifeless', 'painfully slow', 'a waste']
SUBJECTS = ['The film', 'This plot', 'Her acting', 'The score', 'His direction']


def rows(seed: int, count: int) -> list[dict[str, str]]:
  """Pairs whose preferred answer is a kind one."""
  rng = random.Random(seed)
  return [
    {
      'prompt': rng.choice(SUBJECTS),
      'chosen': f' is {rng.choice(GOOD)}.',
      'rejected': f' is {rng.choice(BAD)}.',
    }
    for _ in range(count)
  ]


def write(folder: pathlib.Path, *, num_train: int = 96) -> None:
  """Makes model/ (with its tokenizer), train.jsonl and eval.jsonl."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = hf_tokenizers.ByteLevelBPETokenizer()
  texts = [' '.join(row.values()) for row in rows(0, 200)]
  tokenizer.train_from_iterator(texts, 300, special_tokens=['<eos>'])
  config = models.ModelConfig(
    vocab_size=tokenizer.get_vocab_size(),
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=64,
    max_positions=64,
    tie_embeddings=True,
  )
  save_model(folder / 'model', config, seed=0)
  tokenizer.save(str(folder / 'model' / 'tokenizer.json'))
  settings = {'eos_token': '<eos>', 'model_max_length': 64}
  path = folder / 'model' / 'tokenizer_config.json'
  path.write_text(json.dumps(settings))
  for name, seed, count in (('train', 1, num_train), ('eval', 2, 21)):
    lines = [json.dumps(row) + '\n' for row in rows(seed, count)]
    (folder / f'{name}.jsonl').write_text(''.join(lines))


def write_numbered(path: pathlib.Path, count: int) -> None:
  """Writes rows whose prompts all differ: each begins with its number."""
  lines = [
    json.dumps(row | {'prompt': f'{i} {row["prompt"]}'}) + '\n'
    for i, row in enumerate(rows(1, count))
  ]
  path.write_text(''.join(lines))


def save_model(
  folder: pathlib.Path, config: models.ModelConfig, *, seed: int
) -> None:
  """Random parameters, saved."""
  weights.save(folder, config, models.init(jax.random.key(seed), config))


def page(folder: pathlib.Path, *, method: str = 'dpo') -> dict[str, Any]:
  """The quickstart's page for what `write` made; `method` is 'dpo' or 'sft'."""
  c = quickstart.get_config().to_dict()
  c |= dict(steps=12, log_every=4, eval_every=12, samples=None)
  c['log'] = dict(tensorboard=False)
  c['checkpoints'] = dict(every=12, keep=1)
  c['model']['uri'] = str(folder / 'model')
  for part in ('train', 'eval'):
    c[f'{part}_data'] = dict(
      source='jsonl',
      path=str(folder / f'{part}.jsonl'),
      max_length=48,
      max_prompt_length=24,
    )
    c[f'{part}_batches'] = dict(batch_size=8)
  if method == 'sft':
    c['method'] = dict(name='sft')
    for part in ('train', 'eval'):
      c[f'{part}_data']['kind'] = 'sft'
  c['schedule'] = dict(name='constant', peak=3e-3, warmup_steps=2)
  c['optimizer'] = dict(name='adamw')
  c['mesh'] = dict(devices=1)
  return c
