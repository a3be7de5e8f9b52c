"""Preferred-FT on Anthropic-HH: Pythia 2.8B learns the chosen answers.

  python -m dpo_jax.train --config configs/hh_sft.py
  python -m dpo_jax.train --config configs/hh_dpo.py

The reference and start of section 6's dialogue experiment: there is no SFT
model, so the base model is tuned on the preferred answers
(https://arxiv.org/abs/2305.18290; values and hours: dpo_jax/defaults.py). One
epoch, about 36M tokens: 8.1e17 FLOPs, estimated at 1.8 hours on an A100 (80
GB; 33 GB of state) or 0.6 on an H100. The authors' README gives 1.5 hours on
four A100 for their code.

The paper gives no values for SFT. Here they are those of the authors' code:
one epoch, a learning rate of 5e-7, the loss of a batch divided by its
sequences. It tunes on one answer per prompt, the last chosen one; we on the
one that wins most.
`configs/hh_sft.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'hf://EleutherAI/pythia-2.8b'
  # A local copy of the repository can be named with path.
  c.data.update(
    source='hh',
    path='hf://datasets/Anthropic/hh-rlhf',
    kind='sft',
    truncation='keep_end',
    # Rows whose transcripts differ before the last answer.
    max_drop_fraction=0.05,
  )
  c.method = dict(name='sft', normalise='sequences')
  c.schedule.peak = 5e-7
  return defaults.cut_paper(c, variant)
