"""Rows of data files as records of text.

Shapes of a row (a JSON object; fields not named here are ignored):

  {'prompt', 'chosen', 'rejected'}, with 'target' for kind='targeted', and
      'chosen_spans', 'rejected_spans' for segments='spans': see segments.py
  {'prompt', 'completions': [...]} and one of
      'preferences': [[winner, loser], ...]   indices into completions
      'scores': [...]                         all pairs of different scores;
                                              a tie is not a preference
      'ranking': [...]                        indices, the best first
  {'prompt', 'completion'}, with 'label': true | false for unpaired methods
  {'text'}                                    the same, with an empty prompt
  {'messages': [...]}                         the last message is the completion

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

Prompts and completions are text or messages: see messages.py.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
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
  rendered: the prompt comes from a chat template, so it may hold the
  tokenizer's control tokens.
  differ: completions that must not be the same; None for those of each example.
  spans: of each completion, as the row has them: see segments.py.
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

  def equal(self, contents: Sequence[Hashable]) -> int | None:
    """A completion whose content is that of one it must differ from, if any."""
    for group in self.examples if self.differ is None else self.differ:
      if len({contents[i] for i in group}) < len(group):
        return group[0]
    return None


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
) -> Record:
  """The record in a decoded JSON value; drops.RowError for an unusable one.

  render: messages -> text, up to where the assistant's answer begins.
  """
  choose = registry.lookup(KINDS, kind, 'kind of record')
  judged = judgements.judge(row)
  chosen = choose(judged)
  # Completions in no example must not lengthen the record.
  used = sorted(set(itertools.chain.from_iterable(chosen.examples)))
  prompt, answers, rendered = messages.texts(
    judged.prompt, [judged.answers[i] for i in used], render
  )
  place = {old: new for new, old in enumerate(used)}

  def local(indices: Indices) -> Indices:
    return tuple(tuple(place[i] for i in group) for group in indices)

  record = Record(
    prompt=prompt,
    completions=answers,
    examples=local(chosen.examples),
    labels=chosen.labels and tuple(chosen.labels[i] for i in used),
    file=file,
    row=line,
    rendered=rendered,
    differ=None if chosen.differ is None else local(chosen.differ),
    spans=judged.spans and tuple(judged.spans[i] for i in used),
  )
  equal = record.equal(answers)
  if equal is not None:
    raise drops.RowError(
      'identical_completions',
      f'answers compared are equal: {messages.show(answers[equal])}',
    )
  return record


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
