"""SmolLM2 as a folder that `transformers` reads: what both sides train.

python -m experiments.throughput.hf_checkpoint FOLDER
"""

import json
import pathlib
import sys

from dpo_jax import assets, tokenizers, weights


def write(folder: pathlib.Path) -> None:
  """Writes float32 weights and the tokenizer; `folder` appears whole or not."""
  tokenizer = tokenizers.load(assets.SMOLLM2)
  config, params = weights.load(assets.SMOLLM2)
  with assets.atomic_path(folder) as temp:
    weights.save(
      temp, config, params, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id
    )
    tokenizer.backend.save(str(temp / 'tokenizer.json'))
    settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'model_max_length': config.max_positions,
      'clean_up_tokenization_spaces': False,
      **tokenizer.special_tokens,
    }
    text = json.dumps(settings, indent=2)
    (temp / 'tokenizer_config.json').write_text(text + '\n')


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]))
