"""The run that is killed: a tiny model, with all that a run does.

`page.py:METHOD:FOLDER`; `tests.tiny.write` made FOLDER. METHOD is dpo, sft, or
a key of `tests.online_pages.METHODS`, such as ppo and online_dpo.
"""

import pathlib

from ml_collections import config_dict

from tests import online_pages, tiny


def get_config(variant: str):
  """The page; `variant` is 'METHOD:FOLDER'."""
  method, folder = variant.split(':', 1)
  if method in online_pages.METHODS:
    return _online(pathlib.Path(folder), method)
  c = tiny.page(pathlib.Path(folder), method=method)
  # A checkpoint falls between two logged rows.
  c |= dict(steps=24, log_every=4, eval_every=6)
  c['train_batches'] |= dict(max_shapes=1)
  c['eval_batches'] = dict(batch_size=4)
  c['checkpoints'] = dict(every=6, keep=1, best='eval/loss', best_mode='min')
  c['samples'] = dict(every=12, num_prompts=2, num_samples=2, max_new_tokens=8)
  c['log'] = dict(tensorboard=True)
  return config_dict.ConfigDict(c)


def _online(folder: pathlib.Path, method: str) -> config_dict.ConfigDict:
  """Six collections of four steps, with a checkpoint after every second."""
  c = online_pages.page(folder, method, steps=24, log_every=3)
  c['rollouts'] |= dict(minibatches=2, epochs=2)
  c['checkpoints'] = dict(
    every=8, keep=1, best='samples/length', best_mode='max'
  )
  c['samples'] = dict(every=8, num_prompts=2, num_samples=2, max_new_tokens=8)
  c['log'] = dict(tensorboard=True)
  return config_dict.ConfigDict(c)
