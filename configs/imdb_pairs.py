"""Pairs for imdb_dpo.py: what the SFT model writes, judged by a classifier.

  python -m dpo_jax.train --config configs/imdb_sft.py
  python -m dpo_jax.pairs --config configs/imdb_pairs.py
  python -m dpo_jax.train --config configs/imdb_dpo.py

App. C.1 of https://arxiv.org/abs/2305.18290: four completions of each of
25,000 prefixes of 2 to 8 tokens; of two, the one that the classifier finds
more likely positive is preferred, which makes 150k pairs without noise. The
classifier needs `pip install torch transformers`.

The paper leaves open the length (about 60 tokens, from the KL per token that
its authors gave in review), the temperature, and whether the classifier sees
the prefix: 60, 1.0 and the completion alone here; TRL's example shows it both.
Hours: not estimated.
`configs/imdb_pairs.py:tiny` makes eight prompts' pairs, judged by VADER.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.sampling()
  c.model.update(uri='runs/imdb_sft/params', dtype='bfloat16')
  c.data = defaults.imdb_prefixes(split='train')
  c.num_prompts = 25_000
  del c.num_samples, c.mesh
  c.num_completions = 4
  c.max_new_tokens = 60
  c.batch_size = 64
  # sees: 'completion', or 'both' for prompt and completion.
  c.reward = dict(
    name='classifier',
    sees='completion',
    model='hf://siebert/sentiment-roberta-large-english',
    label='POSITIVE',
    batch_size=16,
    max_length=512,
  )
  defaults.check_variant(variant)
  if variant:
    c.num_prompts, c.batch_size, c.max_new_tokens = 8, 4, 6
    c.model.dtype = 'float32'
    c.reward = dict(name='vader', sees='completion')
  return c
