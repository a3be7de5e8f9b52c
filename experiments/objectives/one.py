"""One run of the study: python -m experiments.objectives.one NAME SEED WORKDIR.

The page of configs/objectives.py:NAME, shortened; see README.md.
"""

import os
import pathlib
import sys

import jax

from configs import objectives
from dpo_jax import train

STEPS = 10
# Of the quickstart's batch: sentences, as pairs, alone or ranked.
SHARE = 2


def page(name: str, seed: int) -> dict:
  """The config; its seed is that of the order of the data."""
  c = objectives.get_config(name)
  c.seed = seed
  c.steps = c.eval_every = c.checkpoints.every = STEPS
  c.schedule.warmup_steps = 2
  c.log_every = 1
  c.train_batches.batch_size //= SHARE
  # One compiled program serves all seeds.
  c.train_batches.length_multiple = 128
  # The study measures all policies alike, by itself.
  c.eval_batches.num_examples = c.eval_batches.batch_size = 8
  c.samples = None
  c.log.tensorboard = False
  return c.to_dict()


def main() -> None:
  name, seed, workdir = sys.argv[1:]
  jax.config.update('jax_compilation_cache_dir', os.environ['STUDY_JIT'])
  train.train(pathlib.Path(workdir), page(name, int(seed)))


if __name__ == '__main__':
  main()
