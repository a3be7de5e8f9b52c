"""What a language model is asked about two answers, and how it is to reply.

'summary', 'summary_concise' and 'dialogue' ask what the DPO paper's prompts do
(App. C.2 of arXiv:2305.18290), in other words. The paper's headline numbers are
of the concise one: without it, GPT-4 prefers summaries that are longer and
repeat themselves more often than people do.
"""

import os
import string

from dpo_jax import assets, registry

FIELDS = ('prompt', 'first', 'second')
_REPLY = """
First write one sentence that compares the two and says which you prefer and \
why. Then write a last line that holds nothing but the letter of the better \
one: A or B.
"""
_SUMMARIES = """{question}

Post:
{{prompt}}

Summary A:
{{first}}

Summary B:
{{second}}
"""
TEMPLATES = {
  'summary': _SUMMARIES.format(
    question='Here are a forum post and two summaries of it. Which summary '
    'better tells the most important points of the post?'
  )
  + _REPLY,
  'summary_concise': _SUMMARIES.format(
    question='Here are a forum post and two summaries of it. Which summary '
    'better tells the most important points of the post, without details that '
    'are unimportant or beside the point? A good summary is both precise and '
    'concise.'
  )
  + _REPLY,
  'dialogue': """A user asked a chatbot for something. Which of the two \
responses is more helpful to the user?

What the user said:
{prompt}

Response A:
{first}

Response B:
{second}
"""
  + _REPLY,
}


def load(name: str) -> str:
  """A template of `TEMPLATES`, or the text of a file that ends in .txt.

  A file has each of {prompt}, {first} and {second}, once or more; other braces
  are doubled. ValueError for what is not so.
  """
  if not name.endswith('.txt'):
    return registry.lookup(TEMPLATES, name, 'judge.template (or a .txt file)')
  text = assets.read_text(assets.local_path(os.fspath(name), 'judge.template'))
  try:
    found = {field for _, field, _, _ in string.Formatter().parse(text)}
  except ValueError as error:
    raise ValueError(
      f'judge.template {name!r}: {error}; write {{{{ and }}}} for braces.'
    ) from error
  found -= {None}
  if found != {*FIELDS}:
    raise ValueError(
      f'judge.template {name!r} has the fields {sorted(found)}; expected '
      f'{{prompt}}, {{first}} and {{second}}.'
    )
  return text
