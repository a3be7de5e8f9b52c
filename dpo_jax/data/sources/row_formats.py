"""Files of the user, in formats of rows: records.py's own, and other projects'.

  records   the shapes of records.py
  alpaca    'instruction', with its 'input' on the next line (github.com/
            tatsu-lab/stanford_alpaca; for more than instructions, as
            LLaMA-Factory has them) and 'output', or 'chosen' and 'rejected'.
            'history' holds earlier [instruction, output], 'system' what comes
            before all. The prompt is text, or messages where there are earlier
            turns.
  sharegpt  'conversations' of {'from', 'value'}: human, gpt, system,
            function_call, observation, ...; 'chosen' and 'rejected' are such a
            message, or text, and answer the conversation. Without them its
            last message is the answer. Calls and 'tools' are JSON text.

'label' beside them is that of unpaired methods. Fields that a format does not
know are reported.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_jax import assets, registry
from dpo_jax.chat import conversations, errors, row_texts, sharegpt
from dpo_jax.data import preferences
from dpo_jax.data.sources import files as files_lib
from dpo_jax.data.sources import rows

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz')
_OUTPUTS = ('chosen', 'rejected', 'label', *row_texts.AROUND)


def rule_of(
  form: str, columns: Mapping[str, str] | None
) -> tuple[rows.Rule, rows.Unread]:
  """(rule, unread) of `rows.convert`, for rows of a format.

  columns: field -> the name that it has in the file; None for the same names.
  """
  fields, rule = registry.lookup(FORMS, form, 'form of rows')
  if columns is None:
    # Fields of records.py are no fields of another format.
    known, _ = FORMS['records']
    others = [name for name in known if name not in fields]
    return rule, lambda row: (
      *row.unread,
      *(n for n in others if row.value.get(n) is not None),
    )
  if not columns:
    raise ValueError(f'columns names none of {", ".join(fields)}.')
  for field in columns:
    if field not in fields:
      raise registry.unknown('field in columns', field, fields)

  def renamed(row):
    # A column that is null in a row is there.
    return rule({f: rows.column_of(row, name) for f, name in columns.items()})

  def unread(row):
    given = [name for name, v in row.value.items() if v is not None]
    return (*row.unread, *(n for n in given if n not in columns.values()))

  return renamed, unread


def _alpaca(row: Any) -> dict:
  names = ('instruction', 'input', 'output', 'history')
  asked, rest = _take(row, names)
  parts = [
    errors.check_text(asked[n], n) for n in names[:2] if asked.get(n, '') != ''
  ]
  if not parts:
    raise errors.RowError('missing_field', 'neither instruction nor input')
  prompt = '\n'.join(parts)
  if asked.get('history'):
    user = {'role': 'user', 'content': prompt}
    prompt = [*_history(asked['history']), user]
  if 'output' in asked:
    rest['completion'] = asked['output']
  return rest | {'prompt': prompt}


def _history(value: Any) -> list[dict]:
  if not isinstance(value, list) or not all(
    isinstance(turn, list) and len(turn) == 2 for turn in value
  ):
    raise errors.unexpected(value, 'history is a list of [instruction, output]')
  return [
    {'role': role, 'content': errors.check_text(text, 'history')}
    for turn in value
    for role, text in zip(('user', 'assistant'), turn)
  ]


def _sharegpt(row: Any) -> dict:
  asked, rest = _take(row, ('conversations', 'tools'))
  turns = rows.field_of(row, 'conversations')
  if isinstance(turns, str):
    turns = conversations.from_json(turns, 'conversations')
  turns = errors.check_list(turns, 'conversations')
  name = 'prompt' if 'chosen' in rest else 'messages'
  rest[name] = [sharegpt.message(turn) for turn in turns]
  for answer in {'chosen', 'rejected'} & rest.keys():
    if isinstance(rest[answer], dict):
      rest[answer] = [sharegpt.message(rest[answer])]
  tools = conversations.json_list(asked.get('tools'), 'tools')
  return rest | {'tools': [sharegpt.tool(tool) for tool in tools]}


def _take(row: Any, names: tuple[str, ...]) -> tuple[dict, dict]:
  """The fields of these names, and the others; RowError for no object.

  The others are without those of records.py that a format makes itself.
  """
  given = conversations.present(errors.check_object(row))
  asked = {k: v for k, v in given.items() if k in names}
  left_out = (*names, 'prompt', 'completion', 'messages')
  return asked, conversations.without(given, left_out)


_FIELDS = dict.fromkeys(
  name for fields, _ in preferences.SHAPES.values() for name in fields
)
_ALPACA = ('instruction', 'input', 'output', 'history')
# Name -> the fields that are read, and a row in a shape of records.py.
FORMS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
  'records': ((*_FIELDS, *row_texts.AROUND), lambda row: row),
  'alpaca': ((*_ALPACA, *_OUTPUTS), _alpaca),
  'sharegpt': (('conversations', *_OUTPUTS), _sharegpt),
}


def _make(suffixes: tuple[str, ...]) -> Callable[..., rows.RecordSource]:
  def source(
    *,
    path: str | os.PathLike | Sequence[str],
    kind: str = 'pairs',
    files: str | None = None,
    form: str = 'records',
    columns: Mapping[str, str] | None = None,
    split: str = 'all',
    held_out_fraction: float = 0.1,
  ) -> rows.RecordSource:
    """Rows of files: JSON objects, one a line or in an array, or Parquet.

    path: a URI (assets/uris.py), a local glob, or a list of these, read in the
    order given. Files of 'jsonl' end in '.jsonl', '.json', or one of them with
    '.gz', those of 'parquet' in '.parquet'; a glob gives those of its files
    that do, in the order of their names.
    kind: a key of `records.KINDS`.
    files: where `path` is a directory or a repository of the hub, a glob for
    the files to read, such as 'data/train*'.
    form: a key of `FORMS`: the fields of a row, by default those of
    records.py.
    columns: field of the form -> the name that it has in the file, for all
    fields to be read, such as dict(prompt='question', completion='answer');
    None where they have the names of the form. Only columns that are named, or
    that the form knows, are read of a Parquet file.
    split: 'train' or 'test' by the prompts, see `rows.in_split`; 'all' for
    every row. held_out_fraction: of the prompts, in 'test'.
    """
    rule, unread = rule_of(form, columns)
    fields, _ = FORMS[form]
    return files_lib.source(
      assets.find_files(path, suffixes, files),
      rule,
      kind=kind,
      columns=tuple((columns or {}).values()),
      optional=() if columns else (*fields, *preferences.REFUSED),
      split=split,
      held_out_fraction=held_out_fraction,
      unread=unread,
    )

  return source


jsonl = _make(SUFFIXES)
parquet = _make(('.parquet',))
