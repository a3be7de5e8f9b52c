"""Token records: flat arrays, addressed by a record's index."""

import array
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Collection

import numpy as np

from dpo_jax import types
from dpo_jax.data import records


@dataclasses.dataclass(frozen=True, eq=False)
class TokenRecords:
  """Tokens of n records with C completions and E examples, as flat arrays.

  Record i owns the spans `first_span[i]` to `first_span[i + 1]`: its prompt,
  then its completions, each with its EOS. Span s is
  `tokens[offsets[s]:offsets[s + 1]]`. A prompt of length 0 has no root: the
  first token of its completions is not scored.

  tokens: i32[tokens]; offsets: i64[n + C + 1]; first_span: i64[n + 1].
  examples_ExK: i32, completions of an example, local to its record, the best
  first; first_example: i64[n + 1].
  labels: f32[C], 1 desirable, 0 undesirable, `types.NO_LABEL` without; ratings
    for kind='rated'.
  scored: bool[tokens], those of completions whose log-probs count.
  file_index: i32[n] into `files`; rows: i64[n], from 1.
  extras: named quantities of each token, [tokens] ('reference' log-probs,
  'corrected'); batches carry those of the scored tokens.
  kind: the key of `records.KINDS` that says what examples are; None unknown.
  plain: how many records are text that no chat template has rendered.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  first_span: np.ndarray
  examples_ExK: np.ndarray
  first_example: np.ndarray
  labels: np.ndarray
  scored: np.ndarray
  file_index: np.ndarray
  rows: np.ndarray
  files: tuple[str, ...]
  extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  kind: str | None = None
  plain: int = 0

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def arity(self) -> int:
    """Completions of an example: 1, 2 for a pair, K for a ranking."""
    return self.examples_ExK.shape[1]

  def prompt(self, i: int) -> np.ndarray:
    """i32[tokens of the prompt], its root included."""
    span = self.first_span[i]
    return self.tokens[self.offsets[span] : self.offsets[span + 1]]

  def completions(self, i: int) -> list[np.ndarray]:
    """i32[tokens of the completion] for each completion of record i."""
    return [self.tokens[span] for span in self.completion_spans(i)]

  def completion_spans(self, i: int) -> list[slice]:
    """Where in `tokens` each completion of record i lies."""
    ends = self.offsets[self.first_span[i] + 1 : self.first_span[i + 1] + 1]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]

  def scored_places(self, i: int, c: int) -> np.ndarray:
    """i64: where in completion c of record i its scored tokens are."""
    return np.flatnonzero(self.scored[self.completion_spans(i)[c]])

  def scored_lengths(self, i: int) -> np.ndarray:
    """i64[completions of record i]: scored tokens of each."""
    return self._span_scores[self.first_span[i] + 1 : self.first_span[i + 1]]

  def examples(self, i: int) -> np.ndarray:
    """i32[e, K]: indices into `completions(i)`, the best first."""
    return self.examples_ExK[self.first_example[i] : self.first_example[i + 1]]

  def labels_of(self, i: int) -> np.ndarray:
    """f32[completions of record i]: 1 desirable, 0 undesirable, or NO_LABEL."""
    # Every record has one span more than completions.
    begin, end = self.first_span[i] - i, self.first_span[i + 1] - i - 1
    return self.labels[begin:end]

  def where(self, i: int) -> str:
    """'file:row' that record i was read from."""
    return f'{self.files[self.file_index[i]]}:{self.rows[i]}'

  def prompt_length(self, i: int) -> int:
    """Tokens of the prompt of record i, its root included."""
    return int(self.prompt_lengths[i])

  def completion_lengths(self, i: int) -> np.ndarray:
    """i64[completions of record i]: tokens of each."""
    return self.span_lengths[self.first_span[i] + 1 : self.first_span[i + 1]]

  # Of all records at once.

  @functools.cached_property
  def span_lengths(self) -> np.ndarray:
    """i64[n + C]: tokens of each span."""
    return np.diff(self.offsets)

  @functools.cached_property
  def _span_scores(self) -> np.ndarray:
    """i64[n + C]: scored tokens of each span."""
    return np.diff(np.append(0, np.cumsum(self.scored))[self.offsets])

  @functools.cached_property
  def prompt_lengths(self) -> np.ndarray:
    """i64[n]: tokens of each prompt."""
    return self.span_lengths[self.first_span[:-1]]

  @functools.cached_property
  def completion_counts(self) -> np.ndarray:
    """i64[n]: completions of each record."""
    return np.diff(self.first_span) - 1

  @functools.cached_property
  def example_counts(self) -> np.ndarray:
    """i64[n]: examples of each record."""
    return np.diff(self.first_example)

  def fingerprint(self, *, extras: bool = False) -> str:
    """SHA-256 of the tokens, examples, labels and what is scored, in hex.

    extras: whether of these too.
    """
    digest = hashlib.sha256()
    values = {name: getattr(self, name) for name in ARRAYS[:7]}
    for name, value in {**values, **(self.extras if extras else {})}.items():
      value = np.ascontiguousarray(value)
      digest.update(f'{name} {value.dtype} {value.shape} '.encode())
      digest.update(value.data)
    return digest.hexdigest()


def check_fits(
  records: TokenRecords,
  *,
  arity: int,
  vocab_size: int,
  max_positions: int,
  kinds: Collection[str] | None = None,
) -> None:
  """ValueError for records that the method or the model can't take.

  kinds: those that the method can make something of; None for any.
  """
  if records.kind == 'prompts':
    raise ValueError(
      f"{records.where(0)}: kind='prompts' has no completions to train on or "
      'to score; it goes with pages that sample their own (section `rollouts`).'
    )
  if kinds is not None and records.kind not in (None, *kinds):
    raise ValueError(
      f'{records.where(0)}: the examples are of kind={records.kind!r}, but the '
      f'method takes {" or ".join(map(repr, kinds))}. Set the `kind` of the '
      'data, or the method.'
    )
  if records.arity != arity:
    raise ValueError(
      f'{records.where(0)}: examples compare {records.arity} completions, but '
      f'the method takes {arity}. Set the `kind` of the data, or the method.'
    )
  largest = int(records.tokens.max(initial=0))
  if largest >= vocab_size:
    raise ValueError(
      f'The data holds token {largest}, but the model has a vocabulary of '
      f'{vocab_size}: the tokenizer belongs to another model.'
    )
  for i in range(len(records)):
    longest = records.prompt_length(i) + records.completion_lengths(i).max()
    if longest > max_positions:
      raise ValueError(
        f'{records.where(i)}: prompt and completion are {longest} tokens long, '
        f'but the model has {max_positions} positions. Lower max_length.'
      )


# The arrays of a TokenRecords; its content first, then where it comes from.
ARRAYS = tuple(
  f.name for f in dataclasses.fields(TokenRecords) if f.type is np.ndarray
)


class Builder:
  """Collects records one by one; `finish` makes a TokenRecords of them."""

  def __init__(self):
    self._arrays = {
      **{n: array.array('i') for n in ('tokens', 'examples_ExK', 'file_index')},
      **{n: array.array('q', [0]) for n in ('offsets', 'first_span')},
      'first_example': array.array('q', [0]),
      'labels': array.array('f'),
      'scored': bytearray(),
      'rows': array.array('q'),
    }
    self._files: dict[str, int] = {}
    self._first: records.Record | None = None
    self._plain = 0

  def add(
    self,
    record: records.Record,
    prompt: list[int],
    completions: list[list[int]],
    scored: list[bool] | None = None,
  ) -> None:
    """Appends a record; ValueError for examples of another arity.

    scored: of the tokens of its only completion, which may have been truncated
    or have got a token that ends it; None for all tokens of every completion.
    """
    a = self._arrays
    for ids in (prompt, *completions):
      a['tokens'].extend(ids)
      a['offsets'].append(len(a['tokens']))
    a['scored'] += bytes(len(prompt))
    for ids in completions:
      given = [] if scored is None else scored[: len(ids)]
      marks = bytes(given).ljust(len(ids), b'\1')
      # Without a root nothing predicts the first token.
      a['scored'] += marks if prompt else marks[1:].rjust(len(ids), b'\0')
    self._plain += not record.rendered
    a['first_span'].append(len(a['offsets']) - 1)
    first = self._first = self._first or record
    for example in record.examples:
      if len(example) != len(first.examples[0]):
        raise ValueError(
          f'{record.file}:{record.row} compares {len(example)} completions, '
          f'but {first.file}:{first.row} compares {len(first.examples[0])}. '
          'All examples of a run compare equally many: with '
          "kind='pairs', rankings are read as pairs."
        )
      a['examples_ExK'].extend(example)
    a['first_example'].append(a['first_example'][-1] + len(record.examples))
    nothing = (types.NO_LABEL,) * len(completions)
    a['labels'].extend(nothing if record.labels is None else record.labels)
    index = self._files.setdefault(record.file, len(self._files))
    a['file_index'].append(index)
    a['rows'].append(record.row)

  def finish(self) -> TokenRecords:
    """All that was added."""
    arrays = {name: np.asarray(a) for name, a in self._arrays.items()}
    arity = len(self._first.examples[0]) if self._first else 1
    arrays['examples_ExK'] = arrays['examples_ExK'].reshape(-1, arity)
    arrays['scored'] = arrays['scored'].astype(bool)
    return TokenRecords(**arrays, files=tuple(self._files), plain=self._plain)
