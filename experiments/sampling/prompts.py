"""Prompts of the sampling benchmark.

  python -m experiments.sampling.prompts

chooses prompts whose greedy answers end, and writes unequal.json.
"""

import json
import pathlib

import numpy as np

from dpo_jax import assets, tokenizers

UNEQUAL = pathlib.Path(__file__).with_name('unequal.json')
LEAST, MOST = 4, 128
POOL, CHOSEN = 700, 256


def tokenizer():
  return tokenizers.load(assets.SMOLLM2)


def sentences(count: int) -> list[str]:
  """The first sentences of the movie reviews."""
  path = assets.resolve(assets.MOVIE_REVIEWS)
  lines = path.read_text('utf-8').splitlines()[:count]
  return [line.split('\t')[2] for line in lines]


def as_chat(tokenizer, text: str) -> list[int]:
  message = dict(role='user', content=text)
  text = tokenizer.apply_chat([message], add_generation_prompt=True)
  return tokenizer.encode(text)


def mixed(count: int) -> list[list[int]]:
  """Sentences, every other one as a chat turn."""
  t = tokenizer()
  return [
    as_chat(t, text) if i % 2 else t.encode(text)
    for i, text in enumerate(sentences(count))
  ]


def paragraph_ends() -> list[int]:
  """EOS, the end of a turn, and the tokens that hold a line break."""
  t = tokenizer()
  breaks = [i for i in range(t.vocab_size) if '\n' in t.decode([i])]
  return [*t.stop_ids, *breaks]


def unequal(count: int) -> list[list[int]]:
  """Chat turns whose greedy answer's first paragraph has 4 to 128 tokens."""
  chosen = json.loads(UNEQUAL.read_text())['sentences'][:count]
  texts, t = sentences(POOL), tokenizer()
  return [as_chat(t, texts[i]) for i in chosen]


def main():
  import jax

  from dpo_jax import sampling, weights

  config, params = weights.load(assets.SMOLLM2)
  t = tokenizer()
  pool = [as_chat(t, text) for text in sentences(POOL)]
  out = sampling.sample(
    params,
    config,
    pool,
    key=jax.random.key(0),
    max_new_tokens=MOST + 1,
    batch_size=64,
    temperature=0.0,
    eos_id=paragraph_ends(),
  )
  lengths = out.lengths_BxS[:, 0]
  fits = np.flatnonzero((lengths >= LEAST) & (lengths <= MOST))[:CHOSEN]
  if len(fits) < CHOSEN:
    raise ValueError(f'{len(fits)} of {POOL} answers fit; need {CHOSEN}.')
  chosen = dict(sentences=fits.tolist(), lengths=lengths[fits].tolist())
  UNEQUAL.write_text(json.dumps(chosen) + '\n')
  print('mean length', lengths[fits].mean(), 'of', np.sort(lengths[fits]))


if __name__ == '__main__':
  main()
