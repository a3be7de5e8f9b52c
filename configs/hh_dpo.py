"""DPO on Anthropic-HH with Pythia 2.8B, after hh_sft.py.

  python -m dpo_jax.train --config configs/hh_sft.py
  python -m dpo_jax.train --config configs/hh_dpo.py

Section 6's dialogue experiment (https://arxiv.org/abs/2305.18290; values and
hours: dpo_jax/defaults.py): beta 0.1, some 161k pairs. The paper runs to 3,300
steps and is at its best after 300 to 600; one epoch has about 2,500.
About 48M tokens: 1.3e18 FLOPs, estimated at 3 hours on an A100 (80 GB; 33 GB of
state) or 0.9 on an H100. The authors' README gives 2.75 hours on four A100 for
their code, users report a held-out loss near 0.6.

Paper and code differ in the learning rate: 1e-6 here, 5e-7 in the code's
commands (--config.schedule.peak=5e-7).
`configs/hh_dpo.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'runs/hh_sft/params'
  # A local copy of the repository can be named with path.
  c.data.update(
    source='hh',
    path='hf://datasets/Anthropic/hh-rlhf',
    kind='pairs',
    truncation='keep_end',
    # Rows whose transcripts differ before the last answer.
    max_drop_fraction=0.05,
  )
  c.method = dict(name='dpo', loss='dpo', beta=0.1, reference='cached')
  return defaults.cut_paper(c, variant)
