"""Sampling: what `python -m dpo_jax.sample` can be told, for the quickstart.

  python -m dpo_jax.sample --config configs/sample.py 'The film'
  python -m dpo_jax.sample --config configs/sample.py --chat

Without this page the values are the same, but for the model, which
--config.model.uri then names.
"""

from ml_collections import config_dict


def get_config():
  """The page."""
  c = config_dict.ConfigDict()
  # The same seed gives the same samples.
  c.seed = 0

  # tokenizer None: the one in the model's own files. dtype: what is computed
  # in, 'float32' or 'bfloat16'.
  c.model = dict(
    uri='runs/quickstart/params',
    tokenizer=config_dict.placeholder(str),
    dtype='float32',
  )

  # Of each prompt.
  c.num_samples = 1
  c.max_new_tokens = 128
  # 1 samples the model itself; lower, and likely tokens come more often; 0
  # always takes the likeliest.
  c.temperature = 1.0
  # Of each token's distribution, keep the k likeliest, then the likeliest that
  # hold a share p together. None keeps all.
  c.top_k = config_dict.placeholder(int)
  c.top_p = config_dict.placeholder(float)
  # Prompts that are sampled together: memory grows with it.
  c.batch_size = 16
  # The first so many devices, and how the model is split (docs/mesh.md).
  c.mesh = dict(devices=1, data=-1, fsdp=1, tensor=1)
  return c
