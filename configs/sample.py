"""Sampling: what `python -m dpo_jax.sample` can be told, for the quickstart.

  python -m dpo_jax.sample --config configs/sample.py 'The film'
  python -m dpo_jax.sample --config configs/sample.py --chat

Without this page the values are the same, but for the model, which
--config.model.uri then names.
"""

from dpo_jax import defaults


def get_config():
  """The page."""
  c = defaults.sampling()
  c.model.uri = 'runs/quickstart/params'
  return c
