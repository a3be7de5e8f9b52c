"""Beginnings of sentences to complete, and rated sentences for a reward model.

  python -m experiments.win_rates.data --out runs/win_rates/data

Of the fifth of the movie sentences that the quickstart's training leaves out,
prompts.jsonl has the quickstart's prompt with the first words of 256 sentences,
and rated_train.jsonl and rated_held.jsonl have others with people's ratings:
what a reward model learns from was seen by neither policy, and it did not see
the sentences whose beginnings are completed.
"""

import argparse
import json
import pathlib

from dpo_jax import assets
from dpo_jax.data.sources import movie_reviews

# Of all sentences: for prompts, for the reward model's test, and for training.
PROMPTS, HELD, UNSEEN = 0.05, 0.08, 0.2
NUM_PROMPTS, WORDS = 256, 3


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  out = parser.parse_args().out
  path = assets.resolve(assets.MOVIE_REVIEWS)
  parts, seen = [], set()
  for share in (PROMPTS, HELD, UNSEEN):
    found = movie_reviews.read_split(path, 'test', share)
    parts.append([s for s in found if s.text not in seen])
    seen |= {s.text for s in found}
  begun, held, train = parts
  begins = dict.fromkeys(
    ' '.join(s.text.split()[:WORDS])
    for s in begun
    if len(s.text.split()) > WORDS
  )
  if len(begins) < NUM_PROMPTS:
    raise ValueError(f'{len(begins)} beginnings; expected {NUM_PROMPTS}.')
  prompts = [
    {'prompt': f'{movie_reviews.PROMPT} {begin}'}
    for begin in list(begins)[:NUM_PROMPTS]
  ]
  out.mkdir(parents=True, exist_ok=True)
  _write(out / 'prompts.jsonl', prompts)
  for name, sentences in (('train', train), ('held', held)):
    _write(
      out / f'rated_{name}.jsonl',
      [
        {
          'prompt': movie_reviews.PROMPT,
          'completion': f' {s.text}',
          'rating': s.rating,
        }
        for s in sentences
      ],
    )


def _write(path: pathlib.Path, rows: list[dict]) -> None:
  with assets.atomic_path(path) as temp:
    temp.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  print(path, len(rows))


if __name__ == '__main__':
  main()
