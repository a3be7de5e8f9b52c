"""DPO on the pairs of imdb_pairs.py with GPT-2 large.

  python -m dpo_jax.train --config configs/imdb_sft.py
  python -m dpo_jax.pairs --config configs/imdb_pairs.py
  python -m dpo_jax.train --config configs/imdb_dpo.py

Section 6's controlled sentiment experiment (https://arxiv.org/abs/2305.18290;
values and hours: dpo_jax/defaults.py). The frontier of reward and KL is that of
beta 0.05, 0.1, 1 and 5 (--config.method.beta=5 --workdir runs/imdb_beta5):
every 100 steps, samples/kl and samples/classifier of 256 samples are one point
of it. The classifier needs `pip install torch transformers`. One epoch is
about 2,300 steps of 64 pairs, six of each prompt, about 6M tokens: 5e16 FLOPs,
estimated at 6 minutes on an A100, samples not counted.

The paper samples prompts of IMDb's test split; here a fiftieth of the prompts
of the pairs is held out and sampled. A batch holds all pairs of about 11
prompts, as in the authors' code.
`configs/imdb_dpo.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'runs/imdb_sft/params'
  c.data.update(
    source='jsonl',
    path='runs/imdb_pairs/pairs.jsonl',
    kind='pairs',
    held_out_fraction=0.02,
    truncation='keep_end',
    max_drop_fraction=0.01,
  )
  c.eval_every = c.checkpoints.every = c.samples.every = 100
  c.samples.update(num_prompts=256, max_new_tokens=60, reward='classifier')
  c.method = dict(name='dpo', loss='dpo', beta=0.1, reference='cached')
  c = defaults.cut_paper(c, variant)
  if variant:
    # Of eight prompts, and without the classifier's packages.
    c.data.held_out_fraction = 0.5
    c.samples.reward = 'vader'
  return c
