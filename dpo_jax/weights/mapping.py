"""Types that map a checkpoint's config fields and tensors to this project's.

A family of checkpoints is described by tables: which field of its config file
sets which field of `ModelConfig`, which stored tensor holds which leaves of the
parameter tree, and how the tensor is transformed. To add a family, write its
tables in a file of its own and list it in families.py.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpo_jax import registry
from dpo_jax.models import config as model_config

REQUIRED = object()

# Name in config files -> our name. Of several synonyms the first is written.
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
  """A field of a checkpoint's config file that sets one of `ModelConfig`.

  default: the value that `transformers` or llama.cpp assumes where the file
  lacks the field. values: value in the file -> our value; None: they are equal.
  """

  name: str
  default: Any = REQUIRED
  values: dict[Any, Any] | None = None

  def read(self, values: dict[str, Any]) -> Any:
    """Our value; ValueError if the field is missing or its value unknown."""
    value = values.get(self.name, self.default)
    if value is REQUIRED:
      raise ValueError(
        f'The config has no {self.name!r}.'
        f'{registry.closest(self.name, values)} It has: {", ".join(values)}.'
      )
    if self.values is None:
      return value
    # Equality, not a lookup: the file may hold a list, which has no hash.
    for stored, ours in self.values.items():
      if stored == value:
        return ours
    raise registry.unknown(self.name, value, [str(v) for v in self.values])

  def write(self, value: Any) -> Any:
    """The file's value for ours; ValueError if there is none."""
    if self.values is None:
      return value
    for stored, ours in self.values.items():
      if ours == value:
        return stored
    raise ValueError(f'{self.name} has no value for {value!r}')


class Op(NamedTuple):
  """The transformation between a stored tensor and one layer's leaves.

  read(tensor, config) -> leaves. write(config, *leaves) -> tensor; None for
  formats that are not written. shape(*leaf shapes) -> tensor shape.
  """

  read: Callable[..., tuple[np.ndarray, ...]]
  write: Callable[..., np.ndarray] | None
  shape: Callable[..., tuple[int, ...]]


COPY = Op(lambda x, _: (x,), lambda _, x: x, lambda s: s)
TRANSPOSE = Op(lambda x, _: (x.T,), lambda _, x: x.T, lambda s: s[::-1])


class TensorMap(NamedTuple):
  """A stored tensor and the leaves of the parameter tree that it holds.

  name: of the stored tensor, with '{i}' for the layer's index.
  paths: of the leaves, such as 'layers/attention/q/kernel'. A model without
  these leaves has no such tensor.
  """

  name: str
  paths: tuple[str, ...]
  op: Op = COPY


# Of every Hugging Face format, with one label.
SCORE = TensorMap('score.weight', ('score/kernel',), TRANSPOSE)


class TensorReader(Protocol):
  """Reads the stored tensors of a checkpoint one by one."""

  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray:
    """The tensor `name`, in any float dtype, row-major."""

  def equal(self, a: str, b: str) -> bool:
    """Whether two tensors hold the same values; neither is loaded whole."""


class Format(NamedTuple):
  """A file format of a family: its config fields and its tensors.

  fields: our config field -> the file's field.
  tensor_maps: all tensors that a model of this family can have.
  complete(fields, config file, reader) -> arguments of ModelConfig, from the
  fields read so far.
  extra(config) -> further fields of the config file; None: cannot be written.
  prefix: of tensor names; base-model checkpoints may lack it.
  ignored: regular expressions of tensors that hold no parameters.
  also_read: names of the other config fields that `complete` reads.
  section: the config file's field below which all these lie; '' for none.
  """

  fields: dict[str, Field]
  tensor_maps: tuple[TensorMap, ...]
  complete: Callable[[dict, dict, TensorReader | None], dict]
  extra: Callable[[model_config.ModelConfig], dict] | None = None
  prefix: str = ''
  ignored: tuple[str, ...] = ()
  also_read: tuple[str, ...] = ()
  section: str = ''


class Family(NamedTuple):
  """A family of models: its name and its file formats.

  architecture: the name of its class in `transformers`; classifier: of the one
  for sequence classification, which a model with a scalar head is stored as.
  hf: folders whose config.json has this name as model_type.
  gguf: files whose general.architecture is this name.
  None where no such checkpoints exist.
  """

  name: str
  architecture: str
  classifier: str
  hf: Format | None = None
  gguf: Format | None = None


class Checkpoint(NamedTuple):
  """An opened checkpoint, its tensors still on disk.

  values: the fields of its config file. config: what they mean.
  """

  format: Format
  values: dict[str, Any]
  config: model_config.ModelConfig
  reader: TensorReader


def read_config(
  format: Format, values: dict[str, Any], reader: TensorReader | None = None
) -> model_config.ModelConfig:
  """The ModelConfig that `values`, the fields of a config file, describe."""
  head = _read_head(values)
  if format.section:
    values = Field(format.section).read(values)
  require(values, {'quantization_config': (None,)})
  fields = {ours: field.read(values) for ours, field in format.fields.items()}
  for ours, field in format.fields.items():
    absent = fields[ours] is None and field.default is None
    if field.values is None and not absent:
      model_config.check(ours, fields[ours], field.name)
  fields = format.complete(fields, values, reader)
  return model_config.ModelConfig(**fields, head=head)


def _read_head(values: dict[str, Any]) -> str:
  """'scalar' for a sequence classifier of one label, else 'logits'.

  ValueError for one of several labels; without a number of labels
  `transformers` assumes two.
  """
  names = str(values.get('architectures'))
  found = re.search(r'\w+ForSequenceClassification', names)
  if not found:
    return 'logits'
  num_labels = values.get('num_labels', 2)
  if isinstance(values.get('id2label'), dict):
    num_labels = len(values['id2label'])
  if num_labels != 1:
    raise ValueError(
      f'The checkpoint is a {found[0]} of {num_labels} labels; expected a '
      'language model, or a reward model with one label (num_labels=1).'
    )
  return 'scalar'


def write_head(family: Family, config: model_config.ModelConfig) -> dict:
  """Inverts `_read_head`: the class, and the labels of a classifier."""
  if config.head == 'logits':
    return {'architectures': [family.architecture]}
  return {
    'architectures': [family.classifier],
    'num_labels': 1,
    'id2label': {'0': 'LABEL_0'},
    'label2id': {'LABEL_0': 0},
  }


def write_config(
  format: Format, config: model_config.ModelConfig
) -> dict[str, Any]:
  """Inverts `read_config` where the format can express `config`."""
  values = {
    field.name: field.write(getattr(config, ours))
    for ours, field in format.fields.items()
  }
  return values | format.extra(config)


def bind(format: Format, config: model_config.ModelConfig) -> Format:
  """The format with `config` bound: each op's `write` takes leaves only."""

  def bound(tensor):
    write = tensor.op.write and functools.partial(tensor.op.write, config)
    return tensor._replace(op=tensor.op._replace(write=write))

  return format._replace(tensor_maps=tuple(map(bound, format.tensor_maps)))


def module_maps(
  names: dict[str, str], ops: dict[str, Op], default: Op = TRANSPOSE
) -> tuple[TensorMap, ...]:
  """The weight and the bias of each module.

  names: our module -> the file's module; '.../qkv' stands for q, k and v in one
  tensor. ops: our leaf -> its op; other kernels take `default`, other norms and
  biases are copied.
  """
  maps = []
  for ours, stored in names.items():
    modules = [ours]
    if ours.endswith('/qkv'):
      modules = [f'{ours.removesuffix("qkv")}{x}' for x in 'qkv']
    weight = 'scale' if 'norm' in ours else 'kernel'
    for suffix, leaf in (('weight', weight), ('bias', 'bias')):
      paths = tuple(f'{module}/{leaf}' for module in modules)
      op = ops.get(f'{ours}/{leaf}', default if leaf == 'kernel' else COPY)
      maps.append(TensorMap(f'{stored}.{suffix}', paths, op))
  return tuple(maps)


def require(values: dict[str, Any], supported: dict[str, tuple]):
  """ValueError for a field that is present with an unsupported value."""
  for name, known in supported.items():
    if name in values and values[name] not in known:
      raise ValueError(
        f'{name} = {values[name]!r} is not supported; supported: '
        f'{", ".join(map(repr, known))}.'
      )
