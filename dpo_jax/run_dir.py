"""What a run left in its directory: config, metrics, checkpoints, parameters.

README.md lists the files. `find` reads a directory, `save_params` writes the
last part of it.
"""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo_jax import assets, methods, models, tokenizers, types, weights
from dpo_jax.training import checkpoint_folder, checkpoints, metrics, processes

PARAMS, CHECKPOINTS, METRICS = 'params', 'checkpoints', 'metrics.jsonl'


class RunDir(NamedTuple):
  """The directory of a training run, and its config.json."""

  folder: pathlib.Path
  config: dict[str, Any]

  @property
  def ended(self) -> bool:
    """Whether the run has ended: its trained parameters are there."""
    return (self.folder / PARAMS).is_dir()

  @property
  def steps(self) -> list[int]:
    """The steps of its checkpoints, in rising order."""
    return sorted(checkpoint_folder.steps_in(self.folder / CHECKPOINTS))

  @property
  def start_uri(self) -> str:
    """The weights that training started from."""
    return self.config['model']['uri']

  @property
  def tokenizer_uri(self) -> str:
    """The tokenizer that training used."""
    return self.config['model'].get('tokenizer') or self.start_uri

  def rows(self) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; ValueError where there is none."""
    if not (self.folder / METRICS).is_file():
      raise ValueError(
        f'{str(self.folder)!r} has no {METRICS}. {self._contents()}'
      )
    return metrics.read_jsonl(self.folder / METRICS)

  def choose(self, checkpoint: str | None) -> 'Saved':
    """The parameters that `checkpoint` names.

    'params': those that training ended with; 'latest', 'best' (by
    checkpoints.best of the config) or a step; None: 'params', or 'latest' where
    the run has not ended. ValueError for what is not there.
    """
    name = checkpoint or (PARAMS if self.ended else 'latest')
    if name == PARAMS and not self.ended:
      raise ValueError(
        f'{str(self.folder)!r} has no params: the run has not ended. '
        f'{self._contents()}'
      )
    if name != PARAMS and not self.steps:
      hint = ' Give --checkpoint=params.' if self.ended else ''
      raise ValueError(
        f'{str(self.folder)!r} has no checkpoints.{hint} {self._contents()}'
      )
    return Saved(self, name)

  def _contents(self) -> str:
    if self.steps:
      steps = ', '.join(map(str, self.steps))
      return f'It holds: checkpoints of steps {steps}.'
    names = ', '.join(sorted(path.name for path in self.folder.iterdir()))
    return f'It holds: {names}.'


class Saved(NamedTuple):
  """Parameters of a run: those it ended with, or those of a checkpoint."""

  run: RunDir
  checkpoint: str

  @property
  def is_params(self) -> bool:
    """Whether they are those that training ended with."""
    return self.checkpoint == PARAMS

  @property
  def uri(self) -> str:
    """Weights with the architecture of the parameters.

    They are the parameters themselves where `is_params`.
    """
    if self.run.ended:
      return str(self.run.folder / PARAMS)
    return self.run.start_uri

  def read(self, like: types.TrainState) -> tuple[int, types.TrainState]:
    """(step, state) of the checkpoint; see `checkpoints.Checkpoints.read`.

    like.params: of the policy, which is all that is read of what was trained.
    """
    config, params = self.run.config, like.params
    if config.get('rollouts') is not None:
      key = methods.build_online(config['method']).policy_key
      params = params if key is None else {key: params, 'value': None}
    saves = config['checkpoints']
    with checkpoints.open(
      self.run.folder / CHECKPOINTS,
      keep=1,
      best=saves.get('best'),
      best_mode=saves.get('best_mode', 'min'),
    ) as saved:
      step, state = saved.read(self.checkpoint, like.replace(params=params))
    if params is not like.params:
      state = state.replace(params=state.params[key])
    return step, state


def find(path: str | pathlib.Path) -> RunDir | None:
  """The run directory at `path`; None for anything else."""
  folder = pathlib.Path(path).expanduser()
  if not (folder / 'config.json').is_file():
    return None
  config = assets.read_json(folder / 'config.json')
  is_run = isinstance(config.get('model'), Mapping) and 'method' in config
  return RunDir(folder, config) if is_run else None


def save_params(
  folder: pathlib.Path,
  config: models.ModelConfig,
  params: types.Params,
  tokenizer: tokenizers.Tokenizer,
  files: Mapping[str, str] | None = None,
) -> None:
  """Writes params/, the model with its tokenizer, whole or not at all.

  files: name -> text of further files. Collective. A directory with params/ is
  a finished run.
  """
  if config.head == 'scalar':
    tokenizer = tokenizer.with_distinct_pad()
  first = processes.first()
  path = folder / PARAMS
  whole = assets.atomic_path(path) if first else contextlib.nullcontext(path)
  with whole as temp:
    weights.save(
      temp,
      config,
      params,
      bos_id=tokenizer.bos_id,
      eos_id=tokenizer.eos_token_id,
      pad_id=tokenizer.pad_id,
    )
    if first:
      tokenizer.save(temp)
      for name, text in (files or {}).items():
        (temp / name).write_text(text, 'utf-8')
