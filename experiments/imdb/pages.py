"""The runs of the sentiment study.

  python -m dpo_jax.train --config experiments/imdb/pages.py:tiny/0/dpo \\
    --workdir runs/imdb/tiny/0/dpo_0.1 --config.method.beta=0.1

`python -m experiments.imdb.run` makes all of them in order, with the values
that tuning chose. The variant is SCALE/BLOCK/STAGE (places.py). Stages:

  sft                    learns to go on with prefixes of reviews
  labels_1, labels_2     classifiers of sentiment, on the test file's two halves
                         (tiny alone: all scales have the same reward)
  pairs, tune, evaluate  completions with scores (`dpo_jax.pairs`): to train on,
                         and of the prompts that are sampled in the evaluations
                         of tuning and of final runs
  reward_model           learns the labels of `pairs`
  dpo, preferred_ft, unlikelihood, ppo, ppo_rm, rloo, online_dpo
  dpo_sure               DPO on labels that always prefer the higher reward; all
                         others learn from labels that are drawn (labels.py)
  cdpo, robust, ipo, dpop, dpo_likelihood, sft_news, pairs_off
                         of ablations (ablations.py)

The samples of the methods, of the prompts of `evaluate`, are the points of the
frontier. 'ppo' has the true reward, 'ppo_rm' that of `reward_model`.
"""

from dpo_jax import defaults
from experiments import reward_method
from experiments.imdb import places
from experiments.imdb.places import Place

# What adapts to a target KL starts here: the optimum of a normal reward with
# r's standard deviation, 1.8, has a KL of 6 nats at 1.8 / sqrt(2 * 6).
KL_COEFFICIENT = 0.5


def get_config(variant: str):
  """The page of SCALE/BLOCK/STAGE."""
  scale, block, stage = variant.split('/')
  place = Place(scale, int(block))
  c = STAGES[stage](place)
  c.seed = place.seed
  return c


def _set_model(c, place: Place) -> None:
  c.model.update(uri=place.folder('sft/params'), dtype=place.sizes.dtype)
  c.model.remat = 'none'
  c.mesh.update(data=1, fsdp=-1)


def _training(place: Place):
  c = defaults.training()
  _set_model(c, place)
  c.step.accumulation_steps = 1
  c.data.update(max_length=64, max_prompt_length=16, bos='never')
  return c


def _sft(place: Place):
  c = _training(place)
  c.model.uri = place.sizes.start
  del c.data
  c.train_data, c.eval_data = (
    dict(
      defaults.imdb_prefixes(split='train'),
      kind='sft',
      path=f'{places.RUNS}/data/{part}',
      max_length=128,
      max_prompt_length=16,
    )
    for part in ('sft', 'tune')
  )
  c.epochs, c.log_every = place.sizes.sft_epochs, 20
  c.eval_every = c.checkpoints.every = 200
  c.train_batches.batch_size = place.sizes.sft_batch
  c.eval_batches.num_examples = 256
  c.samples.update(every=400, num_prompts=64, num_samples=1)
  c.samples.update(max_new_tokens=places.NEW_TOKENS, reward='vader')
  c.method = dict(name='sft', normalise='tokens')
  c.optimizer = dict(name='adamw')
  peak = place.sizes.sft_peak
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=50)
  return c


def _labels(place: Place, number: int):
  c = _training(place)
  del c.data
  c.train_data, c.eval_data = (
    dict(
      source='imdb_reviews',
      kind='unpaired',
      path=f'{places.RUNS}/data/labels_{number}',
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
  c.train_batches.batch_size = c.eval_batches.batch_size = places.BATCH
  c.method = reward_method.reward_method('binary')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='cosine', peak=2e-4, warmup_steps=20)
  return c


def _completed(place: Place, part: str, num_prompts: int):
  c = defaults.sampling()
  c.model.update(uri=place.folder('sft/params'), dtype=place.sizes.dtype)
  c.data = defaults.imdb_prefixes(split='train')
  c.data.path = f'{places.RUNS}/data/{part}'
  c.num_prompts, c.num_completions = num_prompts, 4
  c.max_new_tokens, c.batch_size = places.NEW_TOKENS, places.BATCH
  del c.num_samples, c.mesh
  c.reward = places.classifier(place)
  return c


def _held_out(place: Place, part: str):
  # Some prefixes are equal, and each is sampled once.
  return _completed(place, part, place.sizes.evaluated * 5 // 4)


def _pairs(place: Place):
  """Training on `pairs`, and samples of the prompts of `evaluate`."""
  c = _training(place)
  c.data.update(source='jsonl', kind='pairs', held_out_fraction=None)
  c.train_data.path = place.folder('pairs/drawn.jsonl')
  c.eval_data.path = place.folder('evaluate/pairs.jsonl')
  c.epochs, c.log_every = 1.0, 10
  c.train_batches.batch_size = place.sizes.batch
  c.eval_batches.batch_size = places.BATCH
  c.eval_batches.num_examples = 256
  c.eval_every = c.samples.every = c.checkpoints.every = 32
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-4, warmup_steps=20)
  _sampled(c, place)
  return c


def _sampled(c, place: Place) -> None:
  c.samples.update(num_prompts=place.sizes.evaluated, num_samples=2)
  c.samples.update(
    max_new_tokens=places.NEW_TOKENS, reward=places.reward(place)
  )


def _offline(place: Place, **method):
  c = _pairs(place)
  c.method = dict(name='dpo', **method)
  return c


def _reward_model(place: Place):
  c = _pairs(place)
  c.samples = None
  c.method = reward_method.reward_method('bradley_terry')
  c.normalise = dict(
    num_prompts=64, num_samples=4, max_new_tokens=places.NEW_TOKENS
  )
  c.optimizer = dict(name='adamw')
  c.schedule.update(name='cosine', peak=2e-4)
  return c


def _online(place: Place, method: dict, scored_by: dict):
  c = defaults.online()
  _set_model(c, place)
  c.data.update(max_length=64, max_prompt_length=16, bos='never')
  c.train_data.path = place.folder('pairs/pairs.jsonl')
  c.eval_data.path = place.folder('evaluate/pairs.jsonl')
  c.method, c.reward = method, scored_by
  c.rollouts.update(
    num_prompts=place.sizes.batch,
    num_samples=4,
    max_new_tokens=places.NEW_TOKENS,
  )
  c.rollouts.update(minibatches=2, epochs=2)
  # As many samples as `pairs` has.
  of_collection = c.rollouts.minibatches * c.rollouts.epochs
  c.steps = place.sizes.pairs // c.rollouts.num_prompts * of_collection
  c.log_every = of_collection
  c.samples.every = c.checkpoints.every = 4 * of_collection
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=1e-4, warmup_steps=4)
  _sampled(c, place)
  return c


def _ppo(place: Place, scored_by=None):
  method = dict(
    name='ppo',
    advantage='gae',
    kl_coefficient=KL_COEFFICIENT,
    target_kl=6.0,
    value_coefficient=0.1,
  )
  c = _online(place, method, scored_by or places.reward(place))
  c.value = dict(shared=True, uri=None)
  return c


def _ppo_rm(place: Place):
  return _ppo(place, places.scorer(place.folder('reward_model/params')))


def _rloo(place: Place):
  method = dict(
    name='ppo',
    advantage='leave_one_out',
    kl_coefficient=KL_COEFFICIENT,
    target_kl=6.0,
  )
  return _online(place, method, places.reward(place))


def _online_dpo(place: Place):
  method = dict(name='online_dpo', loss='dpo', beta=0.1)
  c = _online(place, method, places.reward(place))
  c.optimizer = dict(name='rmsprop')
  return c


def _dpo(place: Place):
  return _offline(place, loss='dpo', beta=0.1, reference='cached')


def _dpo_sure(place: Place):
  c = _dpo(place)
  c.train_data.path = place.folder('pairs/pairs.jsonl')
  return c


def _with_losses(**method):
  """A stage of the method `dpo` with a reference."""
  return lambda place: _offline(place, reference='cached', **method)


def _sft_news(place: Place):
  """The reference goes on with newspaper editorials."""
  c = _sft(place)
  c.model.uri = place.folder('sft/params')
  c.train_data, c.eval_data = (
    dict(
      source='jsonl',
      kind='sft',
      path=f'{places.RUNS}/data/{places.NEWS}',
      split=split,
      max_length=128,
      max_prompt_length=16,
      bos='never',
    )
    for split in ('train', 'test')
  )
  c.epochs, c.schedule.peak = 1.0, 3e-4
  return c


def _pairs_off(place: Place):
  """Pairs of another policy: a reference that learned an eighth as long."""
  c = STAGES['pairs'](place)
  c.model.uri = place.folder('sft_short/params')
  return c


STAGES = {
  'sft': _sft,
  'labels_1': lambda place: _labels(place, 1),
  'labels_2': lambda place: _labels(place, 2),
  'pairs': lambda place: _completed(place, 'pairs', place.sizes.pairs),
  'tune': lambda place: _held_out(place, 'tune'),
  'evaluate': lambda place: _held_out(place, 'evaluate'),
  'reward_model': _reward_model,
  'dpo': _dpo,
  'dpo_sure': _dpo_sure,
  'cdpo': _with_losses(loss='dpo', beta=0.1, label_smoothing=0.1),
  'robust': _with_losses(loss='robust', beta=0.1, label_smoothing=0.1),
  'ipo': _with_losses(loss='ipo', beta=0.1),
  'dpop': _with_losses(loss='dpop', beta=0.1, penalty=50.0),
  'dpo_likelihood': _with_losses(
    loss='dpo',
    beta=0.1,
    plus=dict(preferred_ft=dict(weight=1.0, normalise='tokens')),
  ),
  'sft_news': _sft_news,
  'pairs_off': _pairs_off,
  'preferred_ft': lambda place: _offline(place, loss='preferred_ft'),
  'unlikelihood': lambda place: _offline(place, loss='unlikelihood', alpha=0.1),
  'ppo': _ppo,
  'ppo_rm': _ppo_rm,
  'rloo': _rloo,
  'online_dpo': _online_dpo,
}
