"""KTO on your own labelled answers, from your own model.

  python -m dpo_jax.train --config configs/kto.py \\
    --config.model.uri=hf://OWNER/NAME --config.data.path=answers.jsonl

A line of answers.jsonl is {"prompt": ..., "completion": ..., "label": true},
{"messages": ..., "label": false}, or a pair, which gives one of each
(docs/data.md). The rest is as in configs/dpo.py. K. Ethayarajh et al.,
arXiv:2402.01306, recommend that the desirable answers together weigh 1 to 1.5
times what the undesirable ones do: method.desirable_weight and
method.undesirable_weight times their numbers, which the log says at the start.
`configs/kto.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.training()
  # None: the policy's start; else a model of the same architecture.
  c.model.reference = None
  c.data.kind = 'kto'
  c.method = dict(
    name='kto',
    loss='kto',
    beta=0.1,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    reference='cached',
  )
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-6, warmup_steps=2)
  return defaults.cut_training(c, variant)
