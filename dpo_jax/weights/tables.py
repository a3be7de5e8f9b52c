"""What a family's table is made of.

A family of checkpoints is described by data: which field of its config file is
which field of ours, and which tensor is which of our leaves, transformed how.
To add one, write its tables in a file of its own and list it in families.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpo_jax import registry
from dpo_jax.models import config as model_config

REQUIRED = object()

# theirs -> ours; where several of theirs mean the same, the first is written.
ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu': 'gelu',
  'relu': 'relu',
}


class Field(NamedTuple):
  """A field of a checkpoint's config that one of ours is read from.

  default: what its own reader assumes where the file is silent.
  values: theirs -> ours, if they differ.
  """

  name: str
  default: Any = REQUIRED
  values: dict[Any, Any] | None = None

  def read(self, values: dict[str, Any]) -> Any:
    """Our value; ValueError if theirs is absent or unknown."""
    value = values.get(self.name, self.default)
    if value is REQUIRED:
      raise ValueError(
        f'The config has no {self.name!r}.'
        f'{registry.closest(self.name, values)} It has: {", ".join(values)}.'
      )
    if self.values is None:
      return value
    for theirs, ours in self.values.items():  # They may be booleans.
      if theirs == value:
        return ours
    raise registry.unknown(self.name, value, [str(v) for v in self.values])

  def write(self, value: Any) -> Any:
    """Their value for ours; ValueError if they have none."""
    if self.values is None:
      return value
    for theirs, ours in self.values.items():
      if ours == value:
        return theirs
    raise ValueError(f'{self.name} has no value for {value!r}')


class Op(NamedTuple):
  """How one stored tensor holds one or more of our leaves (of one layer).

  read(tensor, config) -> leaves; write(config, *leaves) -> tensor (None: only
  read); shape(*shapes of the leaves) -> shape of the tensor.
  """

  read: Callable[..., tuple[np.ndarray, ...]]
  write: Callable[..., np.ndarray] | None
  shape: Callable[..., tuple[int, ...]]


COPY = Op(lambda x, _: (x,), lambda _, x: x, lambda s: s)
TRANSPOSE = Op(lambda x, _: (x.T,), lambda _, x: x.T, lambda s: s[::-1])


class Rule(NamedTuple):
  """A stored tensor and our leaves in it.

  theirs: its name, '{i}' for the layer. ours: paths into the parameter tree.
  A rule whose leaves the config has not is left out.
  """

  theirs: str
  ours: tuple[str, ...]
  op: Op = COPY


class Source(Protocol):
  """Stored tensors, read one by one."""

  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray:
    """The tensor `name`, in any float dtype, row-major."""

  def same(self, a: str, b: str) -> bool:
    """Whether two tensors hold the same values; neither is held whole."""


class Layout(NamedTuple):
  """One way in which a family is stored.

  fields: our config field -> theirs. also: other fields that `complete` reads.
  section: the field of the config file that holds all these; '' for none.
  rules: tensor names. prefix: what base-model checkpoints leave off the names.
  ignored: regular expressions of tensors that are no parameters.
  complete(fields read so far, config file, source) -> ModelConfig arguments.
  extra(config) -> further fields of the config file (None: only read).
  """

  fields: dict[str, Field]
  rules: tuple[Rule, ...]
  complete: Callable[[dict, dict, Source | None], dict]
  extra: Callable[[model_config.ModelConfig], dict] | None = None
  prefix: str = ''
  ignored: tuple[str, ...] = ()
  also: tuple[str, ...] = ()
  section: str = ''


class Family(NamedTuple):
  """A name, the class that has it in `transformers`, its layouts.

  hf: of folders with this model_type in config.json. gguf: of files with this
  general.architecture. None where the name means nothing there.
  """

  name: str
  architecture: str
  hf: Layout | None = None
  gguf: Layout | None = None


def read_config(
  layout: Layout, values: dict[str, Any], source: Source | None = None
) -> model_config.ModelConfig:
  """The ModelConfig that `values` (a config file's fields) describe."""
  if layout.section:
    values = Field(layout.section).read(values)
  require(values, {'quantization_config': (None,)})
  fields = {ours: field.read(values) for ours, field in layout.fields.items()}
  for ours, field in layout.fields.items():
    absent = fields[ours] is None and field.default is None
    if field.values is None and not absent:
      model_config.check(ours, fields[ours], field.name)
  return model_config.ModelConfig(**layout.complete(fields, values, source))


def write_config(
  layout: Layout, config: model_config.ModelConfig
) -> dict[str, Any]:
  """Inverts `read_config` where the layout can express `config`."""
  values = {
    field.name: field.write(getattr(config, ours))
    for ours, field in layout.fields.items()
  }
  return values | layout.extra(config)


def bind(layout: Layout, config: model_config.ModelConfig) -> Layout:
  """The layout with ops whose `write` takes the leaves of `config` alone."""

  def bound(rule):
    write = rule.op.write and functools.partial(rule.op.write, config)
    return rule._replace(op=rule.op._replace(write=write))

  return layout._replace(rules=tuple(map(bound, layout.rules)))


def rules_of(
  names: dict[str, str], ops: dict[str, Op], default: Op = TRANSPOSE
) -> tuple[Rule, ...]:
  """Rules of modules with a weight and maybe a bias.

  names: our module -> theirs. ops: our leaf -> its op; other kernels take
  `default`, other norms and biases are copied.
  """
  rules = []
  for ours, theirs in names.items():
    weight = 'scale' if 'norm' in ours else 'kernel'
    for part, leaf in (('weight', weight), ('bias', 'bias')):
      path = f'{ours}/{leaf}'
      op = ops.get(path, default if leaf == 'kernel' else COPY)
      rules.append(Rule(f'{theirs}.{part}', (path,), op))
  return tuple(rules)


def require(values: dict[str, Any], supported: dict[str, tuple]):
  """Raises ValueError for a present field with a value not in `supported`."""
  for name, known in supported.items():
    if name in values and values[name] not in known:
      raise ValueError(
        f'{name} = {values[name]!r} is not supported; supported: '
        f'{", ".join(map(repr, known))}.'
      )
