"""Greedy decoding of the real model equals transformers', token for token."""

import jax
import numpy as np
import pytest
import torch
import transformers

from dpo_jax import sampling, tokenizers, weights

NEW_TOKENS = 24


def _prompts(tokenizer, movie_file):
  """32 sentences, every other one as a question to the chat model."""
  lines = movie_file.read_text('utf-8').splitlines()[:32]
  for i, line in enumerate(lines):
    text = line.split('\t')[2]
    if i % 2:
      message = dict(role='user', content=text)
      text = tokenizer.apply_chat([message], add_generation_prompt=True)
    yield tokenizer.encode(text)


def _peer_greedy(gguf, prompts):
  """New tokens of each prompt, [32, NEW_TOKENS], in one left-padded batch."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    gguf.parent, gguf_file=gguf.name, dtype=torch.float32
  ).eval()
  longest = max(map(len, prompts))
  ids = torch.zeros((len(prompts), longest), dtype=torch.long)
  mask = torch.zeros_like(ids)
  for row, prompt in enumerate(prompts):
    ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
    mask[row, longest - len(prompt) :] = 1
  out = model.generate(
    ids,
    attention_mask=mask,
    do_sample=False,
    min_new_tokens=NEW_TOKENS,
    max_new_tokens=NEW_TOKENS,
    pad_token_id=0,
    eos_token_id=None,
  )
  return out[:, longest:].numpy()


@pytest.mark.long
@pytest.mark.download
def test_greedy_equals_transformers(smollm2_gguf, movie_file):
  config, params = weights.load(str(smollm2_gguf))
  tokenizer = tokenizers.load(str(smollm2_gguf))
  prompts = list(_prompts(tokenizer, movie_file))
  assert len(set(map(len, prompts))) > 15
  out = sampling.sample(
    params,
    config,
    prompts,
    key=jax.random.key(0),
    max_new_tokens=NEW_TOKENS,
    temperature=0.0,
  )
  expected = _peer_greedy(smollm2_gguf, prompts)
  np.testing.assert_array_equal(out.tokens_BxSxT[:, 0], expected)
