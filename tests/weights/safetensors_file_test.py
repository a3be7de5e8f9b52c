"""The safetensors writer against the library."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

from dpo_jax.weights import safetensors_file

SHAPES = {'b': (3, 5), 'scalar': (), 'a \'naïve\' "name"': (2, 0, 4), 'c': (7,)}


def _tensors(dtype):
  rng = np.random.default_rng(0)
  return {k: rng.standard_normal(s).astype(dtype) for k, s in SHAPES.items()}


@pytest.mark.parametrize('name', list(safetensors_file.DTYPES))
def test_the_library_reads_what_we_wrote(name, tmp_path):
  dtype, path = np.dtype(name), tmp_path / 'x.safetensors'
  tensors = _tensors(dtype)
  safetensors_file.write(path, SHAPES, dtype, iter(tensors.values()))
  with safetensors.safe_open(path, 'np') as file:
    assert file.metadata() == {'format': 'pt'}
    assert set(file.keys()) == SHAPES.keys()
    for key, tensor in tensors.items():
      found = file.get_tensor(key)
      assert found.dtype == dtype and found.shape == tensor.shape
      assert found.tobytes() == tensor.tobytes()
  theirs = safetensors_torch.load_file(path)['b']
  assert theirs.dtype == getattr(torch, name)
  assert theirs.float().tolist() == tensors['b'].tolist()
  # We read its files as our own.
  other = tmp_path / 'other.safetensors'
  safetensors_numpy.save_file(tensors, other, {'format': 'pt'})
  for file in (path, other):
    source = safetensors_file.Safetensors([file])
    assert source.shapes == SHAPES
    for key, tensor in tensors.items():
      assert source.read(key).tobytes() == tensor.tobytes()


def test_tensors_are_taken_one_by_one(tmp_path):
  """The writer takes no more tensors than there are names."""
  taken, path = [], tmp_path / 'x.safetensors'

  def tensors():
    for i in range(3):
      taken.append(path.stat().st_size)
      yield np.full((1 << 20,), i, np.float32)

  rest, shapes = tensors(), {'a': (1 << 20,), 'b': (1 << 20,)}
  safetensors_file.write(path, shapes, np.dtype('float32'), rest)
  # What came before is written by the time that the next is asked for.
  assert taken[1] - taken[0] >= 4 << 20 and len(taken) == 2
  assert next(rest)[0] == 2


@pytest.mark.parametrize(
  'tensor', [np.zeros((5, 3), np.float32), np.zeros((3, 5), ml_dtypes.bfloat16)]
)
def test_a_tensor_of_another_kind_is_refused(tensor, tmp_path):
  path = tmp_path / 'x.safetensors'
  with pytest.raises(ValueError, match=r'b is .*expected float32\(3, 5\)'):
    safetensors_file.write(
      path, {'b': (3, 5)}, np.dtype('float32'), iter([tensor])
    )


def test_unknown_dtypes_are_answered_with_the_closest():
  with pytest.raises(ValueError, match=r"'bfloat61'.*'bfloat16'"):
    safetensors_file.check_dtype('bfloat61')
