"""The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.

A pre-tokenizer cuts text into words before byte-level BPE. A GGUF file has only
its name; each is defined here as in the tokenizer.json that was published with
the model. Each was compared with ids of the model's own tokenizer or with its
published file. Similar names may stand for different pre-tokenizers ('qwen2'
and 'qwen35'), so the error for an unknown name suggests none.
"""

from collections.abc import Callable
from typing import NamedTuple

import tokenizers
from tokenizers import pre_tokenizers


class GgufPreTokenizer(NamedTuple):
  """The settings that a name stands for."""

  split: Callable[[], pre_tokenizers.PreTokenizer]
  nfc: bool = False
  ignore_merges: bool = False  # A word in the vocabulary is taken as it is.
  add_bos: bool = False  # If the file lacks add_bos_token.


def find(name: str) -> GgufPreTokenizer:
  """The pre-tokenizer `name`; ValueError lists those that are known."""
  if not isinstance(name, str) or name not in _PRE_TOKENIZERS:
    raise ValueError(
      f'tokenizer.ggml.pre names the pre-tokenizer {name!r}, which is not '
      f'known; known: {", ".join(sorted(_PRE_TOKENIZERS))}. Another one would '
      'give other ids. Use the tokenizer.json that was published with the '
      'model: set model.tokenizer to its folder.'
    )
  return _PRE_TOKENIZERS[name]


def _gpt2():
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits():
  # Digits are isolated before GPT-2's pattern sees the text between them, so
  # white space before a number is one run: '\n\n1' becomes '\n\n', '1', where
  # GPT-2 has '\n', '\n', '1'.
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
  )


def _one_pattern(numerals: str):
  return _patterns(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numerals + '|'
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )


def _falcon():
  # After byte-level encoding: digits among the letters that stand for bytes are
  # isolated too.
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Punctuation('contiguous'),
      _gpt2(),
      pre_tokenizers.Digits(individual_digits=False),
      _split('[0-9][0-9][0-9]'),
    ]
  )


def _deepseek_coder():
  return _patterns(r'[\r\n]', r'\s?\p{L}+', r'\s?\p{P}+', _HAN, r'\p{N}')


def _deepseek_llm():
  punctuation = (
    r'\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}'
    r'\x{3000}-\x{3002}]+'
  )
  letters = rf'\s?[{_ranges(_CASED)}]+'
  return _patterns(r'[\r\n]', letters, punctuation, r'\s+$', _HAN, r'\p{N}')


def _patterns(*patterns: str):
  """Splits by each pattern in turn, then maps bytes to letters."""
  return pre_tokenizers.Sequence(
    [
      *map(_split, patterns),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _split(pattern: str):
  return pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated')


def _ranges(ranges: str) -> str:
  """Hexadecimal ranges such as '41-5A B5' as a regular expression's class."""
  return ''.join(
    '-'.join(rf'\x{{{end}}}' for end in run.split('-'))
    for run in ranges.split()
  )


_HAN = '[' + r'\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}' + ']+'
# The letters with case that DeepSeek LLM's tokenizer.json lists.
_CASED = """
  41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377
  37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5
  13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
  1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D
  1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC
  1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
  212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B
  2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
  A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
  104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_LLAMA3 = GgufPreTokenizer(
  lambda: _one_pattern(r'\p{N}{1,3}'), ignore_merges=True, add_bos=True
)
_PRE_TOKENIZERS = {
  'default': GgufPreTokenizer(_gpt2),
  'gpt-2': GgufPreTokenizer(_gpt2),
  'mpt': GgufPreTokenizer(_gpt2),
  'phi-2': GgufPreTokenizer(_gpt2),
  'smollm': GgufPreTokenizer(_digits),
  'starcoder': GgufPreTokenizer(_digits),
  'refact': GgufPreTokenizer(_digits),
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'qwen2': GgufPreTokenizer(lambda: _one_pattern(r'\p{N}'), nfc=True),
  'falcon': GgufPreTokenizer(_falcon),
  'deepseek-coder': GgufPreTokenizer(_deepseek_coder),
  'deepseek-llm': GgufPreTokenizer(_deepseek_llm),
}
