"""What is evaluated: weights by themselves, or what a run's directory holds."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging

from dpo_jax import assets, registry
from dpo_jax.training import checkpoint_folder, sharding


class Subject(NamedTuple):
  """A model beside the config that evaluates it, whose model.uri is it.

  checkpoints: a folder of checkpoints of a model that began as model.uri, of
  which `which` is evaluated: 'latest', 'best' (by `best`, `best_mode`) or a
  step; None for the weights at model.uri themselves.
  own_config: whether the config is that of the run that made the checkpoints.
  compared: whether the reference is not the config's.
  """

  name: str
  compared: bool = False
  checkpoints: pathlib.Path | None = None
  which: str = ''
  best: str | None = None
  best_mode: str = 'min'
  own_config: bool = False


def choose(
  *,
  run_dir: str | None,
  config: Mapping[str, Any] | None,
  model: str | None,
  reference: str | None,
  checkpoint: str | None,
) -> tuple[dict[str, Any], Subject]:
  """(config, subject) from what a command line gives; None is not given.

  ValueError for too little, or for what does not go together.
  """
  if run_dir is not None:
    assets.local_path(run_dir, "The run's directory")
  if run_dir is not None and not is_run(run_dir):
    raise ValueError(
      f'{run_dir!r} is no directory of a run: expected config.json, and params '
      'or checkpoints. For weights give --config and --model.'
    )
  if run_dir is None and (config is None or model is None):
    raise ValueError("Give a run's directory, or --config and --model.")
  own_config = config is None and model in (None, run_dir)
  model = model or run_dir
  # What a run samples, and what scores it, is no part of its evaluation.
  config = {**(config or _config_of(run_dir)), 'samples': None}
  section = dict(config['model'])
  start = section['uri'] or model
  section['reference'] = reference or section.get('reference') or start
  if is_run(model):
    section, subject = _of_run(model, checkpoint, section)
    subject = subject._replace(own_config=own_config)
  elif checkpoint is None:
    section['uri'] = model
    section['tokenizer'] = section.get('tokenizer') or model
    subject = Subject(model)
  else:
    raise ValueError(
      f'--checkpoint is of a run, and {model!r} is no directory of one.'
    )
  subject = subject._replace(compared=reference is not None)
  return {**config, 'model': section}, subject


def on_mesh(
  config: Mapping[str, Any], given: str | None, *, own: bool
) -> dict[str, Any]:
  """The config with a mesh of the devices that are here.

  given: sizes such as 'data=2,fsdp=4', None for those of the config. own:
  whether that is of a run that may have been trained on other devices; where
  its sizes do not fit these, all get whole weights.
  """
  mesh = config['mesh'] if given is None else _sizes(given)
  if given is None and own:
    options = registry.options_of(sharding.make_mesh)
    mesh = {name: x for name, x in mesh.items() if name in options}
    try:
      sharding.make_mesh(**mesh)
    except ValueError as error:
      logging.warning('%s Evaluating with data=-1; see --mesh.', error)
      mesh = dict(data=-1)
  return {**config, 'mesh': mesh}


def _sizes(text: str) -> dict[str, int]:
  sizes = {}
  for part in text.split(','):
    name, _, size = part.partition('=')
    try:
      sizes[name] = int(size)
    except ValueError as error:
      raise ValueError(
        f'--mesh is {text!r}; expected sizes such as data=2,fsdp=4.'
      ) from error
  return sizes


def is_run(path: str) -> bool:
  """Whether it is the directory of a run that has a model to evaluate."""
  folder = pathlib.Path(path)
  return (folder / 'config.json').is_file() and any(
    (folder / name).is_dir() for name in ('params', 'checkpoints')
  )


def _of_run(path: str, checkpoint: str | None, section):
  """(model section, subject) of a run's parameters or checkpoint."""
  folder, config = pathlib.Path(path), _config_of(path)
  trained, saves = config['model'], config['checkpoints']
  tokenizer = trained.get('tokenizer') or trained['uri']
  section = {**section, 'tokenizer': section.get('tokenizer') or tokenizer}
  ended = (folder / 'params').is_dir()
  which = checkpoint or ('params' if ended else 'latest')
  _check_saved(folder, which)
  if which == 'params':
    section['uri'] = str(folder / 'params')
    return section, Subject(section['uri'])
  section['uri'] = trained['uri']
  return section, Subject(
    f'{path}, checkpoint {which}',
    checkpoints=folder / 'checkpoints',
    which=which,
    best=saves.get('best'),
    best_mode=saves.get('best_mode', 'min'),
  )


def _check_saved(folder: pathlib.Path, which: str) -> None:
  """ValueError for parameters or checkpoints that a run does not have."""
  steps = sorted(checkpoint_folder.steps_in(folder / 'checkpoints'))
  if which == 'params' and not (folder / 'params').is_dir():
    there = ', '.join(map(str, steps)) or 'none'
    raise ValueError(
      f'{str(folder)!r} has no params: the run has not ended. Its checkpoints '
      f'are: {there}.'
    )
  if which != 'params' and not steps:
    ended = 'Give --checkpoint=params.' if (folder / 'params').is_dir() else ''
    raise ValueError(f'{str(folder)!r} has no checkpoints. {ended}'.rstrip())


def _config_of(run_dir: str) -> dict[str, Any]:
  return assets.read_json(pathlib.Path(run_dir) / 'config.json')
