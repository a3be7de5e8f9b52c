"""Chat templates of nobody, as tokenizers have them."""

import re

from dpo_jax import tokenizers


class Plain:
  """What rendering.py asks of a tokenizer: turns, one after the other.

  It has no control tokens, and reads no variables.
  """

  end_of_turn = tokenizers.EndOfTurn('', '', '', None)
  control_pattern = re.compile('(?!)')

  def apply_chat(self, messages, *, add_generation_prompt=False, **variables):
    del variables
    said = ''.join(f'<{m["role"]}>{m["content"]}' for m in messages)
    return said + '<assistant>' * add_generation_prompt

  def mark_answers(self, messages, **variables):
    del messages, variables

  def template_variables(self, *, tools=False):
    del tools
    return ()
