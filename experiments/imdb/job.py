"""A command of the sentiment study, what it needs and what it leaves."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import scheduler
from experiments.imdb import places

PAGE = 'experiments/imdb/pages.py'


@dataclasses.dataclass(frozen=True)
class Job(scheduler.Job):
  """place: the block that its numbers are kept for; None where it has none.

  prompts: the stage whose prompts it samples.
  """

  place: places.Place | None = None
  prompts: str = 'evaluate'


def name_of(place: places.Place, run: str) -> str:
  """Of the job of a block's run."""
  return f'{place.scale}/{place.block}/{run}'


def of_reward(place: places.Place, run: str) -> str:
  """Of the job that makes a part of the block's reward."""
  return name_of(places.Place('tiny', place.block), run)


def module(name: str, **flags) -> list[str]:
  """The command of a file of this folder; flags that are None are left out."""
  command = ['-m', f'experiments.imdb.{name}']
  return command + [f'--{k}={v}' for k, v in flags.items() if v is not None]


def trained(
  place: places.Place,
  stage: str,
  needs: Iterable[str],
  *,
  run: str | None = None,
  changes: Mapping[str, Any] | None = None,
  result: pathlib.Path | None = None,
  prompts: str = 'evaluate',
) -> Job:
  """A run of `dpo_jax.train` of a page's stage; run: its name, if another."""
  folder = place.folder(run or stage)
  command = ['-m', 'dpo_jax.train', f'--config={PAGE}:{name_of(place, stage)}']
  command.append(f'--workdir={folder}')
  command += [f'--config.{k}={v}' for k, v in (changes or {}).items()]
  return Job(
    name_of(place, run or stage),
    command,
    pathlib.Path(folder, 'params'),
    tuple(needs),
    result,
    place,
    prompts,
  )


def completed(place: places.Place, stage: str, needs: Iterable[str]) -> Job:
  """A run of `dpo_jax.pairs` of a page's stage."""
  folder = place.folder(stage)
  command = ['-m', 'dpo_jax.pairs', f'--config={PAGE}:{name_of(place, stage)}']
  command.append(f'--workdir={folder}')
  leaves = pathlib.Path(folder, 'pairs.jsonl')
  name = name_of(place, stage)
  return Job(name, command, leaves, tuple(needs), place=place)


def labelled(
  place: places.Place, run: str, file: str, *, of: str = 'pairs', **flags
) -> Job:
  """A file of labels.py beside the completions that the run `of` sampled."""
  return Job(
    name_of(place, run),
    module('labels', scale=place.scale, block=place.block, of=of, **flags),
    pathlib.Path(place.folder(f'{of}/{file}.jsonl')),
    (of_reward(place, 'reward'), name_of(place, of)),
  )


def judged(
  place: places.Place, stages: Iterable[str] = (), prompts: str = 'evaluate'
) -> list[str]:
  """What a run with a result needs: its stages, and all that judges it."""
  own = [prompts, *stages]
  return [
    *(name_of(place, stage) for stage in own),
    of_reward(place, 'reward'),
    of_reward(place, 'labels_2'),
  ]
