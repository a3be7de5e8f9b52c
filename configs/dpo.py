"""DPO on your own pairs, from your own model.

  python -m dpo_jax.train --config configs/dpo.py \\
    --config.model.uri=hf://OWNER/NAME --config.data.path=pairs.jsonl

A line of pairs.jsonl is {"prompt": ..., "chosen": ..., "rejected": ...};
prompts are text or messages (docs/data.md). A tenth of the prompts, by a hash,
is held out; --config.eval_data.path=held_out.jsonl holds out a file instead.
Start from a model that has seen such completions: configs/sft.py.

Sizes are for memory first. A parameter takes 12 bytes (weight, gradient and
RMSprop's moment in float32), so 1B of them 12 GB, and a row of eight pairs of
512 tokens little beside. With memory to spare, step.accumulation_steps=1 and
model.remat=none are faster; too little, and a larger accumulation_steps, up to
train_batches.batch_size, or a smaller data.max_length help. On GPUs and TPUs
take model.dtype=bfloat16.
`configs/dpo.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.training()
  # None: the policy's start; else a model of the same architecture.
  c.model.reference = None
  c.data.kind = 'pairs'
  # docs/beta.md says how to choose beta, docs/objectives.md what else there is.
  c.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-6, warmup_steps=2)
  return defaults.cut_training(c, variant)
