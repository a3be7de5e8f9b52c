"""Chat templates rendered as llama.cpp's tests and `transformers` render them.

Where llama.cpp changes what Jinja gives, CHANGED says how, and the change made
to ours gives its text; one that starts to agree by itself fails its test.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import tokenizers as hf
import transformers

from dpo_jax.tokenizers import chat_template
from tests.tokenizers import outside

_FILE = 'chat_templates/llama.cpp-test-chat-template.json'


def _same(x):
  return x


class Changed(NamedTuple):
  """messages, variables: what it renders; text: what it does to the text."""

  messages: Callable = _same
  variables: Mapping = types.MappingProxyType({})
  text: Callable = _same


def _into_the_user(messages):
  system, user, *rest = messages
  text = system['content'] + '\n' + user['content']
  return [user | {'content': text}, *rest]


def _without_bos(text):
  return text.removeprefix('<s>')


_UNCHANGED = Changed()
# The template has no place for a system message, or refuses one.
_SYSTEM = Changed(_into_the_user)
_GIGACHAT = ['<|role_sep|>', '<|message_sep|>', '[', ']']
CHANGED = {
  'Phi-3-mini': _SYSTEM,
  'Phi-3-medium': _SYSTEM,
  'google/gemma-7b-it': _SYSTEM,
  # Neither BOS at the start of a text nor EOS at its end is kept.
  'mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt'
  ')': _SYSTEM._replace(text=_without_bos),
  'OrionStarAI/Orion-14B-Chat': _SYSTEM._replace(
    text=lambda text: text.removesuffix('</s>')
  ),
  'mlabonne/AlphaMonarch-7B': Changed(text=_without_bos),
  # Its Jinja drops a space.
  'ChatGLM3': Changed(text=lambda text: text.replace('|>\n ', '|>\n')),
  # It reads a list that the file doesn't give, and another BOS.
  'ai-sage/GigaChat-20B-A3B-instruct': Changed(
    variables={'bos_token': '<s>', 'additional_special_tokens': _GIGACHAT}
  ),
}


@pytest.fixture(scope='module')
def file():
  return outside.read_json(_FILE)


def _cases(file):
  return {case['name']: case for case in file['cases']}


def _render(file, case, change=_UNCHANGED):
  asked = {'add_generation_prompt': file['add_generation_prompt']}
  values = {'messages': change.messages(file['messages']), **asked}
  values |= _tokens(case) | change.variables
  try:
    return change.text(chat_template.render(case['template_str'], values))
  except ValueError as error:
    return f'refused: {error}'


def _tokens(case):
  return {name: case[name] for name in ('bos_token', 'eos_token')}


def test_texts_of_llama_cpp(file):
  cases = _cases(file)
  found = {name: _render(file, case) for name, case in cases.items()}
  expected = {
    name: case['expected_output_jinja'] or case['expected_output']
    for name, case in cases.items()
  }
  assert len(cases) >= 30
  assert outside.differing(found, expected) == set(CHANGED)
  for name, change in CHANGED.items():
    assert _render(file, cases[name], change) == expected[name], name


def test_texts_of_transformers(file):
  """Those that llama.cpp changes too; it refuses the same."""
  peer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=hf.Tokenizer(hf.models.BPE(vocab={'a': 0}, merges=[]))
  )
  refused = 0
  for case in file['cases']:
    ours = _render(file, case)
    try:
      theirs = peer.apply_chat_template(
        file['messages'],
        chat_template=case['template_str'],
        add_generation_prompt=file['add_generation_prompt'],
        tokenize=False,
        **_tokens(case),
      )
    except Exception as error:
      refused += 1
      assert ours.startswith('refused: ') and str(error) in ours
    else:
      assert ours == theirs, case['name']
  assert refused == 3
