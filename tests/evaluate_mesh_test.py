"""What is evaluated, and on which devices."""

import pathlib

import pytest

from dpo_jax import evaluate, settings
from tests import tiny


@pytest.mark.parametrize(
  ('mesh', 'given', 'own', 'expected'),
  [
    # As it is, without what only training needs.
    (dict(data=-1, fsdp=2, offload=True), None, True, dict(data=-1, fsdp=2)),
    (dict(data=1, fsdp=64), None, True, dict(data=-1)),
    (dict(devices=16), None, True, dict(data=-1)),
    (dict(data=1, fsdp=64), None, False, dict(data=1, fsdp=64)),
    (dict(fsdp=64), 'data=2,fsdp=4', True, dict(data=2, fsdp=4)),
    (dict(fsdp=2), 'fsdp=-1', False, dict(fsdp=-1)),
  ],
)
def test_the_mesh_is_of_the_devices_that_are_here(mesh, given, own, expected):
  config = evaluate.on_mesh(dict(seed=1, mesh=mesh), given, own=own)
  assert config == dict(seed=1, mesh=expected)


def test_a_mesh_that_is_none():
  with pytest.raises(ValueError, match="--mesh is 'fsdp'; expected"):
    evaluate.on_mesh(dict(mesh={}), 'fsdp', own=True)
  page = evaluate.on_mesh(tiny.page(pathlib.Path('x')), 'fspd=2', own=True)
  with pytest.raises(ValueError, match=r"'fspd'.*Did you mean 'fsdp'"):
    settings.of(page)
