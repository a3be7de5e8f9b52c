"""Questions and answers of Stack Exchange, with their votes.

As github.com/eric-mitchell/direct-preference-optimization has it, prompts are
'\\n\\nHuman: ...\\n\\nAssistant:' and completions begin with a space. What it
does otherwise:

  - Of a page it keeps the text that stands directly in paragraphs, and blocks
    of code: lists, quotes, headings, links and emphasised words are lost. Here
    all text is kept, a blank line between blocks.
  - Two answers with equal scores are a preference for the second one there, and
    none here.
  - Its test split is 1 % of the rows, by a seeded shuffle. Here it is 1 % of
    the questions, by their text: see `rows.in_split`.
"""

import html.parser
import re
from collections.abc import Sequence
from typing import Any

from dpo_jax import registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import dialogues, files, hub_files, rows

_FILES = (('data/{subset}/*.parquet',), ('default/train/*.parquet',))
# Where these begin or end, a new block begins.
_BLOCK = re.compile(
  'blockquote|br|dd|div|dl|dt|h[1-6r]|li|ol|p|pre|table|td|th|tr|ul'
)


def stack_exchange(
  *,
  split: str,
  kind: str = 'pairs',
  form: str = 'text',
  held_out_fraction: float = 0.01,
  subsets: Sequence[str] | None = None,
  path: str = 'hf://datasets/HuggingFaceH4/stack-exchange-preferences',
) -> rows.RecordSource:
  """N. Lambert et al., 2023: a `question` and its `answers` with `pm_score`.

  All pairs of answers with different scores are preferences; questions without
  any are left out, and so are answers without text. HTML becomes text, code in
  <code>...</code>. split: 'train', 'test' or 'all', by the questions.
  form: a key of `dialogues.FORMS`. subsets: sites, such as
  ['ai.stackexchange.com'], None for all; `path` then is best a directory, since
  a repository is fetched as a whole (22 GB).
  """
  shape = registry.lookup(dialogues.FORMS, form, 'form of prompts')
  return files.source(
    hub_files.find(path, _FILES, split='train', subsets=subsets),
    lambda row: _answered(row, shape, kind),
    kind=kind,
    columns=('question', 'answers'),
    split=split,
    held_out_fraction=held_out_fraction,
  )


def plain(page: str) -> str:
  """The text of a piece of HTML; code stays within <code>...</code>."""
  parser = _Parser()
  parser.feed(page)
  parser.close()
  return parser.text()


def _answered(row: Any, shape, kind: str) -> dict | None:
  given = rows.list_of(row, 'answers')
  question = plain(rows.text_of(row, 'question'))
  found = [
    (plain(rows.text_of(x, 'text')), rows.field_of(x, 'pm_score'))
    for x in given
  ]
  found = [(text, score) for text, score in found if text]
  if not question or not found:
    raise errors.RowError('no_text', 'the question or its answers are blank')
  answers, scores = zip(*found)
  if rows.all_tied(scores, kind):
    return None
  prompt, completions = shape([('user', question)], answers)
  return {
    'prompt': prompt,
    'completions': list(completions),
    'scores': list(scores),
  }


class _Parser(html.parser.HTMLParser):
  """Collects text: words of prose, and code as it stands."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self._blocks, self._block, self._code = [], [], []
    self._depth = 0

  def handle_starttag(self, tag, attrs):
    if tag == 'code':
      self._depth += 1
    elif _BLOCK.fullmatch(tag) and not self._depth:
      self._end()

  def handle_endtag(self, tag):
    if tag == 'code' and self._depth:
      self._depth -= 1
      if not self._depth:
        self._block.append(f'<code>{"".join(self._code)}</code>')
        self._code = []
    elif _BLOCK.fullmatch(tag) and not self._depth:
      self._end()

  def handle_data(self, data):
    if self._depth:
      self._code.append(data)
    else:
      self._block.append(re.sub(r'\s+', ' ', data))

  def text(self) -> str:
    """All blocks, a blank line between them."""
    self._block += self._code  # Code that was never closed.
    self._end()
    return '\n\n'.join(self._blocks)

  def _end(self):
    block = ''.join(self._block).strip()
    if block:
      self._blocks.append(block)
    self._block = []
