"""What a training step would take on chips that need not be there.

  python -m dpo_jax.plan --config configs/hh_dpo.py --topology v5e:4x4 \
    --preset pythia-2.8b
  python -m dpo_jax.plan --config configs/hh_sft.py --topology v5p
  python -m dpo_jax.plan --config configs/tldr_dpo.py --topology cpu:8

Compiles the very step that training would run with this page, for a batch of
examples of full length, without weights, data or devices: memory of each chip,
FLOPs, what the chips send each other. TPU topologies need `pip install libtpu`.

  --topology  a slice (v5e:2x4, v5p:2x2x1, v6e:4x4), or a family alone (v5e):
              its slices from small to large until one fits; or cpu:N
  --preset    the model's shape, where model.uri is not there yet
"""

import collections
import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import (
  build,
  cli,
  methods,
  models,
  options,
  registry,
  settings,
  types,
  weights,
)
from dpo_jax.data import batches, records, store
from dpo_jax.evals import flops
from dpo_jax.models import parallel, presets, specs
from dpo_jax.training import compiled, devices, optimizers, sharding, topologies
from dpo_jax.training import step as steps_lib


class Plan(NamedTuple):
  """What a step takes. Figures are of one chip, but `parameters`.

  changed: what is not as the page says. state: bytes that stay between steps.
  model_flops: what the batch calls for; flops: what is computed, which remat
  repeats; peak: FLOPs a second by the data sheet, where there is one. memory:
  None if the step doesn't fit, for the reason in `failure`.
  """

  device: str
  chips: int
  mesh: dict[str, int]
  rows: int
  row_tokens: int
  accumulation_steps: int
  changed: tuple[str, ...]
  parameters: int
  state: int
  model_flops: float
  flops: int
  peak: float | None
  memory: compiled.Memory | None
  collectives: tuple[compiled.Collective, ...]
  failure: str | None


class Step(NamedTuple):
  """A train step and what it is called with, as shapes on a mesh.

  model_flops: of all devices.
  """

  call: Any
  state: types.TrainState
  frozen: Any
  batch: types.Batch
  model_flops: float


def find_model(uri: str | None, preset: str | None) -> models.ModelConfig:
  """The shape of the model: `preset`'s, or that of what is at `uri`.

  A name of a hub that ends in a preset's is not looked up there.
  """
  if preset is not None:
    return presets.get(preset)
  if uri is None:
    raise ValueError('Which model? Set --preset or --config.model.uri.')
  name = uri.rpartition('/')[-1]
  if uri.startswith('hf://') and name in presets.PRESETS:
    return presets.get(name)
  try:
    return weights.read_config(uri)
  except (ValueError, OSError) as error:
    raise ValueError(
      f'The shape of model.uri {uri!r} is not known: {error} Where there is no '
      'checkpoint yet, give the shape that it will have as --preset, one of: '
      f'{", ".join(sorted(presets.PRESETS))}.'
    ) from error


def make(
  config: Mapping[str, Any], model: models.ModelConfig, chips: Sequence
) -> Plan:
  """The plan of a page's train step, of a model of this shape, on these chips.

  ValueError for what training would refuse, and for a batch that does not
  divide into the groups of chips that have rows of their own.
  """
  s, changed = settings_for(config, chips)
  build.check_head(model, config['model']['uri'], methods.head(s.method))
  model = dataclasses.replace(model, head=methods.head(s.method))
  step = make_step(s, model)
  traced = step.call.trace(step.state, step.frozen, step.batch)
  rows, row_tokens = step.batch.tokens_RxL.shape
  table = specs.flat_specs(model).values()
  plan = Plan(
    device=chips[0].device_kind,
    chips=len(chips),
    mesh=dict(s.mesh.shape),
    rows=rows,
    row_tokens=row_tokens,
    accumulation_steps=rows // parallel.row_groups(s.mesh),
    changed=tuple(changed),
    parameters=sum(math.prod(spec.shape) for spec in table),
    state=_bytes_of_one((step.state, step.frozen)),
    model_flops=step.model_flops / len(chips),
    flops=compiled.flops(traced),
    peak=_peak(s, chips[0]),
    memory=None,
    collectives=(),
    failure=None,
  )
  if plan.state > topologies.HBM.get(plan.device, math.inf):
    return plan._replace(failure='what stays between steps is more than that')
  try:
    program, text = compiled.compile(traced.lower())
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return plan._replace(failure=reason(str(error)))
  return plan._replace(
    memory=compiled.memory(program),
    collectives=tuple(compiled.collectives(text)),
  )


def _peak(s: settings.TrainSettings, chip) -> float | None:
  if chip.platform == 'cpu':
    return None  # There is no data sheet: it would be measured.
  return devices.peak_flops(chip, dtype=s.model.compute.dtype)[0]


def reason(error: str) -> str:
  """What the compiler says of memory, without its list of buffers."""
  used = re.search(r'Used \S+ of \S+ \w+|temporaries \(.*? \(\S+\)', error)
  return used[0] if used else error.partition('\n')[0]


def settings_for(config: Mapping[str, Any], chips: Sequence):
  """(settings, what was changed) of a page for these chips."""
  methods.refuse_rollouts(config)
  changed, sizes = [], dict(config['mesh'])
  if sizes.pop('devices', None) not in (None, len(chips)):
    changed.append(f'mesh.devices: all {len(chips)} of the topology')
  alone = dict(devices=1)
  if 'offload_optimizer' in sizes:
    alone['offload_optimizer'] = sizes.pop('offload_optimizer')
  mesh = registry.bind(sharding.mesh_of, sizes, 'mesh')(chips)
  groups = parallel.row_groups(mesh)
  batch_size = config['train_batches']['batch_size']
  sharding.rows_per_batch(mesh, batch_size)
  given = config['step'].get('accumulation_steps', 1)
  steps = math.gcd(given, batch_size // groups)
  if steps != given:
    changed.append(
      f'step.accumulation_steps: {steps} instead of {given}, as {batch_size} '
      f'examples are {batch_size // groups} a group of chips'
    )
  # Nothing is sampled, and the mesh is of no devices that this process has.
  here = {**config, 'samples': None, 'mesh': alone}
  here['model'] = {**config['model'], 'uri': config['model']['uri'] or 'none'}
  here['step'] = {**config['step'], 'accumulation_steps': steps}
  s = settings.of(here)._replace(mesh=mesh)
  _ = s.eval_rows  # Refuses held-out batches that the mesh does not divide.
  return s, changed


def make_step(s: settings.TrainSettings, model: models.ModelConfig) -> Step:
  """The train step of a run, as train.py makes it; model: its shape."""
  shapes = jax.eval_shape(lambda: models.init(jax.random.key(0), model))
  params = sharding.with_shardings(shapes, parallel.shardings(s.mesh, model))
  method = methods.build(s.method)(
    models.policy(model, s.model.compute, s.mesh)
  )
  in_step = method.reference in ('in_step', 'drifting')
  reference = params if in_step else None
  # How many steps an epoch has makes no difference to one of them.
  schedule = optimizers.build_schedule(s.schedule, settings.num_steps(s, 10**9))
  optimizer = optimizers.build(s.optimizer, schedule)

  def start(params, reference):
    key = jax.random.key(s.seed)
    return steps_lib.init_state(
      method, optimizer, params, key, reference=reference
    )

  shapes = jax.eval_shape(start, params, reference)
  places = sharding.of_state(
    s.mesh, params, shapes, offload=s.offload_optimizer
  )
  batch = full_batch(s, method)
  rows = NamedSharding(s.mesh, PartitionSpec(parallel.ROWS))
  counts = flops.step_counts(model, reference_in_step=in_step)
  return Step(
    steps_lib.make_train_step(
      method, optimizer, (places, sharding.replicated(s.mesh)), counts, **s.step
    ),
    sharding.with_shardings(shapes, places),
    method.freeze(reference),
    sharding.with_shardings(batch, jax.tree.map(lambda x: rows, batch)),
    flops.training_flops(
      model,
      flops.Counts(*map(float, flops.batch_counts(batch, model.window))),
      reference_in_step=in_step,
    ),
  )


def full_batch(s: settings.TrainSettings, method: types.Method) -> types.Batch:
  """A batch of examples of full length, as the packer makes it."""
  length = s.train_data.get('max_length')
  if length is None:
    raise ValueError('How long are examples? Set train_data.max_length.')
  prompt = s.train_data.get('max_prompt_length') or length // 2
  arity, builder = method.arity, store.Builder()
  examples = (tuple(range(arity)),)
  for i in range(s.train_batches['batch_size']):
    labels, place = (i % 2 == 0,) * arity, ('examples of full length', i + 1)
    record = records.Record('', ('',) * arity, examples, labels, *place)
    builder.add(record, [0] * prompt, [[0] * (length - prompt)] * arity)
  tokens = builder.finish()
  cached = ('reference',) if method.reference == 'cached' else ()
  zeros = np.zeros(len(tokens.tokens), np.float32)
  extras = dict.fromkeys((*method.extras, *cached), zeros)
  tokens = dataclasses.replace(tokens, extras=extras)
  return batches.train_batches(
    tokens, 1, s.train_rows, s.seed, **s.train_batches
  )[0]


def _bytes_of_one(tree) -> int:
  """Bytes that one device holds of arrays with shardings; keys aside."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def show(plan: Plan, topology: str) -> str:
  """The plan as text."""
  sizes = ' x '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
  lines = [
    f'{topology}: {plan.chips} x {plan.device}, mesh {sizes}',
    f'  {plan.parameters / 1e6:,.1f}M parameters; {plan.rows} rows of '
    f'{plan.row_tokens} tokens in {plan.accumulation_steps} accumulation steps',
    *(f'  changed: {change}' for change in plan.changed),
    f'  {_memory(plan)}',
    f'  FLOPs of a step and chip: {plan.model_flops:.3g} of the model, '
    f'{plan.flops:.3g} computed',
  ]
  if plan.peak is not None:
    lines.append(
      f'  at least {plan.flops / plan.peak:.3g} s a step, if all of it ran at '
      f'{plan.peak / 1e12:.0f} TFLOP/s: a bound, not a measurement'
    )
  return '\n'.join([*lines, *(f'  {line}' for line in _sent(plan))])


def _memory(plan: Plan) -> str:
  capacity = topologies.HBM.get(plan.device)
  of = '' if capacity is None else f' of {_gib(capacity)}'
  state = f'{_gib(plan.state)} stay between steps'
  if plan.memory is None:
    return (
      f'does not fit into {_gib(capacity)} a chip: {plan.failure} ({state})'
    )
  m = plan.memory
  return (
    f'{"takes" if capacity is None else "fits:"} {_gib(m.total)}{of} a chip '
    f'({state}; {_gib(m.temporaries)} temporary, {_gib(m.program)} program, '
    f'{_gib(m.host)} on its host)'
  )


def _gib(size: float) -> str:
  return f'{size / 2**30:.2f} GiB'


def _sent(plan: Plan) -> list[str]:
  """A line for each kind of collective and size of group."""
  lines, found = [], collections.defaultdict(list)
  for c in plan.collectives:
    found[c.kind, c.group_size].append(c)
  for (kind, size), group in sorted(found.items()):
    unknown = any(c.trips is None for c in group)
    times = sum(c.trips or 1 for c in group)
    total = sum(c.bytes * (c.trips or 1) for c in group)
    lines.append(
      f'{kind} among {size} chips: {times:,} a step, '
      f'{"at least " if unknown else ""}{_gib(total)}'
    )
  return lines


def main(argv, page):
  if len(argv) > 1:
    sys.exit(f'Flags alone are expected; given: {" ".join(argv[1:])}')
  config, topology = page.config, _TOPOLOGY.value
  # The chips of this host, if it has any, may be at work.
  jax.config.update('jax_platforms', 'cpu')
  family, _, count = topology.partition(':')
  if family == 'cpu' and count.isdigit():
    jax.config.update('jax_num_cpu_devices', int(count))
  model = find_model(config['model']['uri'], _PRESET.value)
  for name in topologies.slices(topology):
    plan = make(config, model, topologies.devices(name))
    print(show(plan, name), flush=True)
    if plan.failure is None:
      return
  sys.exit(1)


if __name__ == '__main__':
  _TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'A slice, a family of slices, or cpu:N.'
  )
  _PRESET = flags.DEFINE_string(
    'preset', None, "The model's shape; default: that of model.uri."
  )
  flags.mark_flag_as_required('topology')
  cli.run(main, options.TRAINING)
