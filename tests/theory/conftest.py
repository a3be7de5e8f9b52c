"""Precision of the tests that land on closed forms."""

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.losses import inputs


@pytest.fixture
def float64(monkeypatch):
  """Arrays are float64, those that objectives make of their inputs too.

  In float32 a minimiser would be found to four digits.
  """
  monkeypatch.setattr(
    inputs, 'float32', lambda x: jnp.asarray(x).astype(jnp.float64)
  )
  with jax.enable_x64(True):
    yield
