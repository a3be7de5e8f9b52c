"""The runs of the paper's summarisation study, Section 6 of arXiv:2305.18290.

`python -m experiments.tldr.run` makes all of them in order. The variant is
SCALE/STAGE: 'paper' is GPT-J 6B on TL;DR, 'tiny' SmolLM2-135M on the rows of
rows.py, a few steps of each run, whose numbers say nothing. Stages:

  sft            learns the posts' summaries
  dpo            learns the comparisons, from there
  preferred_ft   SFT on the better summaries
  reward_model   of the comparisons
  ppo            against the reward model
  best_of        completions of held-out posts, scored (`pairs`)
  simple, concise   summaries of a run against the authors', by one of the two
                    questions of the paper to a language model
  chosen         files of summaries against each other, by the concise question
  news           summaries of articles of CNN/DailyMail (news.py)
"""

from configs import judge, tldr_dpo, tldr_sft
from dpo_jax import assets, defaults
from experiments import reward_method

SCALES = ('tiny', 'paper')
RUNS = 'runs/tldr'
DATA = {
  'tiny': (f'{RUNS}/data/sft', f'{RUNS}/data/comparisons'),
  'paper': (
    'hf://datasets/CarperAI/openai_summarize_tldr',
    'hf://datasets/CarperAI/openai_summarize_comparisons',
  ),
}
NEWS = f'{RUNS}/news.jsonl'
NEWS_TEMPLATE = 'experiments/tldr/news_summary.txt'
NEW_TOKENS = {'tiny': 24, 'paper': 64}
LENGTHS = {
  'tiny': dict(max_length=192, max_prompt_length=160),
  'paper': dict(max_length=550, max_prompt_length=486),
}
PROMPTS = {'tiny': 16, 'paper': 256}
BEST_OF = {'tiny': 4, 'paper': 128}


def get_config(variant: str):
  """The page of SCALE/STAGE."""
  scale, stage = variant.split('/')
  return STAGES[stage](scale)


def folder(scale: str, run: str) -> str:
  """Of a run or a file in it, such as 'sft/params'."""
  return f'{RUNS}/{scale}/{run}'


def _cut(c, scale: str):
  """Of 'tiny', a page that a laptop can do."""
  if scale == 'tiny':
    c.steps, c.log_every = 10, 2
    c.checkpoints.every = c.steps
    c.model.update(dtype='float32', remat='none')
    c.step.accumulation_steps = 1
    if c.samples:
      c.samples.update(every=c.steps, num_prompts=4)
      c.samples.max_new_tokens = NEW_TOKENS[scale]
  return c


def _cut_offline(c, scale: str):
  if scale == 'tiny':
    c.epochs, c.eval_every = None, 10
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.eval_batches.num_examples = 32
    c.schedule.warmup_steps = 2
  return _cut(c, scale)


def _sft(scale: str):
  c = tldr_sft.get_config()
  c.data.update(path=DATA[scale][0], **LENGTHS[scale])
  if scale == 'tiny':
    c.model.uri = assets.SMOLLM2
  return _cut_offline(c, scale)


def _compared(scale: str):
  c = tldr_dpo.get_config()
  c.model.uri = folder(scale, 'sft/params')
  c.data.update(path=DATA[scale][1], **LENGTHS[scale])
  c.eval_data.split = 'valid1'
  return _cut_offline(c, scale)


def _preferred_ft(scale: str):
  c = _compared(scale)
  c.method = dict(name='dpo', loss='preferred_ft')
  return c


def _reward_model(scale: str):
  c = _compared(scale)
  c.samples, c.normalise = None, None
  c.method = reward_method.reward_method('bradley_terry')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='cosine', peak=1e-5, warmup_steps=2)
  return c


def _posts(scale: str, split: str) -> dict:
  return dict(
    source='tldr_sft',
    path=DATA[scale][0],
    split=split,
    truncation='keep_end',
    bos='never',
    max_drop_fraction=0.01,
    **LENGTHS[scale],
  )


def _scored_by(scale: str) -> dict:
  return dict(name='reward_model', model=folder(scale, 'reward_model/params'))


def _ppo(scale: str):
  c = defaults.online()
  c.model.update(uri=folder(scale, 'sft/params'), dtype='bfloat16')
  del c.data
  c.train_data, c.eval_data = (
    dict(_posts(scale, split), kind='prompts') for split in ('train', 'valid')
  )
  c.rollouts.update(max_new_tokens=NEW_TOKENS[scale])
  c.method = dict(
    name='ppo', advantage='gae', kl_coefficient=0.05, value_coefficient=0.1
  )
  c.value = dict(shared=True, uri=None)
  c.reward = _scored_by(scale)
  c.steps, c.epochs = None, 1.0
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=3e-6, warmup_steps=2)
  c.samples.update(max_new_tokens=NEW_TOKENS[scale], reward=_scored_by(scale))
  if scale == 'tiny':
    c.epochs = None
    c.rollouts.update(num_prompts=8, num_samples=2, minibatches=1, epochs=2)
  return _cut(c, scale)


def _best_of(scale: str):
  c = defaults.sampling()
  c.model.update(uri=folder(scale, 'sft/params'))
  c.data = dict(_posts(scale, 'test'), kind='prompts')
  c.num_prompts, c.num_completions = PROMPTS[scale], BEST_OF[scale]
  c.max_new_tokens, c.batch_size = NEW_TOKENS[scale], 4
  del c.num_samples, c.mesh
  c.reward = _scored_by(scale)
  return c


def _judged(scale: str, template: str):
  """a is a flag; the key of the judge's endpoint is in the environment."""
  c = judge.get_config()
  c.b = 'data'
  c.data = dict(_posts(scale, 'test'), kind='sft')
  c.num_prompts, c.max_new_tokens = PROMPTS[scale], NEW_TOKENS[scale]
  c.judge = dict(name='endpoint', model=None, base_url=None, template=template)
  if scale == 'tiny':
    c.temperatures = (0.0, 1.0)
  return c


def _chosen(scale: str):
  c = _judged(scale, 'summary_concise')
  c.data = None
  c.b = folder(scale, 'best_of/chosen.jsonl')
  c.temperatures = (1.0,)
  return c


def _news(scale: str):
  c = _judged(scale, NEWS_TEMPLATE)
  c.data = dict(
    source='jsonl',
    path=NEWS,
    kind='sft',
    # An article that is too long keeps its beginning, and loses the question.
    truncation='drop',
    bos='never',
    max_drop_fraction=0.9,
    max_length=1_024,
    max_prompt_length=960,
  )
  c.temperatures = (0.0, 0.25)
  return c


STAGES = {
  'sft': _sft,
  'dpo': _compared,
  'preferred_ft': _preferred_ft,
  'reward_model': _reward_model,
  'ppo': _ppo,
  'best_of': _best_of,
  'simple': lambda scale: _judged(scale, 'summary'),
  'concise': lambda scale: _judged(scale, 'summary_concise'),
  'chosen': _chosen,
  'news': _news,
}
