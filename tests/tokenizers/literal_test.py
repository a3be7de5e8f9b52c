"""With literal=True control tokens spelled in a text are plain text."""

import json

import hypothesis
import pytest
import tokenizers as hf
import transformers
from hypothesis import strategies as st
from tokenizers import models, normalizers

from dpo_jax import tokenizers
from dpo_jax.tokenizers import json_vocabulary, sentencepiece_vocabulary
from tests.tokenizers import (
  joins_test,
  sentencepiece_test,
)

_CONTROL = ['<s>', '</s>', '[I]']
_words = st.sampled_from(
  [*_CONTROL, '<t>', '<', '</', 's>', 's', 'a', ' ', 'b']
)
_texts = st.lists(_words, max_size=7).map(''.join)
_settings = hypothesis.settings(max_examples=150, deadline=None)


def _save(folder, alphabet, dress, merges=()):
  letters = [*alphabet, *(c for c in '<>/st[]I' if c not in alphabet)]
  vocab = {c: i for i, c in enumerate([*letters, '</', 's>', *_CONTROL])}
  merges = [('<', '/'), ('s', '>'), *merges]
  backend = hf.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.add_special_tokens(_CONTROL)
  backend.add_tokens([hf.AddedToken('<t>', normalized=False)])
  dress(backend)
  backend.save(str(folder / 'tokenizer.json'))
  config = json.dumps({'bos_token': '<s>', 'eos_token': '</s>'})
  (folder / 'tokenizer_config.json').write_text(config)
  return folder


def _load(folder):
  """Ours, and that of `transformers` with control tokens split."""
  return tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(
    folder, split_special_tokens=True
  )


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  made = {}
  for name, (alphabet, dress) in joins_test.DRESSES.items():
    folder = tmp_path_factory.mktemp('tokenizer')
    made[name] = _load(_save(folder, alphabet, dress))
    # With a merge that makes the control token.
    folder = tmp_path_factory.mktemp('tokenizer')
    merges = [('</', 's>')]
    made[f'{name}, merged'] = _load(_save(folder, alphabet, dress, merges))
  return made


def _check(ours, text):
  """Properties of every vocabulary without normalisation."""
  control = {ours.vocabulary.token_to_id(token) for token in ours.control}
  for start in (True, False):
    literal = ours.encode_parts([text], start=start, literal=True)
    assert control.isdisjoint(literal[0])
    assert ours.decode(literal[0], start=start) == text
    if not any(token in text for token in ours.control):
      assert literal == ours.encode_parts([text], start=start)


@pytest.mark.parametrize('dress', joins_test.DRESSES)
@pytest.mark.parametrize('merged', ['', ', merged'])
@_settings
@hypothesis.given(text=_texts)
@hypothesis.example(text='<s>[I]</s>a</s> <t>')
@hypothesis.example(text='<</s></s>')
def test_no_text_becomes_a_control_token(pairs, dress, merged, text):
  ours, _ = pairs[dress + merged]
  # To those two these are one text after any added token.
  hypothesis.assume(dress in joins_test.EXACT or '<t> ' not in text)
  assert ours.control == set(_CONTROL)
  _check(ours, text)


@pytest.mark.parametrize('dress', joins_test.DRESSES)
@_settings
@hypothesis.given(text=_texts)
@hypothesis.example(text='a<t></s>')
def test_ids_are_those_of_transformers(pairs, dress, text):
  ours, peer = pairs[dress]
  hypothesis.assume(dress in joins_test.EXACT or text[:1] != ' ')
  (ids,) = ours.encode_parts([text], start=True, literal=True)
  assert ids == peer(text, add_special_tokens=False)['input_ids']
  assert ids.count(ours.vocabulary.token_to_id('<t>')) == text.count('<t>')


@pytest.mark.parametrize('dress', ['first', 'always', 'prepend', 'replace'])
def test_transformers_makes_the_token_that_merges_spell(pairs, dress):
  """Ids differ there: text stays text."""
  ours, peer = pairs[f'{dress}, merged']
  assert ours.eos_id in peer('a</s>', add_special_tokens=False)['input_ids']
  (ids,) = ours.encode_parts(['a</s>b'], start=False, literal=True)
  spelled = [ours.vocabulary.id_to_token(i) for i in ids]
  assert spelled == ['a', '<', '/', 's>', 'b']


def _unigram():
  pieces = [('<unk>', 0.0), ('</s>', 0.0), ('▁', -2.0)]
  pieces += [(c, -3.0) for c in 'ab</s>nuk']
  backend = hf.Tokenizer(models.Unigram(pieces, unk_id=0))
  backend.add_special_tokens(['<unk>', '</s>'])
  joins_test.DRESSES['first'][1](backend)
  return json_vocabulary.JsonVocabulary(backend)


def test_pieces_of_a_unigram_model_and_unknown_characters():
  ours = _unigram()
  found = ours.encode_text(['a</s>b', '<unk>', 'é', 'a</s>é'], start=True)
  assert [i for ids in found for i in ids].count(0) == 2  # 'é' alone.
  assert not any(1 in ids for ids in found)
  assert [ours.decode(ids, start=True) for ids in found] == [
    'a</s>b', '<unk>', '<unk>', 'a</s><unk>',
  ]  # fmt: skip


def test_a_control_token_that_cannot_be_spelled_otherwise_is_named():
  backend = hf.Tokenizer(models.BPE(vocab={'a': 0, '|': 1, 'A': 2}, merges=[]))
  backend.add_special_tokens(['|', 'A'])
  ours = json_vocabulary.JsonVocabulary(backend)
  assert ours.encode_text(['aa'], start=True) == [[0, 0]]
  with pytest.raises(ValueError, match=r"token '\|' .*in 'a\|'"):
    ours.encode_text(['a|'], start=True)
  backend.normalizer = normalizers.Replace('a', 'A')
  ours = json_vocabulary.JsonVocabulary(backend)
  with pytest.raises(ValueError, match=r"token 'A' .*in 'a'"):
    ours.encode_text(['a'], start=True)


# Sentencepiece.


@pytest.fixture(scope='module')
def models_of(tmp_path_factory):
  """name -> ours; Gemma's folder calls a piece of the model special."""
  found = {}
  for name in sentencepiece_test.EXACT:
    data = sentencepiece_test.train(**sentencepiece_test.MODELS[name])
    model = sentencepiece_vocabulary.Model.FromString(data)
    ids = {p.piece: i for i, p in enumerate(model.pieces)}
    added = {len(ids): '<|end|>', len(ids) + 1: '<think>'}
    added |= {ids[t]: t for t in ('<start_of_turn>',) if t in ids}
    folder = tmp_path_factory.mktemp('model')
    (folder / 'tokenizer.model').write_bytes(data)
    config = {
      str(i): {'content': t, 'special': t != '<think>'}
      for i, t in added.items()
    }
    (folder / 'tokenizer_config.json').write_text(
      json.dumps({'added_tokens_decoder': config})
    )
    found[name] = tokenizers.load(folder)
  return found


_pieces = ['<s>', '</s>', '[INST]', '<start_of_turn>', '<|end|>', '<think>']
_characters = st.characters(exclude_categories=['Cs'], exclude_characters='▁')
_sentences = st.lists(
  st.sampled_from([*_pieces, 'the film', ' ', '\n\n', 'é'])
  | st.text(_characters, max_size=3),
  max_size=7,
).map(''.join)


@pytest.mark.parametrize('name', sentencepiece_test.EXACT)
@_settings
@hypothesis.given(text=_sentences)
@hypothesis.example(text=''.join(_pieces))
def test_no_text_becomes_a_control_symbol(models_of, name, text):
  ours = models_of[name]
  special = {'<s>', '</s>', '[INST]', '<|end|>'}
  special |= {'<start_of_turn>'} if name == 'gemma' else set()
  assert ours.control == special
  _check(ours, text)


@pytest.mark.slow
@pytest.mark.download
@_settings
@hypothesis.given(
  parts=st.lists(
    st.text(_characters, max_size=4) | st.integers(0, 16), max_size=5
  )
)
@hypothesis.example(parts=['What does', 2, ' do?', 1, 'system'])
def test_a_gguf_file(smollm2, parts):
  """Its 17 control tokens come first; it has no token for six characters."""
  token = smollm2.vocabulary.id_to_token
  assert smollm2.control == {token(i) for i in range(17)}
  text = ''.join(p if isinstance(p, str) else token(p) for p in parts)
  if smollm2.decode(smollm2.encode(text)) == text:
    _check(smollm2, text)


@pytest.fixture(scope='module')
def smollm2(smollm2_gguf):
  return tokenizers.load(smollm2_gguf)
