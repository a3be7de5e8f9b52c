"""The numbers of an evaluation, with intervals, as a dict and as a table."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.evals import calibration, likelihood
from dpo_jax.methods import completions
from dpo_jax.training import metrics as metrics_lib

# Completions of an example by name, for a method's first kind of examples.
# A ranking is told by its best one.
NAMES = {
  'pairs': ('chosen', 'rejected'),
  'targeted': ('chosen', 'rejected'),
  'ranking': ('best',),
}
# Metrics of an objective that are also wanted example by example.
REWARDS = {'rewards/accuracies': 'accuracy', 'rewards/margins': 'margin'}
# How they are shown.
FORMATS = {'accuracy': '{:.3f}', 'margin': '{:+.3f}', 'reward': '{:+.3f}'}


def by_example(method: types.Method, scores, batch, aux):
  """Arrays with a value for each place for an example, [R, E, ...].

  'weight': 0 for padding; 'tokens' and, where the method has them, 'logps' or
  'rewards', [R, E, K], of each completion; the names of `REWARDS`, where the
  objective has them.
  """

  def sums(weight_RxE):
    weighted = batch.replace(example_weight_RxE=weight_RxE)
    _, _, metrics = method.objective(scores, weighted, aux)
    return {REWARDS[k]: metrics[k][0] for k in REWARDS if k in metrics}

  weight_RxE = jnp.asarray(batch.example_weight_RxE)
  # Sums over examples are linear in their weights: an example's share is the
  # derivative, whatever the objective calls a reward.
  compares = jax.eval_shape(sums, weight_RxE)
  rewards = jax.jacrev(sums)(weight_RxE) if compares else {}
  out = {'weight': weight_RxE, 'tokens': completions.lengths(batch), **rewards}
  if 'logps' in scores:
    out['logps'] = completions.sums(scores['logps'], batch)
  if 'rewards' in scores:
    out['rewards'] = completions.of_slots(scores['rewards'], batch)
  return out


def statistics(
  method: types.Method, total: types.Metrics, rows: Mapping[str, Any]
) -> dict[str, Any]:
  """The numbers of an evaluation.

  total: sums of the metrics. rows: arrays of `by_example`, one value an
  example.
  """
  kind = (method.kinds or ('',))[0]
  names = NAMES.get(kind, ('completion',))
  found = {name: rows[name] for name in REWARDS.values() if name in rows}
  out = {
    # As training logs them.
    'metrics': {
      **metrics_lib.means(total, prefix='eval/'),
      **metrics_lib.intervals(total, prefix='eval/'),
    },
  }
  if 'logps' in rows:
    out['perplexity'] = {
      name: likelihood.perplexity(rows['logps'][:, i], rows['tokens'][:, i])
      for i, name in enumerate(names)
    }
  if 'accuracy' in found:
    out['accuracy'] = likelihood.share(found['accuracy'])
  if 'margin' in found:
    out['margin'] = likelihood.mean(found['margin'])
  if 'rewards' in rows:
    out['reward'] = likelihood.mean(rows['rewards'].reshape(-1))
    if 'margin' in found:
      out['calibration'] = calibration.statistics(found['margin'])
  if found:
    tokens = rows['tokens']
    out['by_length'] = {names[0]: likelihood.by_length(found, tokens[:, 0])}
    if len(names) > 1:
      out['by_length'][f'{names[0]} - {names[1]}'] = likelihood.by_length(
        found, tokens[:, 0] - tokens[:, 1]
      )
  return out


def show(report: Mapping[str, Any]) -> str:
  """The report as a table."""
  rows = [(n, n, report[n]) for n in FORMATS if n in report]
  rows += [
    ('perplexity', f'perplexity, {name}', x)
    for name, x in report.get('perplexity', {}).items()
  ]
  lines = [
    f'model      {report["model"]}',
    f'reference  {report["reference"] or "none"}',
    f'examples   {report["examples"]} of kind {report["kind"]!r}',
    '',
    f'{"loss":35}{report["metrics"]["eval/loss"]:>9.4f}',
    *(f'{title:35}{_cell(name, x)}' for name, title, x in rows),
    *_calibration(report.get('calibration')),
  ]
  for title, bins in report.get('by_length', {}).items():
    names = [name for name in FORMATS if name in bins[0]]
    head = ''.join(f'{name:>9}{"95 % interval":>19}' for name in names)
    lines += ['', f'{"tokens, " + title:27}{"examples":>8}{head}']
    for row in bins:
      span = f'{row["from"]} to {row["to"]}'
      cells = ''.join(_cell(name, row[name]) for name in names)
      lines.append(f'{span:27}{row["examples"]:8}{cells}')
  return '\n'.join(lines)


def _calibration(found: Mapping[str, Any] | None) -> list[str]:
  """Lines of ties, error and reliability; [] without a calibration."""
  if found is None:
    return []
  lines = [
    f'{"ties":35}{_cell("accuracy", found["ties"])}',
    f'{"calibration error":35}{found["ece"]:>9.3f}',
    '',
    f'{"confidence":27}{"examples":>8}{"mean":>9}{"right":>9}'
    f'{"95 % interval":>19}',
  ]
  for row in found['bins']:
    span = f'{row["from"]:.1f} to {row["to"]:.1f}'
    lines.append(
      f'{span:27}{row["examples"]:8}{row["confidence"]:9.3f}'
      f'{_cell("accuracy", row["accuracy"])}'
    )
  return lines


def _cell(name: str, x: Mapping[str, float]) -> str:
  form = FORMATS.get(name, '{:.2f}').format
  interval = f'{form(x["low"])} to {form(x["high"])}'
  return f'{form(x["mean"]):>9}{interval:>19}'


def to_json(value: Any) -> Any:
  """The report with NaN and infinities as null, which JSON has."""
  if isinstance(value, Mapping):
    return {name: to_json(x) for name, x in value.items()}
  if isinstance(value, list):
    return [to_json(x) for x in value]
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value
