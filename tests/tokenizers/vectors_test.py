"""Ids that other projects expect of published vocabularies: all are ours.

What cannot be compared is listed with the reason, and nothing else is left out.
"""

import pytest

from tests.tokenizers import outside

# Those whose ids alone are there are skipped.
LLAMA_CPP = (
  'deepseek-coder',
  'deepseek-llm',
  'deepseek-r1-qwen',
  'falcon',
  'gpt-2',
  'gpt-neox',
  'llama-bpe',
  'llama-spm',
  'mpt',
  'phi-3',
  'qwen2',
  'refact',
  'starcoder',
)
# gpt-neox names no pre-tokenizer and has no ids: it is mpt's vocabulary.
_IDS_OF = {'gpt-neox': 'mpt'}
# Tokenizers of the others' vectors -> the vocabulary of llama.cpp that it is.
TRANSFORMERS_JS = {
  'Xenova/gpt2': 'gpt-2',
  'openai-community/gpt2': 'gpt-2',
  'tiiuae/falcon-rw-1b': 'gpt-2',
  'tiiuae/falcon-7b': 'falcon',
  'Xenova/llama-tokenizer': 'llama-spm',
  'Xenova/deepseek-coder-1.3b-instruct': 'deepseek-coder',
}
SWIFT = {
  'distilgpt2': 'gpt-2',
  'openai/whisper-tiny.en': 'gpt-2',
  'tiiuae/falcon-7b': 'falcon',
  'coreml-projects/Llama-2-7b-chat-coreml': 'llama-spm',
}
_SWIFT_PAGES = {
  'falcon_encoded.json': 'falcon',
  'gpt2_encoded_tokens.json': 'gpt-2',
  'llama_encoded.json': 'llama-spm',
}
# Their vocabularies lie on a hub, and no file of llama.cpp here has them.
NO_VOCABULARY = {
  'Xenova/CodeGPT-tokenizer',
  'Xenova/Qwen1.5-0.5B-Chat',
  'Xenova/TinyLLama-v0',
  'Xenova/claude-tokenizer',
  'Xenova/gemma2-tokenizer',
  'Xenova/gpt-4',
  'Xenova/gpt-4o',
  'Xenova/llama3-tokenizer',
  'Xenova/llama3-tokenizer-new',
  'Xenova/tamillama_tiny_30m',
  'bert-base-uncased',
  'bigcode/santacoder',
  'distilbert/distilbert-base-multilingual-cased',
  'google-bert/bert-base-uncased',
  'huggingface-course/codeparrot-ds',
  'openai/whisper-large-v2',
  'pcuenq/Llama-3.2-1B-Instruct-tokenizer',
  'pcuenq/gemma-tokenizer',
  't5-base',
}


def _texts_and_ids(name):
  folder, name = outside.folder('llama.cpp'), _IDS_OF.get(name, name)
  texts = (folder / f'ggml-vocab-{name}.gguf.inp').read_bytes().decode()
  *texts, rest = texts.split('\n__ggml_vocab_test__\n')
  lines = (folder / f'ggml-vocab-{name}.gguf.out').read_text().splitlines()
  ids = [[int(i) for i in line.split()] for line in lines]
  assert rest == '' and len(set(texts)) == len(texts) == 46
  return dict(zip(texts, ids, strict=True))


@pytest.mark.parametrize('name', LLAMA_CPP)
def test_ids_of_llama_cpp(name):
  """Nothing is added there, and no text spells a control token."""
  ours, expected = outside.gguf_tokenizer(name), _texts_and_ids(name)
  assert not any(token in text for token in ours.control for text in expected)
  texts = list(expected)
  for found in (
    ours.encode_batch(texts),
    ours.encode_parts(texts, start=True),
    ours.encode_parts(texts, start=True, literal=True),
  ):
    found = dict(zip(texts, found, strict=True))
    assert not outside.differing(found, expected)
  assert [ours.decode(ids) for ids in expected.values()] == texts


def test_no_vector_is_left_out():
  folder = outside.folder('llama.cpp')
  names = {p.name.removesuffix('.out') for p in folder.glob('*.out')}
  expected = set(LLAMA_CPP) - _IDS_OF.keys()
  assert names == {f'ggml-vocab-{name}.gguf' for name in expected}
  others = _transformers_js().keys() | _swift().keys()
  assert others == {*TRANSFORMERS_JS, *SWIFT, *NO_VOCABULARY}


def _transformers_js():
  files = sorted(outside.folder('transformers.js').glob('*.json'))
  read = [outside.read_json(f'transformers.js/{p.name}') for p in files]
  return {name: cases for file in read for name, cases in file.items()}


def _swift():
  return outside.read_json('swift-transformers/tokenizer_tests.json')


def _with_bos(ours, text):
  """As the checkpoint's own tokenizer begins a text."""
  return [ours.bos_id] * ours.add_bos + ours.encode(text)


@pytest.mark.parametrize('name', TRANSFORMERS_JS)
def test_ids_of_transformers_js(name):
  ours = outside.gguf_tokenizer(TRANSFORMERS_JS[name])
  cases = _transformers_js()[name]
  found = {key: _with_bos(ours, case['text']) for key, case in cases.items()}
  expected = {key: case['ids'] for key, case in cases.items()}
  assert len(cases) > 10 and not outside.differing(found, expected)


@pytest.mark.parametrize('name', SWIFT)
def test_ids_of_swift_transformers(name):
  ours = outside.gguf_tokenizer(SWIFT[name])
  cases = {
    case['input']: case['encoded']['input_ids'] for case in _swift()[name]
  }
  found = {text: _with_bos(ours, text) for text in cases}
  if 'whisper' in name:  # GPT-2's vocabulary between control tokens of its own.
    start, end = [50257, 50362], [50256]
    found = {text: start + ids + end for text, ids in found.items()}
  assert len(cases) > 10 and not outside.differing(found, cases)


@pytest.mark.parametrize('file', _SWIFT_PAGES)
def test_ids_of_a_page_of_text(file):
  ours = outside.gguf_tokenizer(_SWIFT_PAGES[file])
  page = outside.read_json(f'swift-transformers/{file}')
  assert _with_bos(ours, page['text']) == page['token_ids']
  assert ours.decode(ours.encode(page['text'])) == page['text']
