"""What is kept of the study's runs, in results/, which is committed.

results/SCALE/BLOCK has a file for each run of a method: its command, setting
and machine, what it was `judged_by` (hashes of reference, reward and prompts),
CPU seconds of all its attempts, their peak memory, and its points. A point is
an evaluation: the KL and the reward r of each prompt, means over its samples,
and means over all of other scores: the second classifier's logit, VADER's
compound, the share that the first classifier finds positive, length, EOS share,
repetition. `held_out` has the metrics of held-out pairs, where a method has
such. stages.json has the cost and the last held-out metrics of each stage.
"""

import hashlib
import json
import pathlib
from typing import Any

from dpo_jax import assets
from dpo_jax.evals import frontier, samples
from experiments import files, run_results, scheduler
from experiments.imdb import places, sampled
from experiments.imdb.job import Job
from experiments.throughput import machine

RESULTS = pathlib.Path(__file__).parent / 'results'
HELD_OUT = (
  'loss',
  'logps/chosen',
  'logps/rejected',
  'rewards/accuracies',
  'rewards/accuracies_low',
  'rewards/accuracies_high',
)


def path_of(place: places.Place, name: str) -> pathlib.Path:
  """Where a result is kept."""
  return RESULTS / place.scale / str(place.block) / f'{name}.json'


def usage() -> scheduler.Usage:
  """What the study's commands used."""
  return scheduler.Usage(pathlib.Path(places.RUNS, 'usage'))


def keep(job: Job) -> None:
  """Keeps the numbers of a finished run."""
  run = job.leaves.parent
  found = {
    'command': ' '.join(['python', *job.command]),
    'judged_by': judged_by(job.place, job.prompts),
    **usage().read(job.name),
    'machine': machine.describe(),
    'points': points(job.place, run),
    'held_out': held_out(run),
  }
  files.write_json(job.result, found)


def keep_stage(job: Job) -> None:
  """Keeps the cost and the last held-out metrics of a finished stage."""
  path = path_of(job.place, 'stages')
  stages = assets.read_json(path) if path.exists() else {}
  last = held_out(job.leaves.parent)[-1:]
  _, _, stage = job.name.rpartition('/')
  stages[stage] = usage().read(job.name) | {'machine': machine.describe()}
  if last:
    stages[stage]['held_out'] = last[0]
  files.write_json(path, stages, indent=1)


def held_out(run: pathlib.Path) -> list[dict[str, float]]:
  """Each evaluation's metrics of held-out examples; [] where there are none."""
  return run_results.held_out(run, HELD_OUT)


def origin(
  module: str, place: places.Place, path: pathlib.Path
) -> dict[str, Any]:
  """What a file says that a command of this folder writes by itself.

  ValueError as in `check_block`, before the command computes anything.
  """
  here = judged_by(place)
  _check_beside(path, here)
  return {
    'command': machine.command(f'experiments.imdb.{module}'),
    'machine': machine.describe(),
    'judged_by': here,
  }


def judged_by(
  place: places.Place, sampled_at: str = 'evaluate'
) -> dict[str, str]:
  """Hashes of the reference, of the reward, and of a stage's prompts."""
  rows = samples.read(pathlib.Path(place.folder(f'{sampled_at}/pairs.jsonl')))
  prompts = json.dumps([row['prompt'] for row in rows])

  def of_weights(folder):
    return assets.sha256_file(pathlib.Path(folder, 'model.safetensors'))[:16]

  return {
    'reference': of_weights(place.folder('sft/params')),
    'reward': of_weights(place.of_reward('reward/params')),
    'prompts': hashlib.sha256(prompts.encode()).hexdigest()[:16],
  }


def check_block(job: Job) -> None:
  """ValueError if results beside a job's have another reference or reward.

  Processors round differently, so a stage that is built again on another one
  is another stage.
  """
  _check_beside(job.result, judged_by(job.place, job.prompts))


def _check_beside(path: pathlib.Path, here: dict[str, str]) -> None:
  for other in sorted(path.parent.glob('*.json')):
    there = json.loads(other.read_text()).get('judged_by', here)
    if there != here:
      raise ValueError(
        f'{other} was judged by {there}, and what runs/ has now is {here}: '
        'stages that were built again, on another processor or commit. Finish '
        'these results where they were begun, remove them, or take a new block '
        'or, in tuning, another method.'
      )


def points(place: places.Place, run: pathlib.Path) -> list[dict[str, Any]]:
  """The evaluations of a run's directory, in the order of the steps."""
  judged_by = sampled.judges(place)
  out = []
  for path in sorted((run / 'samples').glob('*.jsonl')):
    rows = samples.read(path)
    point = frontier.point(int(path.stem), rows, 'reward_model')
    out.append(
      {
        'step': point.step,
        'kl': point.kl_U.round(sampled.DIGITS).tolist(),
        'reward': point.reward_U.round(sampled.DIGITS).tolist(),
        **sampled.means(judged_by, rows),
      }
    )
  return out


def read(scale: str) -> dict[int, dict[str, dict[str, Any]]]:
  """block -> name -> result, of a scale's final runs.

  ValueError for results of one block that cannot be compared.
  """
  found = {}
  folders = (RESULTS / scale).glob('[0-9]*')
  for folder in sorted(folders, key=lambda f: int(f.name)):
    files = {
      path.stem: json.loads(path.read_text()) for path in folder.glob('*.json')
    }
    by = {}
    for name, result in sorted(files.items()):
      if 'judged_by' in result:
        by.setdefault(json.dumps(result['judged_by']), name)
    if len(by) > 1:
      raise ValueError(
        f'Results in {folder} have other references, rewards or prompts: '
        + ', '.join(f'{name} has {hashes}' for hashes, name in by.items())
        + '. Remove those of an earlier study.'
      )
    runs = {k: v for k, v in sorted(files.items()) if 'points' in v}
    if runs:
      found[int(folder.name)] = runs
  return found
