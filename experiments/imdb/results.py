"""What is kept of a run: every evaluation's KL and scores, a prompt each.

A file of results/SCALE has the run's command, setting and machine, what it was
evaluated with (`judged_by`: hashes of the prompts and of the reward), CPU
seconds of all its attempts, and its points: for each evaluation the KL and the
reward r of each prompt's sample, and means of other scores: the second
classifier's logit, VADER's compound and the share that the first classifier
finds positive, length, EOS share, repetition.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax import assets, rewards
from dpo_jax.evals import samples
from experiments.imdb import pages
from experiments.throughput import machine

RESULTS = pathlib.Path(__file__).parent / 'results'
DIGITS = 4


def path_of(scale: str, name: str) -> pathlib.Path:
  """Where a result is kept."""
  return RESULTS / scale / f'{name}.json'


def add_usage(name: str, cpu_seconds: float) -> None:
  """Adds the CPU seconds of an attempt to those of the job's earlier ones."""
  path = _usage_path(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  total = cpu_seconds + usage(name)
  with assets.atomic_path(path) as temp:
    temp.write_text(json.dumps({'cpu_seconds': total}) + '\n')


def usage(name: str) -> float:
  """The CPU seconds of all attempts at a job; 0 where none is known."""
  path = _usage_path(name)
  return assets.read_json(path)['cpu_seconds'] if path.exists() else 0.0


def _usage_path(name: str) -> pathlib.Path:
  return pathlib.Path(pages.RUNS) / 'usage' / f'{name}.json'


def write(
  path: pathlib.Path, name: str, run: pathlib.Path, command: Sequence[str]
) -> None:
  """Keeps the numbers of a finished run; name: of its job."""
  found = {
    'command': ' '.join(['python', *command]),
    'judged_by': judged_by(run),
    'cpu_seconds': round(usage(name)),
    'machine': machine.describe(),
    'points': points(run),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with assets.atomic_path(path) as temp:
    temp.write_text(json.dumps(found) + '\n')


def judged_by(run: pathlib.Path) -> dict[str, str]:
  """Hashes of the evaluation's prompts and of the reward's weights."""
  (first, *_) = sorted((run / 'samples').glob('*.jsonl'))
  prompts = [row['prompt'] for row in samples.read(first)]
  weights = pathlib.Path(pages.REWARD['model']) / 'model.safetensors'
  return {
    'prompts': hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
    'reward': assets.sha256_file(weights)[:16],
  }


def points(run: pathlib.Path) -> list[dict[str, Any]]:
  """The evaluations of a run's directory, in the order of the steps."""
  others = {
    'labels_2': rewards.build(
      dict(pages.REWARD, model=f'{pages.RUNS}/tiny/labels_2/params')
    ),
    'logit': rewards.build(pages.CLASSIFIER),
    'vader': rewards.build('vader'),
  }
  out = []
  for path in sorted((run / 'samples').glob('*.jsonl')):
    rows = samples.read(path)
    prompts, texts = ([row[x] for row in rows] for x in ('prompt', 'text'))
    scores = {name: fn(prompts, texts) for name, fn in others.items()}
    scores['positive'] = scores.pop('logit') > 0
    of_rows = samples.statistics(rows)
    out.append(
      {
        'step': int(path.stem),
        **{
          name: [round(row[field], DIGITS) for row in rows]
          for name, field in (('kl', 'kl'), ('reward', 'reward_model'))
        },
        **{name: _mean(x) for name, x in scores.items()},
        **{
          name: round(of_rows[f'samples/{name}'], DIGITS)
          for name in ('length', 'ended', 'repetition', 'distinct')
        },
      }
    )
  return out


def _mean(values) -> float:
  return round(float(np.mean(values)), DIGITS)


def read(scale: str) -> dict[str, dict[str, Any]]:
  """name -> result, of a scale; ValueError for results that cannot be compared.

  All must have been evaluated on the same prompts by the same reward.
  """
  found = {
    path.stem: json.loads(path.read_text())
    for path in sorted((RESULTS / scale).glob('*_s[0-9]*.json'))
  }
  by = {}
  for name, result in found.items():
    by.setdefault(json.dumps(result['judged_by']), name)
  if len(by) > 1:
    raise ValueError(
      f'Results of {scale} have other prompts or rewards: '
      + ', '.join(f'{name} has {hashes}' for hashes, name in by.items())
      + '. Remove those of an earlier study.'
    )
  return found
