"""DPO on TL;DR comparisons with GPT-J 6B, after tldr_sft.py.

  python -m dpo_jax.train --config configs/tldr_sft.py
  python -m dpo_jax.train --config configs/tldr_dpo.py

Section 6's summarisation experiment (https://arxiv.org/abs/2305.18290; values
and hours: dpo_jax/defaults.py): beta 0.5, 92.5k comparisons of summaries by
people (Stiennon et al., arXiv:2009.01325) that another model wrote.
One epoch, about 40M tokens: 2.4e18 FLOPs, estimated at 1.7 hours on an H200.
State takes 73 GB, see tldr_sft.py.

The paper gives no number of epochs and no lengths, and its code does not load
this data.
`configs/tldr_dpo.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'runs/tldr_sft/params'
  # A local copy of the repository can be named with path. A post that is too
  # long keeps its end, which asks for the summary.
  c.data.update(
    source='tldr_comparisons',
    path='hf://datasets/CarperAI/openai_summarize_comparisons',
    kind='pairs',
    max_length=550,
    max_prompt_length=486,
    truncation='keep_end',
    max_drop_fraction=0.01,
  )
  c.method = dict(name='dpo', loss='dpo', beta=0.5, reference='cached')
  return defaults.cut_paper(c, variant)
