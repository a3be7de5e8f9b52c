"""Reward models on real data, and DPO's implicit reward on the same pairs.

  python -m dpo_jax.train --config experiments/rewards/page.py:hh \\
    --config.train_data.path=FOLDER --config.eval_data.path=FOLDER \\
    --workdir runs/rewards/hh
  python -m dpo_jax.train --config experiments/rewards/page.py:imdb \\
    --workdir runs/rewards/imdb

Variants: 'movies' (the quickstart's pairs), 'hh' and 'hh_dpo' (Anthropic's
dialogues, FOLDER laid out like hf://datasets/Anthropic/hh-rlhf), and 'imdb'
(the files of imdb.py, in runs/rewards/imdb_data). All start from SmolLM2-135M.
"""

from dpo_jax import assets, defaults
from experiments import reward_method

REVIEWS = 'runs/rewards/imdb_data'
DPO = dict(
  name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
)


def get_config(variant: str):
  """The page; `variant` is one of those above."""
  c = {'movies': _movies, 'hh': _hh, 'hh_dpo': _hh_dpo, 'imdb': _imdb}[
    variant
  ]()
  c.model.update(uri=assets.SMOLLM2, remat='none')
  c.samples = None
  return c


def _rewards(c):
  c.optimizer = dict(name='adamw')
  c.normalise = None
  return c


def _movies():
  c = _rewards(defaults.movies())
  c.method = reward_method.reward_method('bradley_terry')
  c.steps = 30
  c.schedule = dict(name='constant', peak=1e-5, warmup_steps=3)
  return c


def _pairs():
  c = defaults.training()
  del c.data
  c.train_data, c.eval_data = (
    dict(
      source='hh',
      split=split,
      path=None,
      max_length=192,
      max_prompt_length=128,
      truncation='drop',
      max_drop_fraction=0.9,
    )
    for split in ('train', 'test')
  )
  c.steps, c.log_every = 60, 1
  c.eval_every = c.checkpoints.every = 30
  c.train_batches.batch_size = 32
  c.eval_batches.batch_size = 32
  return c


def _hh():
  c = _rewards(_pairs())
  c.method = reward_method.reward_method('bradley_terry')
  c.schedule = dict(name='cosine', peak=1e-5, warmup_steps=6)
  return c


def _hh_dpo():
  c = _pairs()
  c.method = DPO
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=5e-6, warmup_steps=6)
  return c


def _imdb():
  c = _rewards(defaults.training())
  del c.data
  c.train_data, c.eval_data = (
    dict(
      source='jsonl',
      path=f'{REVIEWS}/{name}.jsonl',
      kind='unpaired',
      # 256 tokens of a review, and those that cutting it added.
      max_length=272,
      truncation='drop',
    )
    for name in ('train', 'held_256')
  )
  c.epochs, c.log_every = 1, 5
  c.eval_every, c.checkpoints.every = 1_000, 40
  c.train_batches.batch_size = 32
  c.eval_batches.update(batch_size=32, num_examples=200)
  c.method = reward_method.reward_method('binary')
  c.schedule = dict(name='cosine', peak=2e-5, warmup_steps=16)
  return c
