"""Sentencepiece in GGUF files: which token is the unknown token."""

import gguf
import hypothesis
import pytest
from hypothesis import strategies as st

from dpo_jax import tokenizers

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TOKENS = ['<unk>', '<s>', '</s>', '▁', 'a', 'b', '▁a']
_KINDS = [_UNKNOWN, _CONTROL, _CONTROL, *[_NORMAL] * 4]


def _load(path, tokens=_TOKENS, kinds=_KINDS, unknown=0):
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('llama')
  writer.add_token_list(tokens)
  writer.add_token_scores([0.0] * len(tokens))
  writer.add_token_types(kinds)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  if unknown is not None:
    writer.add_unk_token_id(unknown)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tokenizers.load(path)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  return _load(tmp_path_factory.mktemp('plain') / 'x.gguf')


@pytest.fixture(scope='module')
def padded(tmp_path_factory):
  """Padding of type UNKNOWN, as Phi-3's file has it; with other unknowns."""
  folder = tmp_path_factory.mktemp('padded')
  pads = [f'[PAD{7 + i}]' for i in range(3)]
  tokens, kinds = [*_TOKENS, *pads], [*_KINDS, *[_UNKNOWN] * 3]
  of_control = [_CONTROL, *kinds[1:]]
  return {
    'named': _load(folder / '1.gguf', tokens, kinds),
    'not named': _load(folder / '2.gguf', tokens, kinds, unknown=None),
    'of type CONTROL': _load(folder / '3.gguf', tokens, of_control),
  }


@pytest.mark.parametrize('name', ['named', 'not named', 'of type CONTROL'])
@hypothesis.settings(deadline=None)
@hypothesis.given(
  text=st.lists(st.sampled_from([*'ab c', '[PAD7]', '<unk>', '</s>'])).map(
    ''.join
  )
)
@hypothesis.example(text='a b')
def test_padding_of_type_unknown_is_in_no_text(plain, padded, name, text):
  ours = padded[name]
  assert ours.encode('a b') == [6, 3, 5]
  assert ours.encode(text) == plain.encode(text)
  assert max(ours.encode(text), default=0) < len(_TOKENS)
  assert ours.control == {'<s>', '</s>'}
  # A padding token that a model samples is shown.
  assert (ours.vocab_size, ours.decode([4, 8])) == (10, 'a[PAD8]')


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (dict(unknown=4), "unknown_token_id is 4, 'a', of type 1, plain text"),
    (
      dict(unknown=None, kinds=[_CONTROL, *_KINDS[1:]]),
      'no tokenizer.ggml.unknown_token_id, and no token has',
    ),
    (dict(tokens=[*_TOKENS[:-1], 'a']), r"twice: \['a'\]"),
    # What the library itself refuses.
    (dict(tokens=[*_TOKENS[:-1], '']), 'must not be empty'),
  ],
)
def test_files_that_contradict_themselves_are_named(tmp_path, changed, message):
  with pytest.raises(ValueError, match=rf'x\.gguf.*{message}'):
    _load(tmp_path / 'x.gguf', **changed)
