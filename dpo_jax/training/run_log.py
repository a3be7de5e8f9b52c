"""The log of a run: metrics.jsonl, TensorBoard, W&B and the terminal.

Metrics go to all of them, except that the terminal shows a few. In many
processes only process 0 writes and shows anything.
"""

import functools
import html
import importlib
import json
import math
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tqdm

from dpo_jax import assets
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import processes

# What the terminal shows of training and held-out examples: (metric, short
# name, format).
_SHORT = (
  ('loss', 'loss', '{:.4f}'),
  ('rewards/accuracies', 'accuracy', '{:.3f}'),
  ('rewards/margins', 'margin', '{:+.3f}'),
  ('lr', 'lr', '{:.2e}'),
  ('seconds_per_step', 's/step', '{:.2f}'),
)
# Prefix -> the terminal's name for these metrics. The empty prefix comes last,
# as it matches every metric.
_GROUPS = {
  'eval/': 'held out',
  'samples/': 'samples',
  'rollouts/': 'rollouts',
  '': 'training',
}
_WIDTH = 9  # Characters of a number in the terminal.
_METRICS = 'metrics.jsonl'


def make_log(
  *, tensorboard: bool = True, wandb: str | None = None
) -> Callable[..., 'Log']:
  """`Log` with its options bound; in all processes but the first `SilentLog`.

  wandb: the name of a W&B project; None for no W&B. ValueError if it is given
  and the package is not installed.
  """
  if wandb is not None:
    _import_wandb()
  if not processes.first():
    return SilentLog
  return functools.partial(Log, tensorboard=tensorboard, wandb=wandb)


class Log:
  """Writes metrics and texts to a run's directory, the terminal and W&B.

  resume_step: the checkpoint's step that the run resumes from; None for a run
    that starts, or that was killed before its first checkpoint. Rows of later
    steps are deleted from metrics.jsonl, and TensorBoard hides them. W&B can do
    neither: its x axis is the metric 'step', and steps that ran twice show
    twice, in one run, whose id is in the directory's wandb_id.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    tensorboard: bool = True,
    wandb: str | None = None,
    run_config: Mapping,
    resume_step: int | None = None,
  ):
    self._workdir = pathlib.Path(workdir)
    first = 0 if resume_step is None else resume_step + 1
    _rewind(self._workdir / _METRICS, first)
    self._events = self._wandb = None
    if tensorboard:
      self._events = _Events(self._workdir / 'tensorboard', first)
      if first == 0:
        self._events.text(0, 'config', json.dumps(run_config, indent=2))
    if wandb is not None:
      self._wandb = _start_wandb(self._workdir, wandb, run_config)

  def write(self, step: int, row: dict[str, float]) -> None:
    """Logs one row; the files have it when this returns."""
    metrics_lib.append_jsonl(self._workdir / _METRICS, {'step': step, **row})
    if self._events:
      self._events.scalars(step, row)
    if self._wandb:
      self._wandb.log({'step': step, **row})
    tqdm.tqdm.write(lines(step, row))

  def text(self, step: int, name: str, text: str) -> None:
    """Shows `text` in TensorBoard and W&B, with its lines and spaces."""
    if self._events:
      self._events.text(step, name, text)
    if self._wandb:
      page = _import_wandb().Html(f'<pre>{html.escape(text)}</pre>')
      self._wandb.log({'step': step, name: page})

  def say(self, text: str) -> None:
    """Shows `text` on the terminal."""
    tqdm.tqdm.write(text)

  def file(self, name: str, text: str) -> None:
    """Writes a file of the run's directory, whole or not at all."""
    with assets.atomic_path(self._workdir / name) as temp:
      temp.write_text(text, 'utf-8')

  def close(self) -> None:
    """Closes TensorBoard's file and the W&B run."""
    if self._events:
      self._events.close()
    if self._wandb:
      self._wandb.finish()


class SilentLog:
  """A `Log` that writes nothing."""

  def __init__(self, workdir: pathlib.Path, **options):
    pass

  def write(self, step: int, row: dict[str, float]) -> None:
    pass

  def text(self, step: int, name: str, text: str) -> None:
    pass

  def say(self, text: str) -> None:
    pass

  def file(self, name: str, text: str) -> None:
    pass

  def close(self) -> None:
    pass


def _rewind(path: pathlib.Path, first_step: int) -> None:
  """Deletes the rows from `first_step` on, which will be logged again.

  A truncated last line is deleted too. ValueError for another damaged line.
  """
  if not path.exists():
    return
  lines = path.read_bytes().rstrip(b'\n').split(b'\n')
  kept = []
  for number, line in enumerate(lines, 1):
    try:
      step = json.loads(line)['step']
    except (ValueError, TypeError, LookupError) as error:
      if number == len(lines):
        break
      raise assets.damaged(f'{path}:{number}', 'row', error) from error
    if step < first_step:
      kept.append(line + b'\n')
  with assets.atomic_path(path) as temp:
    temp.write_bytes(b''.join(kept))


def read_rows(
  workdir: pathlib.Path, keep: Callable[[dict[str, float]], bool]
) -> list[dict[str, float]]:
  """The logged rows that `keep` selects, in every process. Collective."""
  rows = []
  if processes.first():
    rows = metrics_lib.read_jsonl(workdir / _METRICS)
  return processes.share([row for row in rows if keep(row)])


class _Events:
  """A TensorBoard event file, flushed after every event.

  tensorboardX's own SummaryWriter keeps events in a queue that no call flushes,
  and loses them when a run is killed.
  """

  def __init__(self, folder: pathlib.Path, first_step: int):
    # Imported here, as it takes more than a second.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard orders files by the seconds in their names; the number orders
    # those of the same second.
    number = f'.{len(list(folder.iterdir())):04d}'
    prefix = str(folder / 'events')
    self._file = event_file_writer.EventsWriter(prefix, number)
    self._summary, self._event = summary, event_pb2.Event
    # TensorBoard hides the events of other files from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    for name, value in row.items():
      self._write(step, summary=self._summary.scalar(name, value))

  def text(self, step: int, name: str, text: str) -> None:
    # Markdown shows text that is indented by four spaces as code.
    code = '\n'.join('    ' + line for line in text.split('\n'))
    self._write(step, summary=self._summary.text(name, code))

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, **what) -> None:
    self._file.write_event(
      self._event(wall_time=time.time(), step=step, **what)
    )
    self._file.flush()


def _import_wandb():
  try:
    return importlib.import_module('wandb')
  except ImportError as error:
    raise ValueError(
      'log.wandb needs the package wandb, which is not installed: '
      "pip install 'dpo_jax[wandb]', or set it to None."
    ) from error


def _start_wandb(workdir: pathlib.Path, project: str, run_config: Mapping):
  path = workdir / 'wandb_id'
  if not path.exists():
    with assets.atomic_path(path) as temp:
      temp.write_text(secrets.token_hex(4))
  run = _import_wandb().init(
    project=project,
    id=path.read_text(),
    resume='allow',
    dir=str(workdir),
    config=dict(run_config),
  )
  run.define_metric('step')
  run.define_metric('*', step_metric='step')
  return run


def progress_bar(
  items: Iterable[Any],
  description: str,
  total: int,
  *,
  start: int = 0,
  leave: bool = True,
) -> Iterable[Any]:
  """`items`, with a progress bar in process 0.

  total: steps of the whole bar, of which `start` are done. leave: whether the
  bar stays on the terminal when it is full.
  """
  return tqdm.tqdm(
    items,
    description,
    total,
    leave=leave,
    initial=start,
    disable=not processes.first(),
  )


def lines(step: int, row: Mapping[str, float]) -> str:
  """A row for the terminal: a line for each of `_GROUPS` in it."""
  groups = {prefix: {} for prefix in _GROUPS}
  for name, value in row.items():
    prefix = next(p for p in _GROUPS if name.startswith(p))
    groups[prefix][name.removeprefix(prefix)] = value
  return '\n'.join(
    f'step {step:6d}  {_GROUPS[prefix]:8}  {_fields(part)}'
    for prefix, part in reversed(groups.items())
    if part
  )


def _fields(part: Mapping[str, float]) -> str:
  """The metrics of `_SHORT`, or the first five if there are none of them."""
  chosen = [choice for choice in _SHORT if choice[0] in part]
  if not chosen:
    names = [n for n in part if not n.endswith(('_low', '_high'))][:5]
    chosen = [(name, name, '{:.4g}') for name in names]
  out = []
  for name, short, form in chosen:
    value = form.format(part[name]).rjust(_WIDTH)
    out.append(f'{short}{value}{interval(part, name, form)}')
  if part.get('nonfinite'):
    out.append(f'skipped {100 * part["nonfinite"]:.0f} % of steps: not finite')
  return '  '.join(out)


def interval(row: Mapping[str, float], name: str, form: str) -> str:
  """A metric's 95 % interval as text, empty if the row has none."""
  ends = [row.get(f'{name}_{end}', math.nan) for end in ('low', 'high')]
  if not all(map(math.isfinite, ends)):
    return ''
  return ' [{}, {}]'.format(*map(form.format, ends))
