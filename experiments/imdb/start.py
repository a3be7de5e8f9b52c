"""The start of the scale 'tiny': a vocabulary of the reviews, random weights.

  python -m experiments.imdb.start --data runs/imdb/data --out runs/imdb/start

A byte-level BPE vocabulary of 4,096 tokens is made from the part 'sft'. The
model has 8 layers of width 256, 7.4M parameters, and learns the reviews in the
stage 'sft'; no other part is seen.
"""

import argparse
import json
import pathlib

import jax
import pyarrow.parquet
import tokenizers

from dpo_jax import assets, models, weights

VOCABULARY = 4096
EOS = '<|endoftext|>'
CONFIG = models.ModelConfig(
  vocab_size=VOCABULARY,
  num_layers=8,
  d_model=256,
  num_heads=4,
  num_kv_heads=4,
  head_dim=64,
  d_ff=704,
  max_positions=256,
  tie_embeddings=True,
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  (path,) = (args.data / 'sft' / 'plain_text').glob('train-*.parquet')
  texts = pyarrow.parquet.read_table(path)['text'].to_pylist()
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=[EOS])
  settings = {'eos_token': EOS, 'model_max_length': CONFIG.max_positions}
  params = models.init(jax.random.key(args.seed), CONFIG)
  with assets.atomic_path(args.out) as temp:
    weights.save(temp, CONFIG, params)
    tokenizer.save(str(temp / 'tokenizer.json'))
    (temp / 'tokenizer_config.json').write_text(json.dumps(settings))
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f'{args.out}: {count / 1e6:.1f}M parameters')


if __name__ == '__main__':
  main()
