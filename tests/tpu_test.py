"""The train steps of the paper's pages compile for TPUs that are not there.

At full size they are in experiments/pods.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from dpo_jax.training import topologies
from tests import tpu_steps

pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(
    not topologies.has_compiler(), reason='needs the TPU compiler, libtpu'
  ),
]


@pytest.fixture(scope='module')
def plans():
  """page -> what was said of its step."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.tpu_steps'],
    cwd=pathlib.Path(__file__).parent.parent,
    # libtpu ends where there is a flag that it does not know.
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  found = [json.loads(line) for line in done.stdout.splitlines()]
  return {plan['page']: plan for plan in found}


@pytest.mark.parametrize('page', tpu_steps.PAGES)
def test_the_step_of_a_page_compiles_for_a_tpu(plans, page):
  found = plans[page]
  assert found['device'] == 'TPU v5 lite' and found['failure'] is None
  assert found['mesh'] == dict(data=1, fsdp=4, tensor=1)
  assert found['accumulation_steps'] == 8 and not found['changed']
  assert found['state'] < found['total'] < topologies.HBM[found['device']]
  # RMSprop: the parameters and one moment, each split over four chips but for
  # vectors.
  share = 2 * 4 * found['parameters'] / 4
  assert share < found['state'] < 1.2 * share
  kinds = {c['kind'] for c in found['collectives']}
  assert 'all-gather' in kinds and 'reduce-scatter' in kinds
  assert 'all-to-all' not in kinds
  # Gathered in 8 micro-batches: what two layers have, and the vocabulary's
  # blocks (see tpu_steps.narrow); of GPT-2 the positions.
  gathers = [c for c in found['collectives'] if c['kind'] == 'all-gather']
  vector = 4 * 128
  trips = {c['trips'] for c in gathers if c['bytes'] > vector}
  positions = {8} if page.startswith('imdb') else set()
  assert trips == {8 * 2, 8 * 5, 8 * 4} | positions
  # And norms: the layers', and the last one.
  assert {c['trips'] for c in gathers} <= trips | {8}
