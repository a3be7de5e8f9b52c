"""Which of two policies gives better answers to your prompts.

  python -m dpo_jax.judge --config configs/judge.py --config.a=runs/dpo \
--config.b=runs/sft --config.data.path=prompts.jsonl

VADER judges here, how positive an answer is. A language model judges with

  OPENAI_API_KEY=... python -m dpo_jax.judge --config configs/judge.py \
--config.a=runs/dpo --config.b=data --config.data.path=pairs.jsonl \
--config.data.kind=pairs --config.judge.name=endpoint \
--config.judge.model=MODEL --yes
"""

from ml_collections import config_dict


def get_config():
  """The page."""
  c = config_dict.ConfigDict()
  # Each a run's directory, a model, a .jsonl of answers, or 'data': what the
  # data prefers.
  c.a = ''
  c.b = ''
  # The prompts: as for training (docs/data.md). A file of answers has its own.
  c.data = dict(
    source='jsonl',
    path=None,
    kind='prompts',
    chat=False,
    max_length=512,
    max_prompt_length=256,
  )
  c.num_prompts = 256
  c.skip_prompts = 0
  # Of the answers that are sampled; each is a point of the plot.
  c.temperatures = (0.0, 0.25, 0.5, 0.75, 1.0)
  c.top_k = None
  c.top_p = None
  c.max_new_tokens = 128
  c.batch_size = 16
  c.dtype = 'float32'
  # docs/judges.md: 'endpoint' asks a language model, 'reward' compares scores.
  c.judge = dict(name='reward', reward='vader')
  # Which answer is shown first: 'random', or 'both': each is asked twice.
  c.order = 'random'
  c.seed = 0
  c.mesh = dict(devices=1, data=-1, fsdp=1, tensor=1)
  return c
