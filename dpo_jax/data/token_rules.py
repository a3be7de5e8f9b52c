"""What the ids of a record must be: joining, BOS and EOS, truncation.

For every record that is kept:

  1. Prompt and completions are tokenised separately, without special tokens,
     and joined without changing either. A tokenizer that puts a space before
     every text (Llama 2) puts it before prompts alone. Where every answer of a
     conversation is scored, answers and the text between them are too.
  2. BOS stands once, at the root: before the prompt, if the tokenizer adds one
     (bos='auto'), 'always' or 'never'. It is not doubled where a template wrote
     it. A completion that holds BOS, EOS or its end is dropped.
     Control tokens (BOS, EOS, <|im_end|>, ...) in a prompt that is text, or in
     a message that is not an answer, were written by a person or a tool: they
     are encoded as characters (control_tokens='text'), or the row is dropped
     ('drop'). 'tokens' keeps them, for texts that a template has rendered.
  3. A prompt without tokens is its root alone: BOS, or EOS where there is no
     BOS or bos='never'. Where there is neither the prompt stays empty, and the
     first token of its completions is not scored: nothing predicts it.
  4. One token ends every completion that was not truncated: EOS, or for a
     rendered conversation what the template writes after an answer (<|im_end|>,
     ...), if that is a control token. What the template writes after that is
     not kept.
  5. If the prompt and its longest completion exceed `max_length` together, a
     prompt over `max_prompt_length` is truncated to that, its root included: to
     its start (truncation='keep_start'), or to its root and its end
     ('keep_end'). Completions that still do not fit are truncated to what the
     prompt leaves of `max_length`. truncation='drop' truncates nothing: it
     drops such examples, and records with a prompt over `max_prompt_length` if
     that is given.
  6. A completion can't be used if it has no token to score, or has become equal
     to one that it must differ from (one that it is compared with, or a
     desirable one and an undesirable one).
  7. Examples with a completion that can't be used are dropped, counted and
     reported; their record is if no example is left.

Deviations from github.com/eric-mitchell/direct-preference-optimization:

  - It never adds BOS, and fails on an empty prompt: bos='never' is its rule.
  - It takes EOS inside a text for a programming error and stops.
  - It truncates completions to max_length - max_prompt_length even where the
    prompt is shorter than max_prompt_length.
  - It keeps pairs that truncation has made equal.
  - keep_end there keeps the last max_prompt_length tokens; here BOS, if there
    is one, is the first of them.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.chat import errors
from dpo_jax.data import records

Ids = list[int]


class TokenRules(NamedTuple):
  """The settings above, resolved for one tokenizer.

  root: goes before every prompt; empty_root: takes the place of an empty one;
  bos, eos: what must not be inside a text; turn: what ends a rendered answer.
  None where there is no such token.
  """

  max_length: int
  max_prompt_length: int | None
  truncate: Callable[[Ids, int, bool], Ids] | None
  root: int | None
  empty_root: int | None
  bos: int | None
  eos: int | None
  turn: int | None
  control_tokens: str

  @property
  def recognises(self) -> bool:
    """Whether control tokens in prompts of people and tools are tokens."""
    return self.control_tokens == 'tokens'

  def end(self, record: records.Record) -> list[int]:
    """What ends the record's completions: one token, or none."""
    found = self.turn if record.rendered else self.eos
    return [] if found is None else [found]


def resolve(
  tokenizer: Any,
  *,
  max_length: int,
  max_prompt_length: int | None = None,
  truncation: str = 'keep_end',
  bos: str = 'auto',
  control_tokens: str = 'text',
) -> TokenRules:
  """Checks the settings, in tokens, and resolves them; ValueError if wrong."""
  truncate = registry.lookup(TRUNCATIONS, truncation, 'truncation')
  add = registry.lookup(BOS, bos, 'bos rule')(tokenizer)
  registry.lookup(CONTROL_TOKENS, control_tokens, 'control_tokens')
  if add and tokenizer.bos_id is None:
    raise ValueError(
      f'bos={bos!r} puts BOS before every prompt, but the tokenizer has none. '
      "Use bos='never'."
    )
  if max_length < 2:
    raise ValueError(
      f'max_length={max_length}: a prompt and a completion need 2 or more.'
    )
  if truncate and max_prompt_length is None:
    raise ValueError(
      f'truncation={truncation!r} needs max_prompt_length, the length of a '
      "truncated prompt; truncation='drop' does not."
    )
  if max_prompt_length is not None and not 0 < max_prompt_length < max_length:
    raise ValueError(
      f'max_prompt_length={max_prompt_length} must be at least 1 and less than '
      f'max_length={max_length}, to leave room for a completion.'
    )
  turn = tokenizer.end_of_turn
  ends_turn = turn is not None and turn.token_id is not None
  has_bos = tokenizer.bos_id is not None and bos != 'never'
  return TokenRules(
    max_length=max_length,
    max_prompt_length=max_prompt_length,
    truncate=truncate,
    root=tokenizer.bos_id if add else None,
    empty_root=tokenizer.bos_id if has_bos else tokenizer.eos_id,
    bos=tokenizer.bos_id,
    eos=tokenizer.eos_id,
    turn=turn.token_id if ends_turn else tokenizer.eos_id,
    control_tokens=control_tokens,
  )


class Encoded(NamedTuple):
  """Ids of a record's prompt and of its completions, before the rules.

  scored: which ids of the only completion are scored; None for all. literal:
  the control tokens that are encoded as text.
  """

  prompt: Ids
  completions: list[Ids]
  scored: list[bool] | None
  literal: tuple[str, ...]


class Fitted(NamedTuple):
  """A record's tokens, and what of it is left.

  places: of the completions, among those that were given.
  """

  prompt: Ids
  completions: list[Ids]
  record: records.Record
  places: list[int]

  def without(self, lost: Mapping[int, errors.RowError]) -> 'Fitted':
    """Less some of the examples; see `records.Record.without`."""
    record, used = self.record.without(lost)
    return self._replace(
      record=record,
      completions=[self.completions[i] for i in used],
      places=[self.places[i] for i in used],
    )

  def usable(self, fault: Callable[[Ids], errors.RowError | None]) -> 'Fitted':
    """Less the examples with a completion that has a fault."""
    found = {c: fault(ids) for c, ids in enumerate(self.completions)}
    faults = {c: error for c, error in found.items() if error}
    return self.without(self.record.involving(faults))


def fit(record: records.Record, encoded: Encoded, rules: TokenRules) -> Fitted:
  """Ids of a record's texts by the rules; RowError if nothing is left."""
  prompt, completions, scored, literal = encoded
  if literal and rules.control_tokens == 'drop':
    raise errors.RowError(
      'control_tokens',
      f'a prompt holds {literal[0]!r}, a control token of the tokenizer',
    )
  every = list(range(len(completions)))
  if record.alone:
    prompt = _bounded_prompt(record, rooted(prompt, rules), rules)
    return Fitted(prompt, completions, record, every)
  fitted = Fitted(rooted(prompt, rules), completions, record, every)
  fitted = fitted.usable(lambda ids: _special(record, ids, rules, scored))
  end = rules.end(record)
  fitted = fitted._replace(completions=[x + end for x in fitted.completions])
  fitted = (_truncated if rules.truncate else _bounded)(fitted, rules)
  fitted = fitted.usable(lambda ids: _unscored(fitted.prompt, ids, scored))
  equal = errors.RowError(
    'identical_tokens',
    'the completions compared are equal as tokens, or after truncation',
  )
  contents = [tuple(ids) for ids in fitted.completions]
  return fitted.without(dict.fromkeys(fitted.record.tied(contents), equal))


def _bounded(fitted: Fitted, rules: TokenRules) -> Fitted:
  """Less what is too long."""
  length, limit = len(fitted.prompt), rules.max_prompt_length

  def too_long(ids: Ids) -> errors.RowError | None:
    total = length + len(ids)
    if total <= rules.max_length:
      return None
    return errors.RowError(
      'too_long', f'{total} tokens; max_length={rules.max_length}'
    )

  fitted = fitted.usable(too_long)
  if limit is not None and length > limit:
    raise errors.RowError(
      'prompt_too_long', f'{length} tokens; max_prompt_length={limit}'
    )
  return fitted


def _truncated(fitted: Fitted, rules: TokenRules) -> Fitted:
  prompt, limit = fitted.prompt, rules.max_prompt_length
  total = len(prompt) + max(map(len, fitted.completions))
  if total <= rules.max_length:
    return fitted
  if len(prompt) > limit:
    prompt = _cut(fitted.record, prompt, limit, rules)
  room = rules.max_length - len(prompt)
  completions = [ids[:room] for ids in fitted.completions]
  return fitted._replace(prompt=prompt, completions=completions)


def _cut(record: records.Record, prompt: Ids, limit: int, rules) -> Ids:
  # A template may write BOS where the tokenizer adds none.
  has_bos = record.rendered and prompt[0] == rules.bos
  return rules.truncate(prompt, limit, rules.root is not None or has_bos)


def _bounded_prompt(record: records.Record, prompt: Ids, rules) -> Ids:
  """A prompt to sample from, however short its completion is to be."""
  limit = rules.max_prompt_length or rules.max_length
  if len(prompt) <= limit:
    return prompt
  if rules.truncate is None:
    raise errors.RowError(
      'prompt_too_long', f'{len(prompt)} tokens; max_prompt_length={limit}'
    )
  return _cut(record, prompt, limit, rules)


def rooted(prompt: Ids, rules: TokenRules) -> Ids:
  """The ids of a prompt after its root."""
  if not prompt:
    return [] if rules.empty_root is None else [rules.empty_root]
  if rules.root is None or prompt[0] == rules.root:
    return prompt
  return [rules.root, *prompt]


def _special(
  record: records.Record, ids: Ids, rules: TokenRules, scored: list[bool] | None
) -> errors.RowError | None:
  """The fault of a completion that is empty, or holds a token it must not."""
  if not ids:
    return errors.RowError('empty_completion', 'a completion has no tokens')
  if scored is not None:
    ids = list(itertools.compress(ids, scored))
  ends = {rules.eos, *rules.end(record)} - {None}
  found = [i for i in ids if i in ends]
  # Each answer but the last has its end in it already.
  allowed = len(record.scored) - 1 if record.scored else 0
  if len(found) > allowed:
    return errors.RowError(
      'eos_in_completion', f'token {found[0]} is added at the end'
    )
  if rules.bos in ids:
    return errors.RowError(
      'bos_in_completion', f'token {rules.bos} belongs before the prompt'
    )
  return None


def _unscored(
  prompt: Ids, ids: Ids, scored: list[bool] | None
) -> errors.RowError | None:
  """The fault of a completion of which no token is scored."""
  if not prompt and len(ids) < 2:
    return errors.RowError(
      'nothing_to_score', 'one token, and no root that predicts it'
    )
  if scored is not None and not any(scored[: len(ids)]):
    return errors.RowError(
      'nothing_to_score', 'truncation has removed all of the answers'
    )
  return None


def _keep_end(prompt: Ids, limit: int, rooted: bool) -> Ids:
  root = prompt[:rooted]
  return root + prompt[len(prompt) - limit + len(root) :]


# (prompt, limit, whether it begins with a root) -> at most `limit` of its ids.
TRUNCATIONS: dict[str, Callable[[Ids, int, bool], Ids] | None] = {
  'keep_end': _keep_end,
  'keep_start': lambda prompt, limit, rooted: prompt[:limit],
  'drop': None,
}

BOS: dict[str, Callable[[Any], bool]] = {
  'auto': lambda tokenizer: tokenizer.add_bos,
  'always': lambda tokenizer: True,
  'never': lambda tokenizer: False,
}

CONTROL_TOKENS = {
  'text': 'they are encoded as characters',
  'drop': 'a row with one is dropped',
  'tokens': 'they are tokens',
}
