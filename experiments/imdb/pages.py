"""The runs of the sentiment study.

  python -m dpo_jax.train --config experiments/imdb/pages.py:tiny/dpo \\
    --workdir runs/imdb/tiny/dpo_0.1_0 --config.method.beta=0.1

`python -m experiments.imdb.run` makes all of them in order, with the values
that tuning chose. The variant is SCALE/STAGE. Scales are 'tiny', a model that
learns the reviews from random weights, and 'small', SmolLM2-135M. Stages:

  sft                    learns to go on with prefixes of reviews
  labels_1, labels_2     classifiers of sentiment, on the test file's two halves
                         (tiny alone: both scales have the same reward)
  pairs, tune, evaluate  completions with scores (`dpo_jax.pairs`): to train on,
                         and of the prompts that are sampled in tuning and after
  reward_model           learns the labels of `pairs`
  dpo, preferred_ft, unlikelihood, ppo, ppo_rm, rloo, online_dpo

The samples of the methods, of the prompts of `evaluate`, are the points of the
frontier. 'ppo' has the true reward, 'ppo_rm' that of `reward_model`.
"""

from typing import NamedTuple

from dpo_jax import assets, defaults

RUNS = 'runs/imdb'
NEW_TOKENS = 32
# r: the first classifier, scaled (scale.py). Both scales have it.
REWARD = dict(name='reward_model', model=f'{RUNS}/reward/params', batch_size=64)
CLASSIFIER = dict(
  name='reward_model', model=f'{RUNS}/tiny/labels_1/params', batch_size=64
)


class Scale(NamedTuple):
  """What differs: sizes in prompts, each with four completions."""

  start: str
  pairs: int
  evaluated: int
  sft_epochs: float
  sft_peak: float


SCALES = {
  'tiny': Scale(f'{RUNS}/tiny/start', 4_000, 256, 2.0, 1e-3),
  'small': Scale(assets.SMOLLM2, 1_000, 128, 0.1, 2e-5),
}


def get_config(variant: str):
  """The page of SCALE/STAGE."""
  scale, _, stage = variant.partition('/')
  return STAGES[stage](scale)


def _folder(scale: str, stage: str) -> str:
  return f'{RUNS}/{scale}/{stage}'


def _training(scale: str):
  c = defaults.training()
  c.model.update(uri=_folder(scale, 'sft/params'), remat='none')
  c.step.accumulation_steps = 1
  c.data.update(max_length=64, max_prompt_length=16, bos='never')
  return c


def _sft(scale: str):
  c = _training(scale)
  c.model.uri = SCALES[scale].start
  del c.data
  c.train_data, c.eval_data = (
    dict(
      defaults.imdb_prefixes(split='train'),
      kind='sft',
      path=f'{RUNS}/data/{part}',
      max_length=128,
      max_prompt_length=16,
    )
    for part in ('sft', 'evaluate')
  )
  c.epochs, c.log_every = SCALES[scale].sft_epochs, 20
  c.eval_every = c.checkpoints.every = 200
  c.train_batches.batch_size, c.eval_batches.num_examples = 32, 256
  c.samples.update(every=400, num_prompts=64, num_samples=1)
  c.samples.update(max_new_tokens=NEW_TOKENS, reward='vader')
  c.method = dict(name='sft', normalise='tokens')
  c.optimizer = dict(name='adamw')
  peak = SCALES[scale].sft_peak
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=50)
  return c


def _labels(number: int):
  c = _training('tiny')
  del c.data
  c.train_data, c.eval_data = (
    dict(
      source='imdb_reviews',
      kind='unpaired',
      path=f'{RUNS}/data/labels_{number}',
      split=split,
      max_length=200,
      truncation='drop',
      bos='never',
    )
    for split in ('train', 'test')
  )
  c.samples, c.normalise = None, None
  c.epochs, c.log_every, c.eval_every = 2, 20, 100
  c.checkpoints.every = 100
  c.train_batches.batch_size = c.eval_batches.batch_size = 64
  c.method = _reward_loss('binary')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='cosine', peak=2e-4, warmup_steps=20)
  return c


def _reward_loss(loss: str) -> dict:
  return dict(
    name='reward_model',
    loss=loss,
    centre_coefficient=0.0,
    normalise='examples',
  )


def _completed(scale: str, part: str, num_prompts: int):
  c = defaults.sampling()
  c.model.uri = _folder(scale, 'sft/params')
  c.data = defaults.imdb_prefixes(split='train')
  c.data.path = f'{RUNS}/data/{part}'
  c.num_prompts, c.num_completions = num_prompts, 4
  c.max_new_tokens, c.batch_size = NEW_TOKENS, 64
  del c.num_samples, c.mesh
  c.reward = CLASSIFIER
  return c


def _sampled_later(scale: str, part: str):
  # Some prefixes are equal, and each is sampled once.
  return _completed(scale, part, SCALES[scale].evaluated * 5 // 4)


def _pairs(scale: str):
  """Training on `pairs`, and samples of the prompts of `evaluate`."""
  c = _training(scale)
  c.data.update(source='jsonl', kind='pairs', held_out_fraction=None)
  c.train_data.path = _folder(scale, 'pairs/pairs.jsonl')
  c.eval_data.path = _folder(scale, 'evaluate/pairs.jsonl')
  c.epochs, c.log_every = 1, 10
  c.train_batches.batch_size = c.eval_batches.batch_size = 64
  c.eval_batches.num_examples = 256
  c.eval_every = c.samples.every = c.checkpoints.every = 50
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-4, warmup_steps=20)
  _sampled(c, scale)
  return c


def _sampled(c, scale: str) -> None:
  c.samples.update(num_prompts=SCALES[scale].evaluated, num_samples=1)
  c.samples.update(max_new_tokens=NEW_TOKENS, reward=REWARD)


def _offline(scale: str, **method):
  c = _pairs(scale)
  c.method = dict(name='dpo', **method)
  return c


def _reward_model(scale: str):
  c = _pairs(scale)
  c.samples = None
  c.method = _reward_loss('bradley_terry')
  c.normalise = dict(num_prompts=64, num_samples=4, max_new_tokens=NEW_TOKENS)
  c.optimizer = dict(name='adamw')
  c.schedule.update(name='cosine', peak=2e-4)
  return c


def _online(scale: str, method: dict, reward: dict):
  c = defaults.online()
  c.model.update(uri=_folder(scale, 'sft/params'), remat='none')
  c.data.update(max_length=64, max_prompt_length=16, bos='never')
  c.train_data.path = _folder(scale, 'pairs/pairs.jsonl')
  c.eval_data.path = _folder(scale, 'evaluate/pairs.jsonl')
  c.method, c.reward = method, reward
  c.rollouts.update(num_prompts=64, num_samples=4, max_new_tokens=NEW_TOKENS)
  c.rollouts.update(minibatches=2, epochs=2)
  # As many samples as `pairs` has.
  of_collection = c.rollouts.minibatches * c.rollouts.epochs
  c.steps = SCALES[scale].pairs // c.rollouts.num_prompts * of_collection
  c.log_every = of_collection
  c.samples.every = c.checkpoints.every = 8 * of_collection
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=1e-4, warmup_steps=4)
  _sampled(c, scale)
  return c


def _ppo(scale: str, reward=REWARD):
  method = dict(
    name='ppo',
    advantage='gae',
    kl_coefficient=0.1,
    target_kl=6.0,
    value_coefficient=0.1,
  )
  c = _online(scale, method, reward)
  c.value = dict(shared=False, uri=None)
  return c


def _ppo_rm(scale: str):
  learned = _folder(scale, 'reward_model/params')
  return _ppo(scale, dict(REWARD, model=learned))


def _rloo(scale: str):
  method = dict(
    name='ppo', advantage='leave_one_out', kl_coefficient=0.1, target_kl=6.0
  )
  return _online(scale, method, REWARD)


def _online_dpo(scale: str):
  c = _online(scale, dict(name='online_dpo', loss='dpo', beta=0.1), REWARD)
  c.optimizer = dict(name='rmsprop')
  return c


STAGES = {
  'sft': _sft,
  'labels_1': lambda scale: _labels(1),
  'labels_2': lambda scale: _labels(2),
  'pairs': lambda scale: _completed(scale, 'pairs', SCALES[scale].pairs),
  'tune': lambda scale: _sampled_later(scale, 'tune'),
  'evaluate': lambda scale: _sampled_later(scale, 'evaluate'),
  'reward_model': _reward_model,
  'dpo': lambda scale: _offline(
    scale, loss='dpo', beta=0.1, reference='cached'
  ),
  'preferred_ft': lambda scale: _offline(scale, loss='preferred_ft'),
  'unlikelihood': lambda scale: _offline(scale, loss='unlikelihood', alpha=0.1),
  'ppo': _ppo,
  'ppo_rm': _ppo_rm,
  'rloo': _rloo,
  'online_dpo': _online_dpo,
}
