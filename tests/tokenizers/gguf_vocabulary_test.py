"""GGUF vocabularies against `transformers` and against a brute force BPE."""

import unicodedata
from unittest import mock

import gguf
import hypothesis
import pytest
import transformers
from absl import logging
from hypothesis import strategies as st

from dpo_jax import tokenizers
from tests.tokenizers import brute_bpe

_ADVERSARIAL = [
  '',
  ' ',
  '   ',
  '\n\n\n',
  '\t \r\n\x0b\x0c\x85\xa0\u2028\u3000 x',
  '\x00\x1c\x1d\x1e\x1f\x7f\xad',
  "'s 't 're 've 'm 'll 'd 'S I'D he'll ''s",
  'e\u0301 \u00e9 \u1e9b\u0323 \ufb01 \u212b',  # Not equal to its NFC.
  'سلام שלום नमस्ते สวัสดี 你好 こんにちは 안녕',
  '\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea 👍🏽',
  'zalgo: Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢',
  '\ufeffBOM \ufffd \uffff \U0010ffff \u202eRTL',
  '<|im_start|>user\nhi<|im_end|> <|endoftext|><|im_end',
  'Ġ Ċ Â âĢĻ',
  'a' * 1000 + ' ' * 100 + '!' * 100,
]
_NUMERALS = ['\n\n1', '  1', ' 12', ' ½', '9 ½ weeks', ' ١٢', 'Ⅷ ²³', '1\n\n2']

# SmolLM2's vocabulary was learned from text without these.
_DROPPED = dict.fromkeys([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D])

# Unassigned characters differ between the Unicode versions of Python and Rust.
_text = st.text(st.characters(exclude_categories=('Cs', 'Cn')))
_hard = st.lists(st.one_of(_text, st.sampled_from(_ADVERSARIAL + _NUMERALS)))
_hard = _hard.map(''.join)
_relaxed = hypothesis.settings(max_examples=300, deadline=None)


def _has_numeral(text):
  return any(unicodedata.category(c)[0] == 'N' for c in text)


@pytest.fixture(scope='module')
def smollm2(smollm2_gguf):
  return tokenizers.load(smollm2_gguf)


@pytest.fixture(scope='module')
def peer(smollm2_gguf):
  return transformers.AutoTokenizer.from_pretrained(
    smollm2_gguf.parent, gguf_file=smollm2_gguf.name
  )


def _peer_ids(peer, text):
  return peer(text, add_special_tokens=False)['input_ids']


@pytest.fixture(scope='module')
def brute(smollm2_gguf):
  fields = gguf.GGUFReader(smollm2_gguf).fields
  tokens, merges, types = (
    fields[f'tokenizer.ggml.{key}'].contents()
    for key in ('tokens', 'merges', 'token_type')
  )
  specials = [t for t, kind in zip(tokens, types) if kind == 3]
  return brute_bpe.BruteBpe(tokens, merges, specials, digits=True)


@pytest.fixture(scope='module')
def sentences(movie_file):
  rows = movie_file.read_text('utf-8').splitlines()
  return [row.split('\t')[2] for row in rows]


real = [pytest.mark.slow, pytest.mark.download]


class TestSmolLM2:
  pytestmark = real

  def test_facts_of_the_file(self, smollm2, peer):
    assert smollm2.vocab_size == 49152
    assert smollm2.eos_id == peer.eos_token_id == 2
    assert smollm2.bos_id == peer.bos_token_id == 1
    assert not smollm2.add_bos
    assert smollm2.chat_template == peer.chat_template

  @pytest.mark.long
  def test_ten_thousand_sentences_equal_brute_force_bpe(
    self, smollm2, brute, sentences
  ):
    assert len(sentences) > 10_000
    ids = smollm2.encode_batch(sentences)
    assert ids == [brute.encode(s) for s in sentences]
    assert [smollm2.decode(i) for i in ids] == sentences

  def test_transformers_differs_on_white_space_before_numerals_alone(
    self, smollm2, peer, sentences
  ):
    """`transformers` cuts with GPT-2's rule whatever the file names."""
    pairs = zip(
      sentences, smollm2.encode_batch(sentences), _peer_ids(peer, sentences)
    )
    differing = [s for s, ours, theirs in pairs if ours != theirs]
    assert len(differing) == 3
    assert all('    10 or' in s or ' ½' in s for s in differing)

  @pytest.mark.parametrize(
    ('text', 'tokens', 'peer_tokens'),
    [
      ('\n\n1', ['ĊĊ', '1'], ['Ċ', 'Ċ', '1']),
      ('  1', ['ĠĠ', '1'], ['Ġ', 'Ġ', '1']),
      (' ½', ['Ġ', 'Â½'], ['ĠÂ', '½']),
      (' 12', ['Ġ', '1', '2'], ['Ġ', '1', '2']),
      ('a1', ['a', '1'], ['a', '1']),
    ],
  )
  def test_numerals_stand_alone(
    self, smollm2, peer, brute, text, tokens, peer_tokens
  ):
    ids = smollm2.encode(text)
    assert [smollm2.vocabulary.id_to_token(i) for i in ids] == tokens
    assert ids == brute.encode(text)
    assert peer.tokenize(text) == peer_tokens

  @pytest.mark.parametrize('text', _ADVERSARIAL)
  def test_adversarial_text(self, smollm2, peer, brute, text):
    ids = smollm2.encode(text)
    assert ids == _peer_ids(peer, text) == brute.encode(text)
    assert smollm2.decode(ids) == text.translate(_DROPPED)

  def test_characters_without_a_byte_in_the_vocabulary(self, smollm2):
    """The published vocabulary cannot spell these; all else survives."""
    characters = [c for c in range(0x40000) if not 0xD800 <= c < 0xE000]
    ids = smollm2.encode_batch([chr(c) for c in characters])
    lost = [c for c, i in zip(characters, ids) if smollm2.decode(i) != chr(c)]
    assert lost == list(_DROPPED)

  @_relaxed
  @hypothesis.given(text=_hard)
  def test_any_text(self, smollm2, peer, brute, text):
    ids = smollm2.encode(text)
    assert ids == brute.encode(text)
    assert smollm2.decode(ids) == text.translate(_DROPPED)
    if not _has_numeral(text):
      assert ids == _peer_ids(peer, text)

  def test_decoding_splits_anywhere_but_inside_a_character(self, smollm2):
    text = 'Good\n\n1 film<|im_end|> naïve'
    ids = smollm2.encode(text)
    for cut in range(len(ids)):
      parts = smollm2.decode(ids[:cut]) + smollm2.decode(ids[cut:])
      assert parts == text or '\ufffd' in parts

  def test_chat_equals_transformers(self, smollm2, peer):
    for messages in (
      [{'role': 'user', 'content': ' Hi <b>&\n'}],
      [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'Hi'},
        {'role': 'assistant', 'content': 'Yo'},
      ],
    ):
      for prompt in (False, True):
        ours = smollm2.apply_chat(messages, add_generation_prompt=prompt)
        assert ours == peer.apply_chat_template(
          messages, tokenize=False, add_generation_prompt=prompt
        )


# Small made vocabularies.

_ALPHABET = list(brute_bpe._alphabet().values())
_MERGES = [
  *('Ġ t', 'h e', 'Ġt he', 'Ġ Ġ', 'Ċ Ċ', 'l l', 'Ġ a', '1 2', 'Ġ 1'),
  *("' s", 'e r', 'i n', 'Ã ©', '12 3', '! !', '!! Ċ', "' S"),
]

_EOS = '<|endoftext|>'  # `transformers` adds this one if a file lacks it.


def _write(path, *, pre='gpt-2', model='gpt2', extra=(), **fields):
  tokens = _ALPHABET + [m.replace(' ', '') for m in _MERGES] + ['<s>', _EOS]
  kinds = [1] * (len(tokens) - 2) + [3, 3]
  tokens, kinds = [*tokens, *extra], kinds + [4] * len(extra)
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(model)
  if pre is not None:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(_MERGES)
  writer.add_bos_token_id(tokens.index('<s>'))
  if fields.pop('eos', True):
    writer.add_eos_token_id(tokens.index(_EOS))
  for name, value in fields.items():
    getattr(writer, f'add_{name}')(value)
  # What `transformers` wants of a llama file.
  writer.add_block_count(1)
  writer.add_embedding_length(8)
  writer.add_feed_forward_length(8)
  writer.add_head_count(1)
  writer.add_head_count_kv(1)
  writer.add_context_length(8)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_vocab_size(len(tokens))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """pre-tokenizer -> (ours, that of `transformers`) on one vocabulary."""
  folder, result = tmp_path_factory.mktemp('vocabularies'), {}
  for pre in ('gpt-2', 'llama-bpe', 'qwen2'):
    path = _write(folder / f'{pre}.gguf', pre=pre)
    peer = transformers.AutoTokenizer.from_pretrained(
      folder, gguf_file=path.name
    )
    result[pre] = tokenizers.load(path), peer
  return result


@pytest.mark.parametrize('pre', ['gpt-2', 'llama-bpe', 'qwen2'])
@_relaxed
@hypothesis.given(text=_hard)
@hypothesis.example(text=' 123123 12 1 ٣٤٥٦')
@hypothesis.example(text="the's THE'S \n\n1 !!\n  \n the")
def test_pre_tokenizers_equal_transformers(pairs, pre, text):
  ours, peer = pairs[pre]
  if pre == 'qwen2':  # Its published tokenizer normalises; GGUF cannot say so.
    assert ours.encode(text) == ours.encode(unicodedata.normalize('NFC', text))
    text = unicodedata.normalize('NFC', text)
  ids = ours.encode(text)
  assert ids == _peer_ids(peer, text)
  assert ours.decode(ids) == text


def test_a_word_of_llama3s_vocabulary_is_not_merged(tmp_path):
  """Llama 3's tokenizer.json has `ignore_merges`; 'her' has no merges here."""
  for pre, count in (('llama-bpe', 1), ('gpt-2', 2)):
    path = _write(tmp_path / f'{pre}.gguf', pre=pre)
    t = tokenizers.load(_with_word(path, 'her'))
    assert len(t.encode('her')) == count


def _with_word(path, word):
  """A copy of the file whose last merge's token is spelled `word`."""
  data = path.read_bytes()
  old, new = "'S", word
  size = (len(old)).to_bytes(8, 'little')
  assert data.count(size + old.encode()) == 1
  changed = len(new).to_bytes(8, 'little') + new.encode()
  data = data.replace(size + old.encode(), changed)
  # The merge that made the old token would now name no token.
  rule, other = b"' S", b'! !'
  size = (3).to_bytes(8, 'little')
  data = data.replace(size + rule, size + other)
  out = path.with_name('word-' + path.name)
  out.write_bytes(data)
  return out


def test_bos_is_added_where_the_file_or_its_pre_tokenizer_says(tmp_path):
  def load(**options):
    return tokenizers.load(_write(tmp_path / 'x.gguf', **options)).add_bos

  assert not load(pre='gpt-2')
  assert load(pre='llama-bpe')
  assert not load(pre='llama-bpe', add_bos_token=False)
  assert load(pre='gpt-2', add_bos_token=True)


def test_user_defined_tokens_survive_whatever_they_look_like(tmp_path):
  extra = ['é!', 'two words', 'Ġ!', '<think>']
  t = tokenizers.load(_write(tmp_path / 'x.gguf', extra=extra))
  text = 'aé! two words<think>Ġ! é\n<s>é'
  ids = t.encode(text)
  assert {t.vocabulary.token_to_id(e) for e in extra} <= set(ids)
  assert t.decode(ids) == text


def test_a_file_without_pre_tokenizer_gets_gpt2s(tmp_path):
  with mock.patch.object(logging, 'warning') as warning:
    named = tokenizers.load(_write(tmp_path / 'a.gguf', pre='gpt-2'))
    assert not warning.called
    silent = tokenizers.load(_write(tmp_path / 'b.gguf', pre=None))
  assert silent.fingerprint == named.fingerprint
  (said,) = (call.args[0] for call in warning.call_args_list)
  assert 'does not name its pre-tokenizer' in said


# Each has a rule of its own, or none that is known here.
@pytest.mark.parametrize('pre', ['qwen35', 'mpt2', 'deepseek-v3', 'LLAMA3'])
def test_a_rule_that_is_not_known_is_not_replaced(tmp_path, pre):
  with pytest.raises(ValueError, match=f'{pre!r}, which is not known') as e:
    tokenizers.load(_write(tmp_path / 'x.gguf', pre=pre))
  message = str(e.value)
  assert 'mean' not in message and 'x.gguf' in message
  assert 'qwen2' in message and 'model.tokenizer' in message


@pytest.mark.parametrize(
  ('names', 'text'),
  [
    # GPT-2's rule takes '  1' for ' ', ' 1'; the others cut numerals off.
    (('gpt-2', 'mpt', 'phi-2'), '  1'),
    (('smollm', 'starcoder', 'refact'), '  1'),
  ],
)
def test_names_of_one_rule(tmp_path, names, text):
  loaded = [
    tokenizers.load(_write(tmp_path / f'{name}.gguf', pre=name))
    for name in names
  ]
  assert len({t.fingerprint for t in loaded}) == 1
  cut_off = names[0] == 'smollm'
  assert (loaded[0].encode(text) == [*loaded[0].encode('  '), 16]) == cut_off


def test_errors_name_what_is_known(tmp_path):
  path = tmp_path / 'x.gguf'
  with pytest.raises(ValueError, match=r"'bert' is not supported.*gpt2"):
    tokenizers.load(_write(path, model='bert'))
  with pytest.raises(ValueError, match=r"no list .*scores, which 'llama'"):
    tokenizers.load(_write(path, model='llama'))
  with pytest.raises(ValueError, match='eos_token_id'):
    tokenizers.load(_write(path, eos=False))
  with pytest.raises(ValueError, match=r"twice: \['Ġ'"):
    tokenizers.load(_write(path, extra=['Ġ']))
  path.write_bytes(b'no such format at all')
  with pytest.raises(ValueError, match='no GGUF file'):
    tokenizers.load(path)
