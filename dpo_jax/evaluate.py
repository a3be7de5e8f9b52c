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
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from dpo_jax import (
  assets,
  build,
  cli,
  methods,
  models,
  options,
  registry,
  run_dir,
  settings,
  tokenizers,
  types,
)
from dpo_jax.data import batches, row_sharding
from dpo_jax.evals import report as report_lib
from dpo_jax.methods import reference as reference_lib
from dpo_jax.training import launch, loop, processes, run_inputs, sharding
from dpo_jax.training import step as steps_lib


class Subject(NamedTuple):
  """A model beside the config that evaluates it; model.uri is its start.

  saved: parameters of a run, where they are a checkpoint of a model that began
  as model.uri; None for the weights at model.uri themselves. own_config:
  whether the config is that of the run. compared: whether the reference is not
  the config's.
  """

  name: str
  saved: run_dir.Saved | None = None
  own_config: bool = False
  compared: bool = False


def choose(
  *,
  run: str | None,
  config: Mapping[str, Any] | None,
  model: str | None,
  reference: str | None,
  checkpoint: str | None,
) -> tuple[dict[str, Any], Subject]:
  """(config, subject) from what a command line gives; None is not given.

  ValueError for too little, or for what does not go together.
  """
  found = None
  if run is not None:
    assets.local_path(run, "The run's directory")
    found = run_dir.find(run)
    if found is None:
      raise ValueError(
        f'{run!r} is no directory of a run: expected config.json, and params '
        'or checkpoints. For weights give --config and --model.'
      )
  elif config is None or model is None:
    raise ValueError("Give a run's directory, or --config and --model.")
  own_config = config is None and model in (None, run)
  model = model or run
  # What a run samples, and what scores it, is no part of its evaluation.
  config = {**(config or found.config), 'samples': None}
  section = dict(config['model'])
  start = section['uri'] or model
  section['reference'] = reference or section.get('reference') or start
  trained = run_dir.find(model)
  if trained is None:
    if checkpoint is not None:
      raise ValueError(
        f'--checkpoint is of a run, and {model!r} is no directory of one.'
      )
    section['uri'] = model
    section['tokenizer'] = section.get('tokenizer') or model
    subject = Subject(model)
  else:
    saved = trained.choose(checkpoint)
    section['uri'] = trained.start_uri
    section['tokenizer'] = section.get('tokenizer') or trained.tokenizer_uri
    subject = Subject(f'{model}, checkpoint {saved.checkpoint}', saved)
    if saved.is_params:
      section['uri'] = saved.uri
      subject = Subject(saved.uri)
    subject = subject._replace(own_config=own_config)
  subject = subject._replace(compared=reference is not None)
  return {**config, 'model': section}, subject


def on_mesh(
  config: Mapping[str, Any], given: str | None, *, own: bool
) -> dict[str, Any]:
  """The config with a mesh of the devices that are here.

  given: sizes such as 'data=2,fsdp=4', None for those of the config. own:
  whether that is of a run that may have been trained on other devices; where
  its sizes do not fit these, all get whole weights.
  """
  mesh = config['mesh'] if given is None else _sizes(given)
  if given is None and own:
    options = registry.options_of(sharding.make_mesh)
    mesh = {name: x for name, x in mesh.items() if name in options}
    try:
      sharding.make_mesh(**mesh)
    except ValueError as error:
      logging.warning('%s Evaluating with data=-1; see --mesh.', error)
      mesh = dict(data=-1)
  return {**config, 'mesh': mesh}


def _sizes(text: str) -> dict[str, int]:
  sizes = {}
  for part in text.split(','):
    name, _, size = part.partition('=')
    try:
      sizes[name] = int(size)
    except ValueError as error:
      raise ValueError(
        f'--mesh is {text!r}; expected sizes such as data=2,fsdp=4.'
      ) from error
  return sizes


def evaluate(s: settings.TrainSettings, subject: Subject) -> dict[str, Any]:
  """All numbers, ready for JSON; ValueError for parts that do not match."""
  tokenizer = tokenizers.load(s.model.tokenizer_uri)
  held_out = build.load_section('eval_data', s.eval_data, tokenizer)
  run_inputs.agree_on_data(s.model.tokenizer_uri, tokenizer, eval_data=held_out)
  run_inputs.agree_on_weights(s.model.uri, s.model.reference_uri)
  config, params = build.load_model(
    s.mesh, s.model.uri, head=methods.head(s.method), seed=s.seed
  )
  policy = models.policy(config, s.model.compute, s.mesh)
  method = methods.build(s.method)(policy)
  build.check_tokenizer(tokenizer, config)
  build.check_records('eval_data', held_out, method, config)
  score = steps_lib.make_score(method)

  start = _reference(s, subject, method, config, params)
  (packed,) = batches.eval_batches(held_out, s.eval_rows, **s.eval_batches)
  key = jax.random.key(s.seed)
  if method.reference == 'cached':
    packed = _scored(packed, score, start, key, s.mesh)
  frozen, aux = method.freeze(start), method.init_aux(start)
  if subject.saved is not None:
    params, aux = _restored(s, subject, params, aux)
  del start
  total, found = loop.evaluate(
    steps_lib.make_eval_step(
      method, score, lambda *args: report_lib.by_example(method, *args)
    ),
    types.TrainState(None, params, None, aux, key),
    frozen,
    batches.iterate(packed, s.mesh),
    num_batches=len(packed),
  )
  rows = _rows(found)
  del total['examples']
  compares = method.reference != 'none'
  return {
    'model': subject.name,
    'reference': s.model.reference_uri if compares else None,
    'examples': len(rows['tokens']),
    'kind': held_out.kind,
    **report_lib.statistics(method, total, rows),
  }


def _reference(s, subject, method, config, params):
  """The parameters on the mesh that the method compares with, if any."""
  if method.reference == 'none':
    if subject.compared:
      raise ValueError(
        f'--reference is {s.model.reference_uri!r}, but the method of the '
        'config has no reference.'
      )
    return None
  if s.model.reference_uri != s.model.uri:
    params = build.load_reference(s, config)
  return params


def _scored(packed, score, start, key, mesh) -> batches.PackedBatches:
  """The batches with the log-probabilities of the reference `start`."""
  return reference_lib.score_batches(
    packed,
    lambda batch: score(start, types.Frozen(), batch, key)['logps'],
    mesh,
  )


def _restored(s, subject, params, aux):
  """(parameters, aux) of a checkpoint, which begins as `params`.

  aux is the checkpoint's where its run had this config, else the given one.
  """
  own = aux if subject.own_config else None
  like = types.TrainState(None, params, None, own, None)
  like = sharding.with_shardings(
    like, sharding.shardings_like(s.mesh, params, like)
  )
  _, state = subject.saved.read(like)
  return state.params, state.aux if subject.own_config else aux


def _rows(found: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
  """What `by_example` gave of all batches, one value a real example."""
  batches_of = [
    {name: row_sharding.to_host(x) for name, x in arrays.items()}
    for arrays in found
  ]
  return {
    name: np.concatenate([x[name][x['weight'] > 0] for x in batches_of])
    for name in batches_of[0]
  }


def main(argv, page):
  if len(argv) > 2:
    sys.exit(f"One run's directory is expected; given: {' '.join(argv[1:])}")
  out = _OUT.value and assets.local_path(_OUT.value, '--out')
  config, subject = choose(
    run=argv[1] if len(argv) == 2 else None,
    config=page and page.config,
    model=_MODEL.value,
    reference=_REFERENCE.value,
    checkpoint=_CHECKPOINT.value,
  )
  folder = argv[1] if len(argv) == 2 else _MODEL.value
  _evaluate(
    config, subject, out, pathlib.Path(folder).expanduser(), own=page is None
  )


def _evaluate(
  config: dict[str, Any],
  subject: Subject,
  out: pathlib.Path | None,
  folder: pathlib.Path,
  *,
  own: bool,
) -> None:
  """Evaluates, prints and writes; in the first process, of many.

  Repositories of the hub are read as the run in `folder` did, if it is one.
  own: whether the config is that run's.
  """
  # Where a run was trained is not where this runs.
  distributed = {} if own else config.get('distributed') or {}
  with launch.joined(distributed):
    config = on_mesh(config, _MESH.value, own=own)
    launch.check_same(config)
    s = settings.of(config)
    assets.check_cache()
    with run_inputs.of_run(folder):
      report = evaluate(s, subject)
    if not processes.first():
      return
    print(report_lib.show(report))
    if out is not None:
      with assets.atomic_path(out) as temp:
        text = json.dumps(report_lib.to_json(report), indent=2) + '\n'
        temp.write_text(text, 'utf-8')


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  _MODEL = flags.DEFINE_string('model', None, "A run's directory, or weights.")
  _REFERENCE = flags.DEFINE_string('reference', None, 'Weights to compare to.')
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Of a run: params, latest, best or a step.'
  )
  _MESH = flags.DEFINE_string('mesh', None, 'Sizes, such as data=2,fsdp=4.')
  _OUT = flags.DEFINE_string('out', None, 'Write the numbers to this .json.')
  cli.run(main, options.TRAINING, optional=True)
