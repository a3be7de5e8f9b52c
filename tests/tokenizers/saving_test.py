"""Saved tokenizers equal the originals, also read by `transformers`."""

import pytest
import transformers

from dpo_jax import tokenizers
from tests.tokenizers import gguf_vocabulary_test, hf_folder_test

_TEXTS = [
  'The cat.\n\nDog’s é e\u0301 \u212b 123 </s>',
  ' the the<s>hello<|endoftext|>\r\n  12',
  '<|im_start|>user\nhi<|im_end|>',
  '',
]


def _same(folder, saved):
  """`tokenizers.load` and `transformers` both read `saved` from `folder`."""
  ours = tokenizers.load(folder)
  assert ours.fingerprint == saved.fingerprint
  peer = transformers.AutoTokenizer.from_pretrained(folder)
  assert (peer.eos_token_id, peer.bos_token_id) == (saved.eos_id, saved.bos_id)
  assert peer.chat_template == saved.chat_template
  for text in _TEXTS:
    ids = saved.encode(text)
    assert ours.encode(text) == ids
    assert peer(text, add_special_tokens=False)['input_ids'] == ids
    bos = [saved.bos_id] if saved.add_bos else []
    assert peer(text)['input_ids'] == bos + ids
    assert peer.decode(ids) == saved.decode(ids)


@pytest.mark.parametrize('adds_bos', [False, True])
@pytest.mark.parametrize('template', [None, '{{ bos_token }}\r\n{{ "é" }}\n'])
def test_of_a_folder(tmp_path, adds_bos, template):
  config = {'bos_token': '<s>', 'eos_token': {'content': '</s>'}}
  config |= {'pad_token': '<turn>'}
  if template is not None:
    config['chat_template'] = template
  folder = hf_folder_test._save(
    tmp_path / 'a', adds_bos=adds_bos, config=config
  )
  tokenizer = tokenizers.load(folder)
  assert tokenizer.add_bos == adds_bos
  tokenizer.save(tmp_path / 'b')
  _same(tmp_path / 'b', tokenizer)


@pytest.mark.parametrize(
  ('names', 'pad'),
  [
    (dict(bos_token='<s>', pad_token='<turn>'), '<turn>'),
    (dict(bos_token='<s>', pad_token='</s>'), '<s>'),
    (dict(bos_token='<s>', pad_token='</s>', unk_token='<turn>'), '<turn>'),
    # <s> and <turn> are control tokens without a role.
    (dict(bos_token='</s>', unk_token='</s>'), '<s>'),
  ],
)
def test_a_distinct_pad_token_is_none_that_ends_a_text(tmp_path, names, pad):
  config = names | {'eos_token': '</s>'}
  tokenizer = tokenizers.load(
    hf_folder_test._save(tmp_path / 'a', config=config)
  )
  distinct = tokenizer.with_distinct_pad()
  assert distinct.pad_id == tokenizer.vocabulary.token_to_id(pad)
  assert distinct.pad_id not in tokenizer.stop_ids
  assert tokenizer.with_distinct_pad().encode('the') == tokenizer.encode('the')
  distinct.save(tmp_path / 'b')
  _same(tmp_path / 'b', distinct)
  peer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'b')
  assert peer.pad_token_id == distinct.pad_id


@pytest.mark.parametrize('pre', ['gpt-2', 'llama-bpe', 'qwen2', 'smollm'])
def test_of_a_gguf_file(tmp_path, pre):
  path = tmp_path / 'x.gguf'
  gguf_vocabulary_test._write(path, pre=pre, extra=['<think>'])
  tokenizer = tokenizers.load(path)
  assert tokenizer.add_bos == (pre == 'llama-bpe')
  tokenizer.save(tmp_path / 'b')
  _same(tmp_path / 'b', tokenizer)


@pytest.mark.slow
@pytest.mark.download
def test_of_smollm2_beside_the_config_of_a_llama(smollm2_gguf, tmp_path):
  tokenizer = tokenizers.load(smollm2_gguf)
  # `transformers` knows a tokenizer of its own for this model_type.
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  tokenizer.save(tmp_path)
  _same(tmp_path, tokenizer)


def test_eos_that_only_the_model_names(tmp_path):
  """What is saved says it of itself."""
  ids = {'eos_token_id': 261}
  folder = hf_folder_test._save(
    tmp_path / 'a', config={}, generation_config=ids
  )
  tokenizers.load(folder).save(tmp_path / 'b')
  assert tokenizers.load(tmp_path / 'b').eos_id == 261


@pytest.mark.parametrize(
  'name', ['tokenizer.json', 'chat_template.jinja', 'special_tokens_map.json']
)
def test_files_of_another_tokenizer_are_kept(tmp_path, name):
  tokenizer = tokenizers.load(hf_folder_test._save(tmp_path / 'a'))
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / name).write_text('theirs')
  with pytest.raises(FileExistsError, match=name):
    tokenizer.save(tmp_path / 'b')
  assert [p.name for p in (tmp_path / 'b').iterdir()] == [name]


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_files_cut_short_are_named(tmp_path, name, share):
  folder = hf_folder_test._save(tmp_path / 'a')
  data = (folder / name).read_bytes()
  (folder / name).write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match=rf'{name}.*cut short'):
    tokenizers.load(folder)


def test_gguf_files_cut_short_are_named(tmp_path):
  path = gguf_vocabulary_test._write(tmp_path / 'x.gguf')
  data = path.read_bytes()
  for size in [*range(0, 400, 7), *range(400, len(data) - 32, 97)]:
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r'x\.gguf.*cut short'):
      tokenizers.load(path)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (('tokenizer.ggml.merges', 'tokenizer.ggml.mergee'), r'no list .*merges'),
    (('tokenizer.ggml.tokens', 'tokenizer.ggml.tokenz'), r'no list .*tokens'),
    (("' s", "'-s"), r'x\.gguf'),
  ],
)
def test_gguf_files_without_what_bpe_needs(tmp_path, change, words):
  path = gguf_vocabulary_test._write(tmp_path / 'x.gguf')
  old, new = (
    len(word).to_bytes(8, 'little') + word.encode() for word in change
  )
  data = path.read_bytes()
  assert data.count(old) == 1
  path.write_bytes(data.replace(old, new))
  with pytest.raises(ValueError, match=words):
    tokenizers.load(path)


def test_an_id_outside_the_vocabulary(tmp_path):
  path = tmp_path / 'x.gguf'
  gguf_vocabulary_test._write(path, pad_token_id=10_000)
  with pytest.raises(ValueError, match=r'padding_token_id is 10000'):
    tokenizers.load(path)


def test_a_directory_where_a_file_is_expected(tmp_path):
  (tmp_path / 'x.gguf').mkdir()
  with pytest.raises(ValueError, match=r'x\.gguf.* has no tokenizer\.json'):
    tokenizers.load(tmp_path / 'x.gguf')
  (tmp_path / 'tokenizer.json').mkdir()
  with pytest.raises(ValueError, match=r'tokenizer\.json'):
    tokenizers.load(tmp_path)
