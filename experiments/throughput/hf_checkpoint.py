"""SmolLM2 as a folder that `transformers` reads: what both sides train.

python -m experiments.throughput.hf_checkpoint FOLDER
"""

import pathlib
import sys

from dpo_jax import assets, tokenizers, weights


def write(folder: pathlib.Path) -> None:
  """Writes float32 weights and the tokenizer; `folder` appears whole or not."""
  tokenizer = tokenizers.load(assets.SMOLLM2)
  config, params = weights.load(assets.SMOLLM2)
  with assets.atomic_path(folder) as temp:
    ids = dict(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    weights.save(temp, config, params, **ids)
    tokenizer.save(temp)


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]))
