"""Supervised fine-tuning of your own model on your own texts.

  python -m dpo_jax.train --config configs/sft.py \\
    --config.model.uri=hf://OWNER/NAME --config.data.path=answers.jsonl

A line of answers.jsonl is {"prompt": ..., "completion": ...}, {"messages":
...}, {"text": ...}, or a pair, whose chosen answer is taken (docs/data.md): on
the pairs that configs/dpo.py will read this is the paper's Preferred-FT. A
tenth of the prompts, by a hash, is held out;
--config.eval_data.path=held_out.jsonl holds out a file instead. Then:

  python -m dpo_jax.train --config configs/dpo.py \\
    --config.model.uri=runs/sft/params --config.data.path=pairs.jsonl

Sizes are for memory first. A parameter takes 16 bytes (weight, gradient and
AdamW's two moments in float32); optimizer.name=rmsprop takes 12. With memory to
spare, step.accumulation_steps=1 and model.remat=none are faster. On GPUs and
TPUs take model.dtype=bfloat16.
`configs/sft.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.training()
  c.data.kind = 'sft'
  # Of a conversation: 'last' scores the last answer, 'all' every one.
  c.data.turns = None
  # Nats per token; 'sequences' is what the paper's code divides by.
  c.method = dict(name='sft', normalise='tokens')
  c.optimizer = dict(name='adamw', weight_decay=0.0)
  c.schedule = dict(name='cosine', peak=1e-5, warmup_steps=2, final=0.0)
  c.step.max_grad_norm = 1.0
  return defaults.cut_training(c, variant)
