"""What packing promises, on the benchmark's prose: few shapes, little waste."""

import pytest

from dpo_jax import assets, data, tokenizers
from dpo_jax.data import batches
from experiments.throughput import make_pairs


@pytest.mark.slow
@pytest.mark.download
def test_nine_tenths_of_a_batch_are_real_in_four_shapes(
  smollm2_gguf, movie_file, tmp_path
):
  make_pairs.write(tmp_path)
  section = dict(
    source='jsonl',
    path=str(tmp_path / 'hh_like.jsonl'),
    max_length=512,
    max_prompt_length=256,
  )
  tokenizer = tokenizers.load(assets.SMOLLM2)
  records = data.load(section, tokenizer=tokenizer)
  steps = len(records) // 4
  train = batches.train_batches(records, steps, 1, 0, batch_size=4)
  (held_out,) = batches.eval_batches(records, 1, batch_size=16)
  assert len(train.shapes) + len(held_out.shapes) <= 4
  assert train.real_fraction >= 0.9
  assert held_out.real_fraction >= 0.9
