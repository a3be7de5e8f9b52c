"""Rows of data files as records of text.

Shapes of a row (a JSON object; a field that is null is absent, fields that are
not named here are counted and reported):

  {'prompt', 'chosen', 'rejected'}, with 'target' for kind='targeted', and
      'chosen_spans', 'rejected_spans' for corrections='spans': corrections.py
  {'prompt', 'completions': [...]} and one of
      'preferences': [[winner, loser], ...]   indices into completions
      'scores': [...]                         all pairs of different scores;
                                              a tie is not a preference
      'ranking': [...]                        indices, the best first
  {'prompt', 'completion'}, with 'label': true | false for unpaired methods, or
                                              a number as 'rating'
  {'text'}                                    the same, with an empty prompt; a
                                              label of another type is ignored
  {'messages': [...]}, with 'label' likewise  the last message is the completion

`kind`, a key of `KINDS`, chooses the examples that a row gives:

  pairs     every (winner, loser); a ranking or scores give all their pairs
  ranking   one K-tuple, the best first; scores must not tie. K is the same for
            all rows.
  targeted  (chosen, rejected, target): an answer to be imitated beside the
            pair, which may be one of the two
  unpaired  one completion and its label. Where answers are compared each is an
            example of its own: desirable if it wins more comparisons than it
            loses, undesirable if fewer, and not used if equally many. Desirable
            and undesirable ones take turns.
  rated     one completion and its rating; completions with scores are examples
            of their own
  kto       as unpaired, each with a completion of another record: (own,
            mismatched), see mismatch.py
  sft       one completion: the given one, or the preferred one. Among several,
            the one with the most wins less losses, the first of these on ties.
            (The reference repository takes the last chosen answer of a prompt.)
  prompts   the prompt alone, to sample from; a row may be {'prompt'}. Answers
            are not read.

Prompts and completions are text or messages: see dpo_jax/chat/row_texts.py.
'system', 'tools', 'documents' and 'chat_template_kwargs' beside messages are
parts of the conversation. Fields of preferences.REFUSED make a row unusable.
"""

import dataclasses
import itertools
from collections.abc import (
  Callable,
  Hashable,
  Iterable,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.chat import errors, rendering, row_texts
from dpo_jax.data import preferences

# The completion of kind='prompts'.
PLACEHOLDER = '.'
Indices = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt, its completions, and the examples that they form.

  examples: what a batch counts; tuples of indices into `completions`, all of
  the same length: (winner, loser), (winner, loser, target), (i,) or a ranking,
  the best first. Every completion is in one of them.
  labels: whether each completion is desirable, or its rating; None where the
  kind has none.
  row: line of the file, from 1.
  rendered: a chat template wrote the text, so it may hold the tokenizer's
  control tokens, and the end of a turn ends its completions.
  differ: completions that must not be equal; None for those of each example.
  spans: corrected spans of each completion, unchecked: see corrections.py.
  contents: the texts that spans refer to, where a template rendered them.
  scored: the scored [begin, end) of its only completion, in characters; None
  where all of every completion is scored.
  literal: of the prompt and of each rendered completion, where it holds control
  tokens that messages hold; None for nowhere.
  unread: names of fields that nothing reads.
  alone: whether only the prompt is read, to sample from.
  weight: rows of the data that it was made of. lost: why some of its examples
  were left out; their weights are shares of its own.
  """

  prompt: str
  completions: tuple[str, ...]
  examples: Indices
  labels: tuple[float, ...] | None = None
  file: str = ''
  row: int = 0
  rendered: bool = False
  differ: Indices | None = None
  spans: tuple[Any, ...] | None = None
  contents: tuple[str, ...] | None = None
  scored: tuple[tuple[int, int], ...] | None = None
  literal: tuple[tuple[tuple[int, int], ...], ...] | None = None
  unread: tuple[str, ...] = ()
  alone: bool = False
  weight: int = 1
  lost: tuple[errors.RowError, ...] = ()

  def tied(self, contents: Sequence[Hashable]) -> dict[int, int]:
    """Examples with two equal completions, by place, each with one of them.

    contents: of each completion, what is compared.
    """

    def same(group):
      return len({contents[i] for i in group}) < len(group)

    if self.differ is None:
      return {e: x[0] for e, x in enumerate(self.examples) if same(x)}
    equal = {i for group in self.differ if same(group) for i in group}
    return self.involving({i: i for i in equal})

  def involving(self, faults: Mapping[int, Any]) -> dict[int, Any]:
    """Examples that hold completions with faults, each with its first fault."""
    held = {
      e: [i for i in example if i in faults]
      for e, example in enumerate(self.examples)
    }
    return {e: faults[min(found)] for e, found in held.items() if found}

  def without(
    self, lost: Mapping[int, errors.RowError]
  ) -> tuple['Record', list[int]]:
    """Less some of its examples, by place; and which completions are left.

    Raises the first of the errors if no example is left.
    """
    if not lost:
      return self, list(range(len(self.completions)))
    if len(lost) == len(self.examples):
      raise lost[min(lost)]
    share = self.weight - sum(e.weight for e in self.lost)
    share /= len(self.examples)
    causes = {id(e): e for e in lost.values()}
    for key, error in causes.items():
      error.weight = share * sum(id(e) == key for e in lost.values())
      error.file, error.row = self.file, self.row
    kept = [x for e, x in enumerate(self.examples) if e not in lost]
    used = sorted(set(itertools.chain.from_iterable(kept)))
    place = {old: new for new, old in enumerate(used)}

    def left(values):
      return values and tuple(values[i] for i in used)

    differ = self.differ
    if differ is not None:
      differ = _renumbered((x for x in differ if place.keys() >= set(x)), place)
    record = dataclasses.replace(
      self,
      completions=left(self.completions),
      examples=_renumbered(kept, place),
      labels=left(self.labels),
      differ=differ,
      spans=left(self.spans),
      contents=left(self.contents),
      literal=self.literal and (self.literal[0], *left(self.literal[1:])),
      lost=(*self.lost, *causes.values()),
    )
    return record, used


class Chosen(NamedTuple):
  """Examples, as indices into the answers of a row.

  labels: whether an answer is desirable, or its rating; differ: as in `Record`.
  """

  examples: Indices
  labels: dict[int, float] | None = None
  differ: Indices | None = None


def parse(
  row: object,
  *,
  kind: str,
  render: rendering.Render,
  file: str = '',
  line: int = 0,
  weight: int = 1,
  unread: tuple[str, ...] = (),
) -> Record:
  """The record in a decoded JSON value; RowError for an unusable one.

  An answer that can't be used, or two that are equal, take the examples that
  compare them. render: how messages become text. unread: fields of the row that
  were left out of the value.
  """
  choose = registry.lookup(KINDS, kind, 'kind of record')
  if kind == 'prompts':
    record = _prompt(row, render)
    return dataclasses.replace(
      record,
      file=file,
      row=line,
      weight=weight,
      unread=(*unread, *record.unread),
    )
  found = preferences.of_row(row)
  chosen = choose(found)
  # Completions in no example must not lengthen the record.
  used = sorted(set(itertools.chain.from_iterable(chosen.examples)))
  answers = [found.answers[i] for i in used]
  texts, faults = row_texts.read_usable(
    found.prompt, answers, render, found.around
  )
  place = {old: new for new, old in enumerate(used)}
  unused = ['target'] * (found.target is not None and kind != 'targeted')
  alone = found.ratings is not None and len(found.ratings) == 1
  unused += ['rating'] * (alone and not found.order and kind != 'rated')
  record = Record(
    prompt=texts.prompt,
    completions=texts.answers,
    examples=_renumbered(chosen.examples, place),
    labels=chosen.labels and tuple(chosen.labels[i] for i in used),
    file=file,
    row=line,
    rendered=texts.rendered,
    differ=chosen.differ and _renumbered(chosen.differ, place),
    spans=found.spans and tuple(found.spans[i] for i in used),
    contents=texts.contents if found.spans else None,
    scored=texts.scored,
    literal=texts.literal,
    unread=(*unread, *found.unread, *texts.unread, *unused),
    weight=weight,
  )
  record, _ = record.without(record.involving(faults))
  equal = {
    e: errors.RowError(
      'identical_completions',
      f'answers compared are equal: {errors.show(record.completions[i])}',
    )
    for e, i in record.tied(record.completions).items()
  }
  return record.without(equal)[0]


def _prompt(row: object, render: rendering.Render) -> Record:
  """A prompt, with `PLACEHOLDER` where a sample will be."""
  found = preferences.prompt_of_row(row)
  texts = row_texts.read_prompt(
    found.prompt, found.answers, render, found.around
  )
  return Record(
    prompt=texts.prompt,
    completions=(PLACEHOLDER,),
    examples=((0,),),
    rendered=texts.rendered,
    literal=texts.literal and (*texts.literal, ()),
    alone=True,
    unread=(*found.unread, *texts.unread),
  )


def _renumbered(
  groups: Iterable[Sequence[int]], place: dict[int, int]
) -> Indices:
  return tuple(tuple(place[i] for i in group) for group in groups)


def _pairs(found: preferences.Preferences) -> Chosen:
  if not found.pairs:
    raise errors.RowError('no_preference', 'no answer is better than another')
  return Chosen(found.pairs)


def _ranking(found: preferences.Preferences) -> Chosen:
  if found.order is None or len(found.order) < 2:
    raise errors.RowError(
      'no_strict_order',
      'a ranking needs two answers or more, and no ties between them',
    )
  return Chosen((found.order,))


def _targeted(found: preferences.Preferences) -> Chosen:
  if found.target is None:
    raise errors.RowError(
      'missing_field',
      'a targeted row has the fields chosen, rejected and target',
    )
  # A target equal to one of the pair is that completion, computed once.
  target = found.answers.index(found.answers[found.target])
  return Chosen(((0, 1, target),), differ=((0, 1),))


def _unpaired(found: preferences.Preferences) -> Chosen:
  if found.label is not None:
    return Chosen(((0,),), {0: found.label})
  if len(found.answers) == 1:
    raise errors.RowError(
      'missing_field', 'a completion by itself needs a label'
    )
  labels = {i: wins > 0 for i, wins in enumerate(found.net_wins()) if wins}
  if not labels:
    raise errors.RowError(
      'no_preference', 'every answer wins as often as it loses'
    )
  sides = [[i for i in labels if labels[i] is side] for side in (True, False)]
  turns = sorted(
    ((2 * j + 1) / (2 * len(side)), n, i)
    for n, side in enumerate(sides)
    for j, i in enumerate(side)
  )
  examples = tuple((i,) for _, _, i in turns)
  return Chosen(examples, labels, differ=tuple(itertools.product(*sides)))


def _rated(found: preferences.Preferences) -> Chosen:
  if found.ratings is None:
    raise errors.RowError(
      'missing_field', 'a rated row has a rating of its completion, or scores'
    )
  examples = tuple((i,) for i in range(len(found.answers)))
  return Chosen(examples, dict(enumerate(found.ratings)))


def _sft(found: preferences.Preferences) -> Chosen:
  if found.label is False:
    raise errors.RowError(
      'undesirable', 'label is false: not an answer to be imitated'
    )
  wins = found.net_wins()
  best = max(found.order or range(len(wins)), key=wins.__getitem__)
  return Chosen(((best,),))


# None: `_prompt` reads the row.
KINDS: dict[str, Callable[[preferences.Preferences], Chosen] | None] = {
  'pairs': _pairs,
  'ranking': _ranking,
  'targeted': _targeted,
  'unpaired': _unpaired,
  'rated': _rated,
  'kto': _unpaired,
  'sft': _sft,
  'prompts': None,
}
