"""Records of text to records of tokens.

The contract, for every record that is kept:

  1. Prompt and completions are tokenised separately, without special tokens,
     and joined without changing either.
  2. BOS stands once, at the root: before the prompt, if the tokenizer adds one
     (bos='auto'), or 'always' or 'never'. It is not doubled where a template
     wrote it. A completion that holds BOS or EOS is dropped, and so is a prompt
     that holds EOS, unless a chat template wrote it.
  3. A prompt without tokens is its root alone: BOS, or EOS where there is no
     BOS or bos='never'. Where there is neither the prompt stays empty, and the
     first token of its completions is not scored: nothing predicts it.
  4. One EOS ends every completion that was not cut.
  5. If the prompt and its longest completion are over `max_length` together, a
     prompt over `max_prompt_length` is cut to that, its root included: to its
     start (truncation='keep_start'), or to its root and its end ('keep_end').
     Completions that still do not fit are cut to what the prompt leaves of
     `max_length`. truncation='drop' cuts nothing: it drops such records, and
     those with a prompt over `max_prompt_length` if that is given.
  6. A record is dropped, counted and reported if a completion has no token to
     score, or if completions that must differ (those that it compares, or a
     desirable and an undesirable one) have become the same.

Deviations from github.com/eric-mitchell/direct-preference-optimization:

  - It never adds BOS, and fails on an empty prompt: bos='never' is its rule.
  - It takes EOS inside a text for a programming error and stops.
  - It cuts completions to max_length - max_prompt_length even where the prompt
    is shorter than max_prompt_length.
  - It keeps pairs that cutting has made equal.
  - keep_end there keeps the last max_prompt_length tokens; here BOS, if there
    is one, is the first of them.
"""

import array
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm

from dpo_jax import registry
from dpo_jax.data import drops, records, segments, store

Ids = list[int]
Item = records.Record | drops.RowError

# Records encoded at a time: enough to keep every core of the encoder busy.
CHUNK = 1024


class Contract(NamedTuple):
  """The settings above, resolved for one tokenizer.

  root: goes before every prompt; empty_root: takes the place of an empty one;
  bos, eos: what must not be inside a text. None where there is no such token.
  """

  max_length: int
  max_prompt_length: int | None
  cut: Callable[[Ids, int, bool], Ids] | None
  root: int | None
  empty_root: int | None
  bos: int | None
  eos: int | None


def contract(
  tokenizer: Any,
  *,
  max_length: int,
  max_prompt_length: int | None = None,
  truncation: str = 'keep_end',
  bos: str = 'auto',
) -> Contract:
  """Checks the settings, in tokens, and resolves them; ValueError if wrong."""
  cut = registry.lookup(TRUNCATIONS, truncation, 'truncation')
  add = registry.lookup(BOS, bos, 'bos rule')(tokenizer)
  if add and tokenizer.bos_id is None:
    raise ValueError(
      f'bos={bos!r} puts BOS before every prompt, but the tokenizer has none. '
      "Use bos='never'."
    )
  if max_length < 2:
    raise ValueError(
      f'max_length={max_length}: a prompt and a completion need 2 or more.'
    )
  if cut and max_prompt_length is None:
    raise ValueError(
      f'truncation={truncation!r} needs max_prompt_length, what is left of a '
      "prompt that is cut; truncation='drop' does without."
    )
  if max_prompt_length is not None and not 0 < max_prompt_length < max_length:
    raise ValueError(
      f'max_prompt_length={max_prompt_length} must be at least 1 and less than '
      f'max_length={max_length}, to leave room for a completion.'
    )
  has_bos = tokenizer.bos_id is not None and bos != 'never'
  return Contract(
    max_length=max_length,
    max_prompt_length=max_prompt_length,
    cut=cut,
    root=tokenizer.bos_id if add else None,
    empty_root=tokenizer.bos_id if has_bos else tokenizer.eos_id,
    bos=tokenizer.bos_id,
    eos=tokenizer.eos_id,
  )


def tokenise(
  items: Iterable[Item],
  tokenizer: Any,
  rules: Contract,
  mark: segments.Mark | None = None,
) -> tuple[store.TokenRecords, drops.DropReport]:
  """Tokens of all usable records, in their order, and what was dropped.

  tokenizer: `encode_batch` (texts to ids without special tokens, in parallel).
  mark: which tokens go to extras['corrected'], f32[tokens], as 1; None for no
  such extra.
  Raises ValueError if examples do not all compare equally many completions.
  """
  report = drops.DropReport()
  builder = store.Builder()
  corrected = array.array('f')
  bar = tqdm.tqdm(items, desc='tokenising', unit=' rows', disable=None)
  for chunk in _chunks(iter(bar)):
    report.read += len(chunk)
    texts = []
    for item in chunk:
      if isinstance(item, records.Record):
        texts += (item.prompt, *item.completions)
    encoded = iter(tokenizer.encode_batch(texts))
    for item in chunk:
      if isinstance(item, drops.RowError):
        report.add(item)
        continue
      prompt = next(encoded)
      answers = list(itertools.islice(encoded, len(item.completions)))
      try:
        prompt, completions = fit(item, prompt, answers, rules)
        marks = mark(item, answers) if mark else None
      except drops.RowError as e:
        e.file, e.row = item.file, item.row
        report.add(e)
        continue
      builder.add(item, prompt, completions)
      if marks is not None:
        corrected.extend(segments.extend(marks, prompt, completions))
  tokens = builder.finish()
  if mark:
    extras = {'corrected': np.asarray(corrected, np.float32)}
    tokens = dataclasses.replace(tokens, extras=extras)
  return tokens, report


def fit(
  record: records.Record, prompt: Ids, completions: list[Ids], rules: Contract
) -> tuple[Ids, list[Ids]]:
  """Ids of a record's texts with the contract applied, or drops.RowError."""
  _check_specials(record, prompt, completions, rules)
  prompt = _rooted(prompt, rules)
  end = [] if rules.eos is None else [rules.eos]
  completions = [ids + end for ids in completions]
  limit = rules.max_prompt_length
  total = len(prompt) + max(map(len, completions))
  if rules.cut is None:
    if total > rules.max_length:
      raise drops.RowError(
        'too_long', f'{total} tokens; max_length={rules.max_length}'
      )
    if limit is not None and len(prompt) > limit:
      raise drops.RowError(
        'prompt_too_long', f'{len(prompt)} tokens; max_prompt_length={limit}'
      )
  elif total > rules.max_length:
    if len(prompt) > limit:
      prompt = rules.cut(prompt, limit, rules.root is not None)
    room = rules.max_length - len(prompt)
    completions = [ids[:room] for ids in completions]
  _check_scored(record, prompt, completions)
  return prompt, completions


def _rooted(prompt: Ids, rules: Contract) -> Ids:
  if not prompt:
    return [] if rules.empty_root is None else [rules.empty_root]
  if rules.root is None or prompt[0] == rules.root:
    return prompt
  return [rules.root, *prompt]


def _check_specials(
  record: records.Record, prompt: Ids, completions: list[Ids], rules: Contract
) -> None:
  if rules.eos in prompt and not record.rendered:
    raise drops.RowError(
      'eos_in_prompt',
      f'token {rules.eos} ends a text; a chat is given as messages',
    )
  for ids in completions:
    if not ids:
      raise drops.RowError('empty_completion', 'a completion has no tokens')
    if rules.eos in ids:
      raise drops.RowError(
        'eos_in_completion', f'token {rules.eos} is added at the end'
      )
    if rules.bos in ids:
      raise drops.RowError(
        'bos_in_completion', f'token {rules.bos} belongs before the prompt'
      )


def _check_scored(
  record: records.Record, prompt: Ids, completions: list[Ids]
) -> None:
  if not prompt and any(len(ids) < 2 for ids in completions):
    raise drops.RowError(
      'nothing_to_score', 'one token, and no root that predicts it'
    )
  if record.equal([tuple(ids) for ids in completions]) is not None:
    raise drops.RowError(
      'identical_tokens',
      'the completions compared are equal as tokens, or after cutting',
    )


def _keep_start(prompt: Ids, limit: int, rooted: bool) -> Ids:
  del rooted
  return prompt[:limit]


def _keep_end(prompt: Ids, limit: int, rooted: bool) -> Ids:
  root = prompt[:rooted]
  return root + prompt[len(prompt) - limit + len(root) :]


TRUNCATIONS: dict[str, Callable[[Ids, int, bool], Ids] | None] = {
  'keep_end': _keep_end,
  'keep_start': _keep_start,
  'drop': None,
}

BOS: dict[str, Callable[[Any], bool]] = {
  'auto': lambda tokenizer: tokenizer.add_bos,
  'always': lambda tokenizer: True,
  'never': lambda tokenizer: False,
}


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
  while chunk := list(itertools.islice(items, CHUNK)):
    yield chunk
