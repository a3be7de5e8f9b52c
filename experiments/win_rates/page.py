"""The quickstart's policy against its start, by people's ratings and VADER.

  python -m experiments.win_rates.data --out runs/win_rates/data
  python -m dpo_jax.train --config configs/quickstart.py \\
    --workdir runs/win_rates/policy
  python -m dpo_jax.train --config experiments/win_rates/page.py:ratings \\
    --workdir runs/win_rates/ratings
  python -m dpo_jax.judge --config experiments/win_rates/page.py:people \\
    --workdir runs/win_rates/people
  python -m dpo_jax.judge --config experiments/win_rates/page.py:vader \\
    --workdir runs/win_rates/vader

'ratings' is a reward model that learns the mean rating of a sentence; 'people'
and 'vader' compare the two policies by it and by VADER's lexicon.
"""

from configs import judge
from dpo_jax import assets, defaults
from experiments import reward_method

FOLDER = 'runs/win_rates'


def get_config(variant: str):
  """The page; `variant` is one of those above."""
  return {'ratings': _ratings, 'people': _people, 'vader': _vader}[variant]()


def _ratings():
  c = defaults.training()
  del c.data
  c.model.update(uri=assets.SMOLLM2, remat='none')
  c.train_data, c.eval_data = (
    dict(
      source='jsonl',
      path=f'{FOLDER}/data/rated_{name}.jsonl',
      kind='rated',
      max_length=128,
      max_prompt_length=64,
    )
    for name in ('train', 'held')
  )
  c.samples, c.normalise = None, None
  c.epochs, c.log_every = 2, 5
  c.eval_every, c.checkpoints.every = 20, 1_000
  c.train_batches.batch_size = 32
  c.eval_batches.batch_size = 32
  c.method = reward_method.reward_method('regression')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='cosine', peak=2e-5, warmup_steps=10)
  return c


def _judged():
  c = judge.get_config()
  c.a, c.b = f'{FOLDER}/policy', assets.SMOLLM2
  c.data.update(path=f'{FOLDER}/data/prompts.jsonl', max_length=96)
  c.data.max_prompt_length = 64
  c.max_new_tokens, c.batch_size = 32, 64
  return c


def _people():
  c = _judged()
  c.judge = dict(
    name='reward',
    reward=dict(name='reward_model', model=f'{FOLDER}/ratings/params'),
  )
  return c


def _vader():
  c = _judged()
  c.judge = dict(name='reward', reward='vader')
  return c
