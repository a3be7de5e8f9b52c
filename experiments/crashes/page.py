"""The run that is killed: a tiny model, with all that a run does.

`page.py:dpo:FOLDER` or `page.py:sft:FOLDER`; `tests.tiny.write` made FOLDER.
"""

import pathlib

from ml_collections import config_dict

from tests import tiny


def get_config(variant: str):
  """The page; `variant` is 'METHOD:FOLDER'."""
  method, folder = variant.split(':', 1)
  c = tiny.page(pathlib.Path(folder), method=method)
  # A checkpoint falls between two logged rows.
  c |= dict(steps=24, log_every=4, eval_every=6)
  c['train_batches'] |= dict(max_shapes=1)
  c['eval_batches'] = dict(batch_size=4)
  c['checkpoints'] = dict(every=6, keep=1, best='eval/loss', best_mode='min')
  c['samples'] = dict(every=12, num_prompts=2, num_samples=2, max_new_tokens=8)
  c['log'] = dict(tensorboard=True)
  return config_dict.ConfigDict(c)
