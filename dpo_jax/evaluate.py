"""Evaluate a model on held-out data: likelihood and implicit rewards.

  python -m dpo_jax.evaluate runs/quickstart
  python -m dpo_jax.evaluate runs/quickstart --checkpoint=10 --out=eval.json
  python -m dpo_jax.evaluate --config=configs/quickstart.py --model=hf://OWNER/NAME

The first evaluates what a run trained, as its own config says: the examples of
eval_data, the method with its beta, and its reference. --config names a page in
its place, --model another model.

  --model        a run's directory, or weights: a folder in Hugging Face layout,
                 a .gguf file, or a URI
  --checkpoint   which parameters of a run: params (those it ended with),
                 latest, best (by checkpoints.best) or a step; default: params,
                 or latest where the run has not ended
  --reference    weights to compare with, of the model's architecture; default:
                 model.reference of the config, or the model.uri that training
                 starts from
  --mesh         sizes such as data=2,fsdp=4 of a mesh (docs/mesh.md); default:
                 the config's. Where no such mesh is to be had from the devices
                 here, a run that was trained on others takes data=-1: whole
                 weights on each
  --out          write all numbers to this .json

The numbers do not depend on the mesh. Of many processes all run the same
command; each evaluates its rows, and the first prints and writes.

Printed are the loss and, with 95 % intervals: per token, the perplexity of
completions (of chosen and of rejected ones, of the best one of a ranking); how
often the implicit reward (Eq. 5 of arXiv:2305.18290, or the objective's own) of
the chosen completion is larger, and by how much; both by the length of the
chosen completion, and by how much longer it is than the rejected one, in bins
of about equally many examples.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags, logging
from ml_collections import config_flags

from dpo_jax import (
  assets,
  models,
  registry,
  settings,
  tokenizers,
  types,
)
from dpo_jax import parts as parts_lib
from dpo_jax.data import batches
from dpo_jax.evals import likelihood, subjects
from dpo_jax.methods import completions, reference
from dpo_jax.training import (
  checkpoints,
  inputs,
  processes,
  sharding,
  workdir,
)
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import step as steps_lib

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
FORMATS = {'accuracy': '{:.3f}', 'margin': '{:+.3f}'}


def evaluate(run: settings.Run, subject: subjects.Subject) -> dict[str, Any]:
  """All numbers, ready for JSON; ValueError for parts that do not fit."""
  tokenizer = tokenizers.load(run.model.tokenizer_uri)
  held_out = parts_lib.load_data('eval_data', run.eval_data, tokenizer)
  if processes.many():
    found = inputs.of_data(
      run.model.tokenizer_uri, tokenizer, eval_data=held_out
    )
    inputs.agree('data', found)
  parts_lib.agree_on_weights(run.model)
  config, params = parts_lib.load_params(run, run.model.uri)
  parts_lib.check_tokenizer(tokenizer, config)
  policy = models.policy(config, run.model.compute, run.mesh)
  method = run.make_method(policy)
  parts_lib.check_fits('eval_data', held_out, method, config)
  score = steps_lib.make_score(method)

  start = _reference(run, subject, method, config, params)
  packed = _prepare(run, method, held_out, start, score)
  frozen, aux = method.freeze(start), method.init_aux(start)
  if subject.checkpoints is not None:
    params, aux = _restored(run, subject, params, aux)
  del start
  total, rows = _score_all(run, method, score, params, frozen, aux, packed)
  compares = method.reference != 'none'
  return {
    'model': subject.name,
    'reference': run.model.reference_uri if compares else None,
    'examples': len(rows['tokens']),
    'kind': held_out.kind,
    **_statistics(method, total, rows),
  }


def _reference(run, subject, method, config, params):
  """The parameters on the mesh that the method compares with, if any."""
  if method.reference == 'none':
    if subject.compared:
      raise ValueError(
        f'--reference is {run.model.reference_uri!r}, but the method of the '
        'config has no reference.'
      )
    return None
  if run.model.reference_uri != run.model.uri:
    params = parts_lib.load_reference(run, config)
  return params


def _restored(run, subject, params, aux):
  """(parameters, aux) of a checkpoint, which begins as `params`.

  aux is the checkpoint's where its run had this config, else the given one.
  """
  own = aux if subject.own_config else None
  like = types.TrainState(None, params, None, own, None)
  like = sharding.placed(like, sharding.like_params(run.mesh, params, like))
  options = dict(best=subject.best, best_mode=subject.best_mode)
  with checkpoints.open(subject.checkpoints, keep=1, **options) as saved:
    _, state = saved.read(subject.which, like)
  return state.params, state.aux if subject.own_config else aux


def _prepare(run, method, held_out, start, score):
  """Packed held-out batches, with reference log-probabilities if cached."""
  (packed,) = run.pack_eval(held_out, run.eval_rows)
  packed = packed.of_rows(sharding.local_rows(run.mesh, packed.placement.rows))
  if method.reference != 'cached':
    return packed
  key = jax.random.key(run.seed)
  return reference.score_batches(
    packed,
    lambda batch: score(start, types.Frozen(), batch, key)['logps'],
    run.mesh,
  )


def _score_all(run, method, score, params, frozen, aux, packed):
  """(sums of the metrics, rows): rows are arrays with one value an example.

  'tokens' and, where the method has them, 'logps', [P, K], of each completion;
  the names of `REWARDS`.
  """
  objective = jax.jit(method.objective)
  examples = jax.jit(lambda *args: _examples(method, *args))
  key, total, rows = jax.random.key(run.seed), None, []
  for batch in tqdm.tqdm(
    batches.iterate(packed),
    'evaluating',
    len(packed),
    leave=False,
    disable=not processes.first(),
  ):
    real = processes.all_rows(run.mesh, batch.example_weight_RxE) > 0
    batch = sharding.shard_rows(run.mesh, batch)
    batch = steps_lib.annotated(method, score, frozen, aux, batch, key)
    scores = score(params, frozen, batch, key)
    loss_sum, count, metrics = objective(scores, batch, aux)
    total = metrics_lib.add(total, {'loss': (loss_sum, count), **metrics})
    found = examples(scores, batch, aux)
    rows.append({k: processes.host(x)[real] for k, x in found.items()})
  return total, {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


def _examples(method: types.Method, scores, batch, aux):
  """What `_score_all` gathers, of each place for an example."""

  def sums(weight_RxE):
    weighted = batch.replace(example_weight_RxE=weight_RxE)
    _, _, metrics = method.objective(scores, weighted, aux)
    return {REWARDS[k]: metrics[k][0] for k in REWARDS if k in metrics}

  weight_RxE = jnp.asarray(batch.example_weight_RxE)
  # Sums over examples are linear in their weights: an example's share is the
  # derivative, whatever the objective calls a reward.
  compares = jax.eval_shape(sums, weight_RxE)
  rewards = jax.jacrev(sums)(weight_RxE) if compares else {}
  logps = {}
  if 'logps' in scores:
    logps = {'logps': completions.sums(scores['logps'], batch)}
  return {'tokens': completions.lengths(batch), **logps, **rewards}


def _statistics(method: types.Method, total, rows) -> dict[str, Any]:
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


def _cell(name: str, x: Mapping[str, float]) -> str:
  form = FORMATS.get(name, '{:.2f}').format
  interval = f'{form(x["low"])} to {form(x["high"])}'
  return f'{form(x["mean"]):>9}{interval:>19}'


def _clean(value: Any) -> Any:
  """NaN and infinities as null, which JSON has."""
  if isinstance(value, Mapping):
    return {name: _clean(x) for name, x in value.items()}
  if isinstance(value, list):
    return [_clean(x) for x in value]
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def main(argv):
  if len(argv) > 2:
    sys.exit(f"One run's directory is expected; given: {' '.join(argv[1:])}")
  try:
    out = _OUT.value and assets.local_path(_OUT.value, '--out')
    config, subject = subjects.choose(
      run_dir=argv[1] if len(argv) == 2 else None,
      config=_CONFIG.value and _CONFIG.value.to_dict(),
      model=_MODEL.value,
      reference=_REFERENCE.value,
      checkpoint=_CHECKPOINT.value,
    )
    run_dir = argv[1] if len(argv) == 2 else _MODEL.value
    _run(config, subject, out, pathlib.Path(run_dir))
  except (ValueError, FileNotFoundError) as error:
    sys.exit(str(error))


def _run(
  config: dict[str, Any],
  subject: subjects.Subject,
  out: pathlib.Path | None,
  run_dir: pathlib.Path,
) -> None:
  """Evaluates, prints and writes; in the first process, of many.

  Repositories of the hub are read as the run of `run_dir` did, if it is one.
  """
  own = _CONFIG.value is None
  # Where a run was trained is not where this runs.
  distributed = {} if own else config.get('distributed') or {}
  registry.bind(processes.start, distributed, 'distributed')()
  with processes.together():
    config = subjects.on_mesh(config, _MESH.value, own=own)
    processes.agree('config', workdir.lines(config))
    processes.agree('versions and devices', processes.described())
    run = registry.bind(settings.check, config, 'the config')()
    assets.check_cache()
    with inputs.of_run(run_dir):
      report = evaluate(run, subject)
    if not processes.first():
      return
    print(show(report))
    if out is not None:
      with assets.atomic_path(out) as temp:
        text = json.dumps(_clean(report), indent=2) + '\n'
        temp.write_text(text, 'utf-8')


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  _CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A config page, such as configs/quickstart.py.'
  )
  _MODEL = flags.DEFINE_string('model', None, "A run's directory, or weights.")
  _REFERENCE = flags.DEFINE_string('reference', None, 'Weights to compare to.')
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Of a run: params, latest, best or a step.'
  )
  _MESH = flags.DEFINE_string('mesh', None, 'Sizes, such as data=2,fsdp=4.')
  _OUT = flags.DEFINE_string('out', None, 'Write the numbers to this .json.')
  app.run(main)
