"""Memory, FLOPs and collectives of a compiled program.

For any backend, including devices that are only simulated. All figures are of
one device and one run of the program.

XLA's own `cost_analysis()` counts the body of a loop once, however often it
runs: a scan over 32 layers costs as much as one layer. So FLOPs are counted in
the traced program, where every scan has a length, and each collective carries
the number of its runs.
"""

import math
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)


class Memory(NamedTuple):
  """Bytes on one device.

  aliased: donated arguments whose memory outputs reuse; counted in both.
  program: the code. host: offloaded to the device's host; not in `total`.
  """

  arguments: int
  outputs: int
  temporaries: int
  aliased: int
  program: int
  host: int

  @property
  def total(self) -> int:
    parts = self.arguments + self.outputs + self.temporaries + self.program
    return parts - self.aliased


class Collective(NamedTuple):
  """One collective of a program, synchronous or asynchronous.

  kind: one of `KINDS`. bytes: of its result on one device. group_size: devices
  in one of its groups. in_loop: whether it is inside a loop. trips: how often
  it runs; None if the length of a loop around it is unknown.
  """

  kind: str
  bytes: int
  group_size: int
  in_loop: bool
  trips: int | None


def compile(lowered) -> tuple[Any, str]:
  """(compiled program, its text for `collectives`).

  The text is a dump of the compiler: `as_text` fails on what libtpu returns for
  some programs for TPU v5p (jaxlib 0.10.2: 'async-update instruction should
  have 1 operands').
  """
  with tempfile.TemporaryDirectory() as folder:
    options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    program = lowered.compile(compiler_options=options)
    texts = pathlib.Path(folder).glob('*after_optimizations.txt')
    # The compiler may dump small programs of its own too.
    text = max(texts, key=lambda path: path.stat().st_size).read_text()
  return program, text


def memory(compiled) -> Memory:
  """The memory that a `jax.stages.Compiled` uses."""
  m = compiled.memory_analysis()
  return Memory(
    arguments=m.argument_size_in_bytes,
    outputs=m.output_size_in_bytes,
    temporaries=m.temp_size_in_bytes,
    aliased=m.alias_size_in_bytes,
    program=m.generated_code_size_in_bytes,
    host=m.host_argument_size_in_bytes
    + m.host_output_size_in_bytes
    + m.host_temp_size_in_bytes
    - m.host_alias_size_in_bytes,
  )


def flops(traced) -> int:
  """FLOPs of the matrix products of a `jax.stages.Traced`, 2 a multiply-add.

  Products that rematerialisation repeats count again. Inside `jax.shard_map`
  those of one device count, outside of it the global ones. The costlier branch
  of a conditional counts. The body of a `while_loop` counts once, as only scans
  have a known length.
  """
  return _flops(traced.jaxpr.jaxpr)


def _flops(jaxpr) -> int:
  return sum(map(_flops_of, jaxpr.eqns))


def _flops_of(eqn) -> int:
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    summed = math.prod(shape[axis] for axis in contracted)
    return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
  inner = [_flops(jaxpr) for jaxpr in _inner(eqn.params)]
  if eqn.primitive.name == 'cond':
    return max(inner)
  times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
  return times * sum(inner)


def _inner(params) -> Iterator:
  """The jaxprs in an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      jaxpr = getattr(item, 'jaxpr', item)
      if hasattr(jaxpr, 'eqns'):
        yield jaxpr


# Parsing of a compiled program's text: computations, each of instructions.


class _Instruction(NamedTuple):
  """`name = type opcode(operands), attributes`; `rest` starts at operands."""

  name: str
  type: str
  opcode: str
  rest: str
  root: bool

  def called(self, attribute: str) -> list[str]:
    """The computations that an attribute names."""
    found = re.search(rf'\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.rest)
    return re.findall(r'[\w.\-]+', found[1]) if found else []


_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$'
)
_CALLS = ('calls', 'to_apply', 'branch_computations', 'true_computation')
_CALLS = (*_CALLS, 'false_computation', 'called_computations')


class _Program(NamedTuple):
  computations: dict[str, list[_Instruction]]
  entry: str
  devices: int


def _parse(text: str) -> _Program:
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif (found := _INSTRUCTION.match(line)) and current is not None:
      root, name, kind, opcode, rest = found.groups()
      current.append(_Instruction(name, kind, opcode, rest, bool(root)))
  header = text.partition('\n')[0]
  counts = re.findall(r'(?:num_partitions|replica_count)=(\d+)', header)
  return _Program(computations, entry, math.prod(map(int, counts)))


def collectives(compiled) -> list[Collective]:
  """All collectives of a `jax.stages.Compiled`, or of its text.

  A collective in a computation that is called several times is listed for each
  call. On TPU one that is spread over several instructions is listed once, and
  XLA's fusion of an all-reduce with a slice of its result is listed as a
  reduce-scatter.
  """
  text = compiled if isinstance(compiled, str) else compiled.as_text()
  program = _parse(text)
  return list(_walk(program, program.entry, False, 1, set()))


def _walk(program, name, in_loop, trips, chains) -> Iterator[Collective]:
  """Collectives of a computation and of those that it calls.

  chains: chain ids of the collectives that were seen in this computation.
  """
  for at in program.computations[name]:
    kind = at.opcode.removesuffix('-start')
    if kind in KINDS:
      if _is_new(at, kind, chains):
        size = _bytes(_result_type(at, kind))
        group = _group_size(at, program.devices)
        yield Collective(kind, size, group, in_loop, trips)
    elif at.opcode == 'while':
      (condition,), (body,) = at.called('condition'), at.called('body')
      count = _trip_count(program, at, condition)
      inside = None if trips is None or count is None else trips * count
      yield from _walk(program, body, True, inside, set())
    elif at.opcode == 'fusion':
      (callee,) = at.called('calls')
      found = list(_walk(program, callee, in_loop, trips, chains))
      if any(map(_slices, program.computations[callee])):
        found = [_scattered(at, c) for c in found]
      yield from found
    else:
      for callee in sorted({c for a in _CALLS for c in at.called(a)}):
        if callee in program.computations and at.opcode != 'reduce':
          yield from _walk(program, callee, in_loop, trips, set())


def _is_new(at: _Instruction, kind: str, chains: set) -> bool:
  """False for a further part of a collective that was seen."""
  chain = re.search(r'chain_id="(\d+)"', at.rest)
  key = (kind, chain and chain[1])
  if chain and key in chains:
    return False
  chains.add(key)
  return True


def _slices(at: _Instruction) -> bool:
  return at.root and at.opcode == 'dynamic-slice'


def _scattered(fusion: _Instruction, found: Collective) -> Collective:
  if found.kind != 'all-reduce':
    return found
  return found._replace(kind='reduce-scatter', bytes=_bytes(fusion.type))


def _trip_count(program, at: _Instruction, condition: str) -> int | None:
  """From the loop's annotation, or its condition `counter < constant`."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', at.rest)
  if known:
    return int(known[1])
  instructions = {i.name: i for i in program.computations[condition]}
  root = next(i for i in instructions.values() if i.root)
  if root.opcode != 'compare' or 'direction=LT' not in root.rest:
    return None
  limit = instructions.get(re.findall(r'[\w.\-]+', root.rest)[1])
  value = limit and limit.opcode == 'constant' and limit.rest.split(')')[0]
  return int(value) if value and value.isdigit() else None


# Types such as f32[4,320]{1,0:T(8,128)}, or tuples of them in parentheses.
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')


def _result_type(at: _Instruction, kind: str) -> str:
  """The type of the result; that of a start may also list its operands."""
  if not at.opcode.endswith('-start') or kind == 'all-reduce':
    return at.type
  parts = _parts(at.type)
  return parts[1] if len(parts) > 1 else at.type


def _parts(kind: str) -> list[str]:
  """The elements of a tuple's type."""
  parts, depth, begin = [], 0, 1
  for i, letter in enumerate(kind):
    depth += (letter in '([{') - (letter in ')]}')
    if (letter == ',' and depth == 1) or (depth == 0 and i == len(kind) - 1):
      parts.append(kind[begin:i])
      begin = i + 1
  return parts if kind.startswith('(') else [kind]


def _bytes(kind: str) -> int:
  total = 0
  for dtype, shape in _ARRAY.findall(kind):
    bits = re.search(r'\d+', dtype)
    bits = int(bits[0]) if bits else {'pred': 8}.get(dtype, 0)
    total += bits * math.prod(int(n) for n in shape.split(',') if n)
  return total // 8


def _group_size(at: _Instruction, devices: int) -> int:
  """The devices in a group, in any of XLA's notations."""
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', at.rest)
  if pairs:
    return len(set(re.findall(r'\d+', pairs[1])))
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', at.rest)
  if listed:
    return len(listed[1].split(','))
  iota = re.search(r'replica_groups=\[\d+,(\d+)\]', at.rest)
  if iota:
    return int(iota[1])
  mesh = re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', at.rest)
  if mesh:
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([\w.]+)'", mesh[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  return devices
