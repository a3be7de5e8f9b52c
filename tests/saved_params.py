"""Parameters of a checkpoint, as tests of runs read them."""

from dpo_jax import types
from dpo_jax.training import checkpoints


def read(folder, which, like, **options):
  """(step, parameters) of one checkpoint; see `checkpoints.Checkpoints.read`.

  options: best and best_mode of the run, for which='best'.
  """
  wanted = types.TrainState(None, like, None, None, None)
  with checkpoints.open(folder, keep=1, **options) as saved:
    step, state = saved.read(which, wanted)
  return step, state.params
