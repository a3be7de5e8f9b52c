"""A small real tokenizer: byte-level BPE trained on a few sentences."""

import dataclasses
import functools
import hashlib
import json
import re

import pytest
import tokenizers

from dpo_jax import data
from dpo_jax.tokenizers import json_vocabulary
from dpo_jax.tokenizers import tokenizer as tokenizer_lib

SENTENCES = [
  'A sentence from a movie review: the plot is thin but the acting is great.',
  'I did not like this film at all; it was dull, loud and far too long.',
  'What a wonderful, warm and funny story! Touché — go and see it.',
]


@dataclasses.dataclass
class Toy:
  """What dpo_jax.data asks of a tokenizer."""

  backend: tokenizers.Tokenizer
  bos_id: int | None
  eos_id: int | None
  add_bos: bool

  @property
  def vocab_size(self):
    return self.backend.get_vocab_size()

  @property
  def fingerprint(self):
    return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

  def encode(self, text):
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts):
    encoded = self.backend.encode_batch(texts, add_special_tokens=False)
    return [e.ids for e in encoded]

  def encode_parts(self, texts, *, start, literal=False):
    if literal:
      return self.vocabulary.encode_text(texts, start=start)
    return self.encode_batch(texts)

  control_pattern = re.compile('</?s>')
  encode_written = tokenizer_lib.Tokenizer.encode_written

  def template_variables(self, *, tools=False):
    del tools
    return ()

  def starts_after(self, ids):
    del ids
    return False

  def decode(self, ids, *, start=True):
    del start
    return self.backend.decode(ids, skip_special_tokens=False)

  @functools.cached_property
  def vocabulary(self):
    return json_vocabulary.JsonVocabulary(self.backend)

  @property
  def end_of_turn(self):
    token = '' if self.eos_id is None else '</s>'
    return tokenizer_lib.EndOfTurn('</s>', '', token, self.eos_id)

  def apply_chat(
    self, messages, *, add_generation_prompt=False, strftime_now=None
  ):
    del strftime_now
    turns = [f'[{m["role"]}]{m["content"]}</s>' for m in messages]
    return ''.join(turns) + '[assistant]' * add_generation_prompt

  def mark_answers(self, messages, strftime_now=None):
    del messages


@pytest.fixture(scope='session')
def make_tokenizer():
  """(bos, eos, add_bos, vocab_size) -> a tokenizer with or without each."""
  backends = {}

  def make(bos=True, eos=True, add_bos=False, vocab_size=300):
    if vocab_size not in backends:
      backend = tokenizers.Tokenizer(tokenizers.models.BPE())
      backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
      )
      backend.decoder = tokenizers.decoders.ByteLevel()
      trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=['<s>', '</s>'],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
      )
      backend.train_from_iterator(SENTENCES, trainer)
      backends[vocab_size] = backend
    return Toy(
      backends[vocab_size], 0 if bos else None, 1 if eos else None, add_bos
    )

  return make


@pytest.fixture
def load(tmp_path, monkeypatch, make_tokenizer):
  """(rows, options of the section) -> token records; rows are in file 'f'."""
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)

  def load(rows, **options):
    with open('f.jsonl', 'w') as f:
      f.writelines(json.dumps(row) + '\n' for row in rows)
    section = dict(
      source='jsonl', path='f.jsonl', max_length=64, max_prompt_length=32
    )
    return data.load(section | options, tokenizer=make_tokenizer(add_bos=True))

  return load
