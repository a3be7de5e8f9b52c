"""Samples of a policy on held-out prompts: drawing, statistics, files, display.

A row is a JSON object for one sample: `prompt` (text without BOS), `text`
(without EOS), `ids` of the completion (with EOS), `length` (number of ids),
`ended` (whether EOS was reached), `logp` (log policy(ids | prompt) in nats,
temperature 1, unfiltered), and the settings `temperature`, `top_k` and `top_p`
that it was drawn with. Optional: `kl` and `log_ratio` (see kl.py), and the
score of a reward under the reward's name, with `best_of`, the number of samples
of which this one has the highest score.
"""

import functools
import json
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import assets, models, registry, rewards, sampling, tokenizers
from dpo_jax.data import order, store
from dpo_jax.evals import likelihood
from dpo_jax.sampling import filters
from dpo_jax.training import processes

Ids = list[int]
Rows = list[dict[str, Any]]
# The length of the n-grams of which `repetition` is the repeated share.
NGRAM = 4


class Sampler(NamedTuple):
  """The functions of this file with a config section's options bound.

  choose(records) -> (prompts, samples per prompt); see `choose_prompts`.
  draw(params, config, prompts, tokenizer, *, key, num_samples, compute) ->
    rows with scores.
  statistics(rows) -> metrics.
  check(records, config, tokenizer): ValueError if sampling would fail.
  max_new_tokens: the most tokens of a sample, for `kl.make_sequence_kl`.
  """

  choose: Callable[[store.TokenRecords], tuple[list[Ids], int]]
  draw: Callable[..., Rows]
  statistics: Callable[[Rows], dict[str, float]]
  check: Callable[..., None]
  max_new_tokens: int


def build(
  *,
  num_prompts: int,
  num_samples: int,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  reward: str | Mapping[str, Any] | None = None,
  batch_size: int | None = None,
) -> Sampler:
  """A `Sampler` with these options; ValueError if one is invalid.

  num_samples: per prompt. temperature: 0 is greedy. top_k, top_p: None: no
  filter. Only temperature 1 without a filter samples the policy itself.
  reward: see `rewards.build`; None: none. batch_size: see `sampling.sample`.
  """
  registry.check_integers(
    ('samples.num_prompts', num_prompts, 1),
    ('samples.num_samples', num_samples, 1),
    ('samples.max_new_tokens', max_new_tokens, 1),
    ('samples.batch_size', 1 if batch_size is None else batch_size, 1),
  )
  settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
  filters.make_rule(**settings)
  judge = None if reward is None else rewards.build(reward)
  choose = functools.partial(
    choose_prompts, num_prompts=num_prompts, num_samples=num_samples
  )

  def check(records, config, tokenizer):
    try:
      sampling.check(
        choose(records)[0],
        config,
        max_new_tokens=max_new_tokens,
        eos_id=tokenizer.stop_ids,
      )
    except ValueError as error:
      raise ValueError(f'samples (of held-out prompts): {error}') from error
    if judge is not None:
      judge([], [])

  def draw(*args, **kwargs):
    options = dict(
      max_new_tokens=max_new_tokens, batch_size=batch_size, **settings
    )
    return score(generate(*args, **options, **kwargs), judge)

  return Sampler(
    choose=choose,
    draw=draw,
    statistics=functools.partial(statistics, reward=judge),
    check=check,
    max_new_tokens=max_new_tokens,
  )


def choose_prompts(
  records: store.TokenRecords, *, num_prompts: int, num_samples: int
) -> tuple[list[Ids], int]:
  """The first `num_prompts` distinct prompts, and the samples per prompt.

  Prompts of a mixture come from all its parts; see `order.unshuffled`. If there
  are fewer prompts, each is sampled more often, so that there are at least
  num_prompts * num_samples samples.
  """
  chosen = {}
  for i in order.unshuffled(records):
    if len(chosen) == num_prompts:
      break
    chosen[tuple(records.prompt(i).tolist())] = None
  return list(map(list, chosen)), -(-num_prompts * num_samples // len(chosen))


def generate(
  params: Any,
  config: models.ModelConfig,
  prompts: Sequence[Ids],
  tokenizer: tokenizers.Tokenizer,
  *,
  key: Any,
  max_new_tokens: int,
  num_samples: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  compute: models.Compute,
  batch_size: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> Rows:
  """Rows of `num_samples` samples per prompt, in the order of the prompts.

  Deterministic in its arguments. batch_size, progress: see `sampling.sample`.
  """
  settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
  drawn = sampling.sample(
    params,
    config,
    prompts,
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=num_samples,
    batch_size=batch_size,
    progress=progress,
    eos_id=tokenizer.stop_ids,
    compute=compute,
    **settings,
  )
  rows = []
  for b, prompt in enumerate(prompts):
    prompt_text = text_of_prompt(prompt, tokenizer)
    for s in range(num_samples):
      length = int(drawn.lengths_BxS[b, s])
      ids = drawn.tokens_BxSxT[b, s, :length].tolist()
      text, ended = text_of_sample(ids, tokenizer)
      logps = np.float64(drawn.logps_BxSxT[b, s, :length])
      rows.append(
        {
          'prompt': prompt_text,
          'text': text,
          'ids': ids,
          'length': length,
          'ended': ended,
          'logp': float(logps.sum()),
          **settings,
        }
      )
  return rows


def text_of_prompt(ids: Ids, tokenizer: tokenizers.Tokenizer) -> str:
  """The text without BOS: training puts it there again, no reward sees it."""
  return tokenizer.decode(ids[ids[:1] == [tokenizer.bos_id] :])


def text_of_sample(
  ids: Ids, tokenizer: tokenizers.Tokenizer
) -> tuple[str, bool]:
  """(text, whether EOS or the end of a turn ends it, which is left out)."""
  ended = bool(ids) and ids[-1] in tokenizer.stop_ids
  return tokenizer.decode(ids[:-1] if ended else ids, start=False), ended


def score(rows: Rows, reward: rewards.Reward | None) -> Rows:
  """The rows with the score of their text, under the reward's name."""
  if reward is None:
    return rows
  prompts, texts = ([row[name] for row in rows] for name in ('prompt', 'text'))
  scores = rewards.as_json(reward(prompts, texts))
  return [{**row, reward.name: x} for row, x in zip(rows, scores)]


def statistics(
  rows: Rows, reward: rewards.Reward | None = None
) -> dict[str, float]:
  """Means over the rows, under 'samples/':

    length      tokens, with the one that ends the sample
    ended       share that reached EOS or the end of a turn
    repetition  1 - distinct / all 4-grams of a text's tokens without EOS
                (seq-rep-4, arXiv:1908.04319); 0 for fewer than 4 tokens
    distinct    distinct texts / samples
    logp        log policy(sample), in nats

  and, if the rows have them, with 95 % intervals as `_low` and `_high`: `kl`
  and `kl_sampled`, the full-vocabulary and the sampled estimate of KL(policy ||
  reference) of a whole answer in nats, and the scores of `reward`. With another
  temperature than 1 or a filter the two do not estimate this KL; they are then
  called `kl_filtered` and `kl_sampled_filtered`.
  """
  out = {
    'length': _mean(row['length'] for row in rows),
    'ended': _mean(row['ended'] for row in rows),
    'repetition': _mean(_repetition(row) for row in rows),
    'distinct': len({row['text'] for row in rows}) / len(rows),
    'logp': _mean(row['logp'] for row in rows),
  }
  suffix = '' if all(map(unfiltered, rows)) else '_filtered'
  for name, field in (('kl', 'kl'), ('kl_sampled', 'log_ratio')):
    if field in rows[0]:
      mean = likelihood.mean([row[field] for row in rows])
      out |= likelihood.metrics_of(f'{name}{suffix}', mean)
  if reward is not None:
    out |= reward_statistics(reward, [row[reward.name] for row in rows])
  return {f'samples/{name}': value for name, value in out.items()}


def reward_statistics(
  reward: rewards.Reward, scores: Sequence[float]
) -> dict[str, float]:
  """Mean score and share of positive texts, with 95 % intervals.

  Keys: the reward's name for the mean, and, if the reward has a threshold,
  '_positive' after it for the share; both also with '_low' and '_high': the
  normal interval, and Wilson's for the share.
  """
  x = np.asarray(scores, np.float64)
  out = likelihood.metrics_of(reward.name, likelihood.mean(x))
  if reward.positive is not None:
    positive = likelihood.share(x >= reward.positive)
    out |= likelihood.metrics_of(f'{reward.name}_positive', positive)
  return out


def _mean(values) -> float:
  return float(np.mean(list(values)))


def _repetition(row: dict[str, Any]) -> float:
  ids = row['ids'][: row['length'] - row['ended']]
  grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


def unfiltered(row: dict[str, Any]) -> bool:
  """Whether a sample was drawn from the policy itself."""
  no_filter = row['top_k'] is None and row['top_p'] in (None, 1.0)
  return no_filter and row['temperature'] == 1.0


def path_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The file of a step's samples in a run's directory."""
  return pathlib.Path(workdir) / 'samples' / f'{step:06d}.jsonl'


def write(workdir: pathlib.Path, step: int, rows: Rows) -> None:
  """Writes the samples of a step, whole or not at all; in process 0 alone."""
  if processes.first():
    write_jsonl(path_of(workdir, step), rows)


def write_jsonl(path: pathlib.Path, rows: Rows) -> None:
  """Writes one JSON object per line, atomically; replaces an existing file."""
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  with assets.atomic_path(path) as temp:
    temp.write_text(''.join(lines), 'utf-8')


def read_step(workdir: pathlib.Path, step: int) -> Rows:
  """The samples of a step, in every process. Collective."""
  first = processes.first()
  return processes.share(read(path_of(workdir, step)) if first else None)


def read(path: pathlib.Path) -> Rows:
  """The rows that `write` wrote."""
  return [row for _, row in assets.read_json_lines(path)]


def show(
  rows: Rows,
  *,
  before: Rows | None = None,
  reward: str | None = None,
  limit: int = 4,
  width: int = 80,
) -> str:
  """Text that shows at most `limit` samples, of as many prompts as possible.

  before: rows of an earlier policy on the same prompts; each is shown above the
  row with the same index. reward: the name of a score that is shown below each
  sample. A sample that did not reach EOS ends with '...'.
  """
  prompts = [row['prompt'] for row in rows]
  if before is not None and prompts != [row['prompt'] for row in before]:
    raise ValueError('The samples before and after are of different prompts.')
  seen, number = {}, []  # number: of a sample among those of its prompt.
  for prompt in prompts:
    number.append(seen.setdefault(prompt, 0))
    seen[prompt] += 1
  first = sorted(range(len(rows)), key=lambda i: (number[i], i))[:limit]
  lines, last = [], None
  for i in sorted(first, key=lambda i: (prompts.index(prompts[i]), i)):
    if prompts[i] != last:
      last = prompts[i]
      lines += ['', *_wrapped(last, 'prompt', width)]
    if before is not None:
      lines += _wrapped(_text(before[i]), 'before', width)
    label = 'sample' if before is None else 'after'
    lines += _wrapped(_text(rows[i]), label, width)
    if reward is not None:
      lines += _wrapped(f'{rows[i][reward]:.4g} ({reward})', 'reward', width)
  return '\n'.join(lines[1:])


def _text(row: dict[str, Any]) -> str:
  return row['text'].strip() + ('' if row['ended'] else '...')


def _wrapped(text: str, label: str, width: int) -> list[str]:
  """The wrapped lines of `text`: a label, later lines indented by its width."""
  lead = f'{label:>8}  '
  lines = []
  for line in text.split('\n'):
    lines += textwrap.wrap(line, width - len(lead)) or ['']
  return [
    f'{lead if not i else " " * len(lead)}{line}'.rstrip()
    for i, line in enumerate(lines)
  ]
