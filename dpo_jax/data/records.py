"""Rows of data files as records of text.

Shapes of a row (a JSON object; a field that is null is not there, fields that
are not named here are counted and reported):

  {'prompt', 'chosen', 'rejected'}, with 'target' for kind='targeted', and
      'chosen_spans', 'rejected_spans' for segments='spans': see segments.py
  {'prompt', 'completions': [...]} and one of
      'preferences': [[winner, loser], ...]   indices into completions
      'scores': [...]                         all pairs of different scores;
                                              a tie is not a preference
      'ranking': [...]                        indices, the best first
  {'prompt', 'completion'}, with 'label': true | false for unpaired methods
  {'text'}                                    the same, with an empty prompt; a
                                              label of another type is ignored
  {'messages': [...]}, with 'label' likewise  the last message is the completion

What is made of a row is chosen by `kind`, a key of `KINDS`:

  pairs     every (winner, loser); a ranking or scores give all their pairs
  ranking   one K-tuple, the best first; scores must not tie. K is the same for
            all rows.
  targeted  (chosen, rejected, target): an answer to be imitated beside the
            pair, which may be one of the two
  unpaired  one completion and its label. Where answers are compared each is an
            example of its own: desirable if it wins more comparisons than it
            loses, undesirable if fewer, and not used if equally many. Desirable
            and undesirable ones take turns.
  kto       the same, each with a completion of another record: (own,
            mismatched), see mismatch.py
  sft       one completion: the given one, or the preferred one. Among several,
            the one with the most wins less losses, the first of these on ties.
            (The reference repository takes the last chosen answer of a prompt.)

Prompts and completions are text or messages: see messages.py. 'system',
'tools', 'documents' and 'chat_template_kwargs' beside messages are parts of the
conversation. Fields of judgements.REFUSED make a row unusable.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import (
  Callable,
  Collection,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.data import drops, judgements, messages

Indices = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt, its completions, and the examples that they form.

  examples: what a batch counts; tuples of indices into `completions`, all of
  the same length: (winner, loser), (winner, loser, target), (i,) or a ranking,
  the best first. Every completion is in one of them.
  labels: whether each completion is desirable; None where that is not asked.
  row: line of the file, from 1.
  rendered: a chat template wrote it, so it may hold the tokenizer's control
  tokens, and the end of a turn ends its completions.
  differ: completions that must not be the same; None for those of each example.
  spans: of each completion, as the row has them: see segments.py. contents:
  what they are spans of, where a template has rendered it.
  scored: the [begin, end) of its only completion that are scored, in
  characters; None where all of every completion is.
  literal: of the prompt and of each completion that was rendered, where control
  tokens are that a message holds; None for nowhere.
  unread: names of fields that nothing reads.
  weight: rows of the data that it was made of. lost: why some of its examples
  were left out; their weights are shares of its own.
  """

  prompt: str
  completions: tuple[str, ...]
  examples: Indices
  labels: tuple[bool, ...] | None = None
  file: str = ''
  row: int = 0
  rendered: bool = False
  differ: Indices | None = None
  spans: tuple[Any, ...] | None = None
  contents: tuple[str, ...] | None = None
  scored: tuple[tuple[int, int], ...] | None = None
  literal: tuple[tuple[tuple[int, int], ...], ...] | None = None
  unread: tuple[str, ...] = ()
  weight: int = 1
  lost: tuple[drops.RowError, ...] = ()

  def tied(self, contents: Sequence[Hashable]) -> dict[int, int]:
    """Examples with a completion whose content is that of one it must not be.

    By their places in `examples`, each with that completion.
    """

    def same(group):
      return len({contents[i] for i in group}) < len(group)

    if self.differ is None:
      return {e: x[0] for e, x in enumerate(self.examples) if same(x)}
    equal = {i for group in self.differ if same(group) for i in group}
    return self._first(equal)

  def involving(
    self, faults: Mapping[int, drops.RowError]
  ) -> dict[int, drops.RowError]:
    """Why examples can't be used, by the faults of their completions."""
    return {e: faults[i] for e, i in self._first(faults).items()}

  def _first(self, completions: Collection[int]) -> dict[int, int]:
    """Examples that hold one of these completions, with the first of them."""
    return {
      e: min(i for i in example if i in completions)
      for e, example in enumerate(self.examples)
      if any(i in completions for i in example)
    }

  def without(
    self, lost: Mapping[int, drops.RowError]
  ) -> tuple['Record', list[int]]:
    """Less some of its examples, by their places; which completions are left.

    Raises the first of the errors if no example is.
    """
    if not lost:
      return self, list(range(len(self.completions)))
    if len(lost) == len(self.examples):
      raise lost[min(lost)]
    share = self.weight - sum(e.weight for e in self.lost)
    share /= len(self.examples)
    errors = {id(e): e for e in lost.values()}
    for key, error in errors.items():
      error.weight = share * sum(id(e) == key for e in lost.values())
      error.file, error.row = self.file, self.row
    kept = [x for e, x in enumerate(self.examples) if e not in lost]
    used = sorted(set(itertools.chain.from_iterable(kept)))
    place = {old: new for new, old in enumerate(used)}

    def left(values):
      return values and tuple(values[i] for i in used)

    differ = self.differ
    if differ is not None:
      differ = _renamed((x for x in differ if place.keys() >= set(x)), place)
    record = dataclasses.replace(
      self,
      completions=left(self.completions),
      examples=_renamed(kept, place),
      labels=left(self.labels),
      differ=differ,
      spans=left(self.spans),
      contents=left(self.contents),
      literal=self.literal and (self.literal[0], *left(self.literal[1:])),
      lost=(*self.lost, *errors.values()),
    )
    return record, used


class Source(NamedTuple):
  """Rows that are still to be read.

  files: (name, local file), all that the rows depend on besides the options of
  the source; rows: given how to render messages, all rows, good and bad.
  """

  files: tuple[tuple[str, pathlib.Path], ...]
  rows: Callable[[messages.Render], Iterator[Record | drops.RowError]]


class Chosen(NamedTuple):
  """Examples, as indices into the judged answers.

  labels: whether an answer is desirable; differ: as in `Record`.
  """

  examples: Indices
  labels: dict[int, bool] | None = None
  differ: Indices | None = None


def parse(
  row: object,
  *,
  kind: str,
  render: messages.Render,
  file: str = '',
  line: int = 0,
  weight: int = 1,
) -> Record:
  """The record in a decoded JSON value; drops.RowError for an unusable one.

  An answer that can't be used, or two that are equal, take the examples that
  compare them. render: how messages become text.
  """
  choose = registry.lookup(KINDS, kind, 'kind of record')
  judged = judgements.judge(row)
  chosen = choose(judged)
  # Completions in no example must not lengthen the record.
  used = sorted(set(itertools.chain.from_iterable(chosen.examples)))
  found, faults = _texts(judged, used, render)
  place = {old: new for new, old in enumerate(used)}
  record = Record(
    prompt=found.prompt,
    completions=found.answers,
    examples=_renamed(chosen.examples, place),
    labels=chosen.labels and tuple(chosen.labels[i] for i in used),
    file=file,
    row=line,
    rendered=found.rendered,
    differ=chosen.differ and _renamed(chosen.differ, place),
    spans=judged.spans and tuple(judged.spans[i] for i in used),
    contents=found.contents if judged.spans else None,
    scored=found.scored,
    literal=found.literal,
    unread=(
      *judged.unread,
      *found.unread,
      *(['target'] if judged.target is not None and kind != 'targeted' else []),
    ),
    weight=weight,
  )
  record, _ = record.without(record.involving(faults))
  answers = record.completions
  equal = {
    e: drops.RowError(
      'identical_completions',
      f'answers compared are equal: {messages.show(answers[i])}',
    )
    for e, i in record.tied(answers).items()
  }
  return record.without(equal)[0]


def _texts(
  judged: judgements.Judged, used: list[int], render: messages.Render
) -> tuple[messages.Texts, dict[int, drops.RowError]]:
  """Texts, and the faults of those answers that alone make the row unusable.

  Such an answer is '' in the texts.
  """

  def read(answers: list[int]) -> messages.Texts:
    given = [judged.answers[i] for i in answers]
    return messages.texts(judged.prompt, given, render, judged.around)

  try:
    return read(used), {}
  except drops.RowError:
    faults = {}
    for place, i in enumerate(used):
      try:
        read([i])
      except drops.RowError as error:
        faults[place] = error
    good = [place for place in range(len(used)) if place not in faults]
    if not faults or not good:
      raise
    found = read([used[place] for place in good])

  def spread(values, nothing):
    known = dict(zip(good, values))
    return tuple(known.get(place, nothing) for place in range(len(used)))

  literal = found.literal
  return found._replace(
    answers=spread(found.answers, ''),
    contents=found.contents and spread(found.contents, ''),
    literal=literal and (literal[0], *spread(literal[1:], ())),
  ), faults


def _renamed(groups: Iterable[Sequence[int]], place: dict[int, int]) -> Indices:
  return tuple(tuple(place[i] for i in group) for group in groups)


def _pairs(judged: judgements.Judged) -> Chosen:
  if not judged.pairs:
    raise drops.RowError('no_preference', 'no answer is better than another')
  return Chosen(judged.pairs)


def _ranking(judged: judgements.Judged) -> Chosen:
  if judged.order is None or len(judged.order) < 2:
    raise drops.RowError(
      'no_strict_order',
      'a ranking needs two answers or more, and no ties between them',
    )
  return Chosen((judged.order,))


def _targeted(judged: judgements.Judged) -> Chosen:
  if judged.target is None:
    raise drops.RowError(
      'missing_field',
      'a targeted row has the fields chosen, rejected and target',
    )
  # One that is the same answer is the same completion, and computed once.
  target = judged.answers.index(judged.answers[judged.target])
  return Chosen(((0, 1, target),), differ=((0, 1),))


def _unpaired(judged: judgements.Judged) -> Chosen:
  if judged.label is not None:
    return Chosen(((0,),), {0: judged.label})
  if len(judged.answers) == 1:
    raise drops.RowError(
      'missing_field', 'a completion by itself needs a label'
    )
  labels = {i: m > 0 for i, m in enumerate(judged.merits()) if m}
  if not labels:
    raise drops.RowError(
      'no_preference', 'no answer wins more than it loses, or less'
    )
  sides = [[i for i in labels if labels[i] is side] for side in (True, False)]
  turns = sorted(
    ((2 * j + 1) / (2 * len(side)), n, i)
    for n, side in enumerate(sides)
    for j, i in enumerate(side)
  )
  examples = tuple((i,) for _, _, i in turns)
  return Chosen(examples, labels, differ=tuple(itertools.product(*sides)))


def _sft(judged: judgements.Judged) -> Chosen:
  if judged.label is False:
    raise drops.RowError(
      'undesirable', 'label is false: not an answer to be imitated'
    )
  merits = judged.merits()
  ranked = judged.order or range(len(merits))
  return Chosen(((max(ranked, key=merits.__getitem__),),))


KINDS: dict[str, Callable[[judgements.Judged], Chosen]] = {
  'pairs': _pairs,
  'ranking': _ranking,
  'targeted': _targeted,
  'unpaired': _unpaired,
  'kto': _unpaired,
  'sft': _sft,
}
