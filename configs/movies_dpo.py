"""DPO from the model that movies_sft.py left; the reference is that model too.

  python -m dpo_jax.train --config configs/movies_sft.py
  python -m dpo_jax.train --config configs/movies_dpo.py

All else is the quickstart's: the pairs, the method, the sizes.
`configs/movies_dpo.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.movies()
  c.model.uri = 'runs/movies_sft/params'
  c.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  return defaults.cut_movies(c, variant)
