"""Samples on a mesh of two processes: python -m ... COORDINATOR INDEX."""

import dataclasses
import json
import sys

import jax

from dpo_jax import sampling
from dpo_jax.models import parallel
from dpo_jax.training import sharding
from tests import forests

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4]]
# What differs between processes is no matter of layers.
CONFIG = dataclasses.replace(forests.CONFIG, num_layers=1)


def draw(mesh: jax.sharding.Mesh | None = None):
  """Samples and a stream as JSON; on one device without a mesh."""
  places = None if mesh is None else parallel.shardings(mesh, CONFIG)
  make = jax.jit(lambda: forests.params(2, CONFIG), out_shardings=places)
  rule = dict(key=jax.random.key(3), max_new_tokens=5, top_p=0.9)
  params = make()
  out = sampling.sample(params, CONFIG, PROMPTS, num_samples=2, **rule)
  streamed = list(sampling.stream(params, CONFIG, PROMPTS[0], **rule))
  return dict(
    tokens=out.tokens_BxSxT.tolist(),
    logps=out.logps_BxSxT.tolist(),
    streamed=streamed,
  )


def main(coordinator, index):
  jax.distributed.initialize(coordinator, 2, int(index))
  mesh = sharding.make_mesh(data=2, fsdp=2)
  print(json.dumps(draw(mesh)))


if __name__ == '__main__':
  main(*sys.argv[1:])
