"""What a user sees of a run: metrics as they come, a summary at the end.

All metrics go to metrics.jsonl, TensorBoard and, if asked for, W&B; the
terminal shows the few that say how it goes.
"""

import functools
import html
import importlib
import json
import math
import pathlib
import resource
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import tqdm

from dpo_jax import assets
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import processes

# What the terminal shows of training and held-out examples: metric, its short
# name, its format.
_SHORT = (
  ('loss', 'loss', '{:.4f}'),
  ('rewards/accuracies', 'accuracy', '{:.3f}'),
  ('rewards/margins', 'margin', '{:+.3f}'),
  ('lr', 'lr', '{:.2e}'),
  ('seconds_per_step', 's/step', '{:.2f}'),
)
# prefix -> what the terminal calls these metrics. The empty one comes last: it
# begins every name.
_GROUPS = {'eval/': 'held out', 'samples/': 'samples', '': 'training'}
_WIDTH = 9  # Of a number in the terminal.


def make_log(
  *, tensorboard: bool = True, wandb: str | None = None
) -> Callable[..., 'Log']:
  """`Log` with its options bound; `wandb` names a W&B project.

  In any process but the first it is one that says nothing.
  ValueError where W&B is asked for and not installed.
  """
  if wandb is not None:
    _import_wandb()
  if not processes.first():
    return SilentLog
  return functools.partial(Log, tensorboard=tensorboard, wandb=wandb)


class Log:
  """Where metrics go, in a run's directory and beyond.

  resume_step: the step that a rewound run goes on from; None starts a run, or
    one that was killed too early to go on. The caller has cut metrics.jsonl to
    it; TensorBoard hides what it has of later steps. W&B cannot forget: its
    steps are the metric 'step', and those done twice show twice, in one run
    whose id lies in the directory's wandb_id.
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
    self._events = self._wandb = None
    if tensorboard:
      self._events = _Events(self._workdir / 'tensorboard', first)
      if first == 0:
        self._events.text(0, 'config', json.dumps(run_config, indent=2))
    if wandb is not None:
      self._wandb = _start_wandb(self._workdir, wandb, run_config)

  def write(self, step: int, row: dict[str, float]) -> None:
    """Records one row; the files have it when this returns."""
    metrics_lib.append_jsonl(
      self._workdir / 'metrics.jsonl', {'step': step, **row}
    )
    if self._events:
      self._events.scalars(step, row)
    if self._wandb:
      self._wandb.log({'step': step, **row})
    tqdm.tqdm.write(lines(step, row))

  def text(self, step: int, name: str, text: str) -> None:
    """Shows `text` in TensorBoard and W&B, its lines and spaces kept."""
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
    """Finishes what was started; the files need no end."""
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


class _Events:
  """A TensorBoard event file, written through.

  tensorboardX's own SummaryWriter keeps events in a queue that no call empties,
  and loses them when a run is killed.
  """

  def __init__(self, folder: pathlib.Path, first_step: int):
    # More than a second of import, for those who use it.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    # Files are named, and read in the order of, seconds: the number keeps those
    # of one second apart.
    number = f'.{len(list(folder.iterdir())):04d}'
    prefix = str(folder / 'events')
    self._file = event_file_writer.EventsWriter(prefix, number)
    self._summary, self._event = summary, event_pb2.Event
    # TensorBoard hides what other files have from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    for name, value in row.items():
      self._write(step, summary=self._summary.scalar(name, value))

  def text(self, step: int, name: str, text: str) -> None:
    # Indented by four, text is code to Markdown.
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


# The terminal.


def lines(step: int, row: Mapping[str, float]) -> str:
  """A row for the terminal: one line for each kind of metrics in it."""
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
  """The short choice of `part`, or the first five where it has none of it."""
  chosen = [choice for choice in _SHORT if choice[0] in part]
  if not chosen:
    names = [n for n in part if not n.endswith(('_low', '_high'))][:5]
    chosen = [(name, name, '{:.4g}') for name in names]
  out = []
  for name, short, form in chosen:
    value = form.format(part[name]).rjust(_WIDTH)
    out.append(f'{short}{value}{_interval(part, name, form)}')
  if part.get('nonfinite'):
    out.append(f'skipped {100 * part["nonfinite"]:.0f} % of steps: not finite')
  return '  '.join(out)


def _interval(row: Mapping[str, float], name: str, form: str) -> str:
  ends = [row.get(f'{name}_{end}', math.nan) for end in ('low', 'high')]
  if not all(map(math.isfinite, ends)):
    return ''
  return ' [{}, {}]'.format(*map(form.format, ends))


# The end of a run.

_SUMMARY = {
  'held out': (
    ('eval/loss', 'loss'),
    ('eval/rewards/accuracies', 'accuracy'),
    ('eval/rewards/margins', 'reward margin'),
    ('eval/logps_per_token/chosen', 'log p of chosen, nats a token'),
    ('eval/logps_per_token/rejected', 'log p of rejected, nats a token'),
    ('eval/logps/chosen', 'log p of chosen, nats in all'),
    ('eval/logps/rejected', 'log p of rejected, nats in all'),
    ('eval/logps/tokens', 'log p, nats a token'),
  ),
  'own samples': (
    ('samples/kl', 'KL to the reference, nats in all'),
    ('samples/length', 'length, tokens'),
    ('samples/repetition', 'repeated n-grams, share'),
    ('samples/vader_positive', 'positive by VADER, share'),
  ),
}


def summary(
  rows: Sequence[Mapping[str, float]],
  *,
  seconds: float,
  cpu_seconds: float,
  peak_bytes: int,
  files: Mapping[str, str | pathlib.Path],
  resume_step: int | None = None,
) -> str:
  """The end of a run: first and last values, what it took, where things lie.

  `rows` are those of metrics.jsonl; `seconds` and `cpu_seconds` are of this
  process, which went on from `resume_step`. `files` maps what to where.
  """
  out = []
  for title, names in _SUMMARY.items():
    out += _table(title, names, rows)
  last = max((row['step'] for row in rows), default=0)
  since = f', from {resume_step} on in this process' if resume_step else ''
  facts = {
    'steps': f'{last}{since}',
    'time': f'{_duration(seconds)} wall, {_duration(cpu_seconds)} CPU',
    'memory': f'{peak_bytes / 1e9:.2f} GB at most',
    **files,
  }
  width = max(map(len, facts)) + 2
  out += [f'{name:{width}}{value}' for name, value in facts.items()]
  return '\n'.join(out)


def usage() -> tuple[float, int]:
  """(CPU seconds, user and system, and the peak of memory in bytes) so far."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  unit = 1 if sys.platform == 'darwin' else 1024
  return used.ru_utime + used.ru_stime, used.ru_maxrss * unit


def _table(title, names, rows) -> list[str]:
  """Lines of a table, none if no row has any of the metrics."""
  out = []
  for name, label in names:
    having = [row for row in rows if name in row]
    if having:
      first, last = having[0], having[-1]
      cells = ''.join(f'{r[name]:>11.4f}' for r in (first, last))
      out.append(f'  {label:32}{cells}  {_interval(last, name, "{:.4f}")}')
  if not out:
    return []
  examples = [r['eval/examples'] for r in rows if 'eval/examples' in r]
  if examples and title == 'held out':
    title = f'{title}, {examples[-1]:.0f} examples'
  head = f'{title:34}{"start":>11}{"end":>11}   95 % at the end'
  return [head, *(line.rstrip() for line in out), '']


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f'{seconds:.1f} s'
  if seconds < 7200:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'
