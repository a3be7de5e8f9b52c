"""The runs of the study of Anthropic-HH, Section 6 of arXiv:2305.18290.

  python -m dpo_jax.train --config experiments/hh/pages.py:small/dpo \\
    --workdir runs/hh/small/dpo_0.1 --config.method.beta=0.1

`python -m experiments.hh.run` makes all of them in order. The variant is
SCALE/STAGE: 'small' is SmolLM2-135M, 'paper' Pythia 2.8B. Stages:

  sft           Preferred-FT on the chosen answers of part a: the reference
  dpo           DPO from there; flags choose beta and another part
  reward_model  of part a: what best-of-N has
  judge_model   of part b: the judge of 'small'
  best_of       64 answers of sft to prompts of held_helpful, scored (`pairs`)
  judged        answers of a run against the chosen ones, at three temperatures
                (`judge`); of 'paper' a language model says which is better
  chosen        of best_of's prompts: files of answers against each other
"""

from typing import NamedTuple

from configs import judge
from dpo_jax import assets, defaults
from experiments import reward_method

RUNS = 'runs/hh'
TEMPERATURES = (0.25, 0.7, 1.0)
NEW_TOKENS = 128
BEST_OF = 64


class Sizes(NamedTuple):
  """What scales differ in; peaks: learning rates of SFT, DPO, reward models."""

  start: str
  dtype: str
  max_length: int
  max_prompt_length: int
  batch: int
  epochs: float
  peaks: tuple[float, float, float]
  best_of_prompts: int


SCALES = {
  'small': Sizes(
    assets.SMOLLM2, 'float32', 320, 192, 32, 2.0, (2e-5, 5e-6, 1e-5), 128
  ),
  'paper': Sizes(
    'hf://EleutherAI/pythia-2.8b',
    'bfloat16',
    512,
    256,
    64,
    1.0,
    (5e-7, 1e-6, 1e-5),
    256,
  ),
}


def get_config(variant: str):
  """The page of SCALE/STAGE."""
  scale, stage = variant.split('/')
  return STAGES[stage](scale)


def folder(scale: str, run: str) -> str:
  """Of a run or a file in it, such as 'sft/params'."""
  return f'{RUNS}/{scale}/{run}'


def part(name: str) -> str:
  """A folder that splits.py writes."""
  return f'{RUNS}/data/{name}'


def dialogues(scale: str, name: str, kind: str) -> dict:
  """The data section of a part."""
  sizes = SCALES[scale]
  return dict(
    source='hh',
    path=part(name),
    split='test' if name.startswith('held') else 'train',
    kind=kind,
    max_length=sizes.max_length,
    max_prompt_length=sizes.max_prompt_length,
    truncation='keep_end',
    bos='never',
    # Rows whose transcripts differ before the last answer.
    max_drop_fraction=0.05,
  )


def _training(scale: str, read: str, kind: str):
  sizes = SCALES[scale]
  c = defaults.training()
  del c.data
  c.model.update(uri=folder(scale, 'sft/params'), dtype=sizes.dtype)
  c.model.remat = 'none' if scale == 'small' else c.model.remat
  c.mesh.update(data=1, fsdp=-1)
  c.train_data = dialogues(scale, read, kind)
  c.eval_data = dialogues(scale, 'held_out', kind)
  c.epochs, c.log_every = sizes.epochs, 5
  c.train_batches.batch_size = c.eval_batches.batch_size = sizes.batch
  # All that are held out: who is right more often is told by many pairs.
  c.eval_batches.num_examples = None
  c.eval_every = c.checkpoints.every = 50
  c.step.accumulation_steps = 1 if scale == 'small' else 4
  c.samples.update(
    every=50, num_prompts=16, num_samples=2, max_new_tokens=NEW_TOKENS
  )
  return c


def _sft(scale: str):
  c = _training(scale, 'a', 'sft')
  c.model.uri = SCALES[scale].start
  c.epochs = 1.0
  c.method = dict(name='sft', normalise='sequences')
  c.optimizer = dict(name='adamw')
  peak, _, _ = SCALES[scale].peaks
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=5)
  return c


def _dpo(scale: str):
  c = _training(scale, 'a', 'pairs')
  c.method = dict(name='dpo', loss='dpo', beta=0.1, reference='cached')
  c.optimizer = dict(name='rmsprop')
  _, peak, _ = SCALES[scale].peaks
  c.schedule = dict(name='constant', peak=peak, warmup_steps=10)
  return c


def _reward_model(scale: str, read: str):
  c = _training(scale, read, 'pairs')
  c.samples, c.normalise = None, None
  c.method = reward_method.reward_method('bradley_terry')
  c.optimizer = dict(name='adamw')
  _, _, peak = SCALES[scale].peaks
  c.schedule = dict(name='cosine', peak=peak, warmup_steps=10)
  return c


def _scored_by(scale: str, run: str) -> dict:
  return dict(name='reward_model', model=folder(scale, f'{run}/params'))


def _best_of(scale: str):
  c = defaults.sampling()
  c.model.update(uri=folder(scale, 'sft/params'), dtype=SCALES[scale].dtype)
  c.data = dialogues(scale, 'held_helpful', 'prompts')
  # The judge sees the prompts as they are in the files.
  c.data.truncation = 'drop'
  c.data.max_drop_fraction = 0.5
  c.num_prompts = SCALES[scale].best_of_prompts
  c.num_completions, c.max_new_tokens, c.batch_size = BEST_OF, NEW_TOKENS, 4
  del c.num_samples, c.mesh
  c.reward = _scored_by(scale, 'reward_model')
  return c


def _judged(scale: str):
  c = judge.get_config()
  c.b = 'data'
  c.data = dialogues(scale, 'held_helpful', 'pairs')
  c.temperatures, c.max_new_tokens = TEMPERATURES, NEW_TOKENS
  c.dtype = SCALES[scale].dtype
  return _judge(c, scale)


def _chosen(scale: str):
  c = judge.get_config()
  c.data = None
  c.b = folder(scale, 'best_of/chosen.jsonl')
  c.temperatures = (1.0,)
  return _judge(c, scale)


def _judge(c, scale: str):
  if scale == 'small':
    reward = _scored_by(scale, 'judge_model')
    c.judge = dict(name='reward', reward=reward)
  else:
    c.judge = dict(name='endpoint', model=None, template='dialogue')
  return c


STAGES = {
  'sft': _sft,
  'dpo': _dpo,
  'reward_model': lambda scale: _reward_model(scale, 'a'),
  'judge_model': lambda scale: _reward_model(scale, 'b'),
  'best_of': _best_of,
  'judged': _judged,
  'chosen': _chosen,
}
