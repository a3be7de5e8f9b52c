"""Every row is logged in every place once, also after a run is resumed."""

import json
import math
import pathlib
import struct
import subprocess
import sys

import pytest
import tensorboardX.proto.event_pb2 as event_pb2

from dpo_jax import registry
from dpo_jax.training import metrics, run_log, run_summary

CONFIG = {'seed': 0, 'model': {'uri': 'x'}}


def _log(workdir, **options):
  return run_log.Log(workdir, run_config=CONFIG, **options)


def _events(workdir):
  """All events of all files, in the order that TensorBoard reads them."""
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      # A TFRecord: length, its checksum, the bytes, their checksum.
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event()
      event.ParseFromString(data[12 : 12 + size])
      yield event
      data = data[16 + size :]


def _shown(workdir):
  """{name: [(step, value)]} as TensorBoard shows it.

  A session that starts at a step hides what was written of it and beyond.
  """
  shown = []
  for event in _events(workdir):
    if event.HasField('session_log'):
      shown = [e for e in shown if e[1] < event.step]
    for value in event.summary.value:
      is_text = value.HasField('tensor')
      content = value.tensor.string_val[0] if is_text else value.simple_value
      shown.append(
        (value.tag.removesuffix('/text_summary'), event.step, content)
      )
  out = {}
  for name, step, content in shown:
    out.setdefault(name, []).append((step, content))
  return out


def test_rows_are_in_both_files_at_once(tmp_path):
  log = _log(tmp_path)
  log.write(0, {'eval/loss': 0.5})
  log.write(5, {'loss': 0.25, 'lr': math.nan})
  # Before close(): a killed run keeps its rows.
  rows = metrics.read_jsonl(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [0, 5]
  assert rows[1]['loss'] == 0.25 and math.isnan(rows[1]['lr'])
  shown = _shown(tmp_path)
  assert shown['eval/loss'] == [(0, 0.5)] and shown['loss'] == [(5, 0.25)]
  assert json.loads(shown['config'][0][1]) == CONFIG
  log.close()


def test_resumed_runs_show_no_step_twice(tmp_path):
  log = _log(tmp_path)
  for step in (5, 10, 15):
    log.write(step, {'loss': float(step)})
  log.close()
  # Twice within a second, which TensorBoard's file names start with.
  for value in (1.0, 2.0):
    log = _log(tmp_path, resume_step=10)
    log.write(15, {'loss': value})
    log.close()
  shown = _shown(tmp_path)
  assert shown['loss'] == [(5, 5.0), (10, 10.0), (15, 2.0)]
  assert len(shown['config']) == 1
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 3


def test_a_run_that_starts_again_shows_nothing_of_the_one_before(tmp_path):
  for value in (1.0, 2.0):
    log = _log(tmp_path)
    log.write(0, {'eval/loss': value})
    log.close()
  shown = _shown(tmp_path)
  assert shown['eval/loss'] == [(0, 2.0)] and len(shown['config']) == 1


KEPT = [b'{"step": 0}', b'{"step": 5, "x": "nan"}', b'{"step": 5, "y": 1}']
LATE = [b'{"step": 6}', b'{"step": 10}']


def _rewind(workdir, step):
  """A run that resumes from the checkpoint of a step."""
  _log(workdir, tensorboard=False, resume_step=step).close()


@pytest.mark.parametrize(
  'end', [b'\n', b'\n{"step": 1', b'\n{"st', b'\n\0\0\0', b'']
)
def test_rewinding_drops_later_rows_and_a_torn_one(end, tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join(KEPT + LATE) + end)
  _rewind(tmp_path, 5)
  assert path.read_bytes() == b'\n'.join(KEPT) + b'\n'
  _rewind(tmp_path, 5)
  assert path.read_bytes() == b'\n'.join(KEPT) + b'\n'
  _rewind(tmp_path, None)
  assert path.read_bytes() == b''
  _rewind(tmp_path, 5)
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_rewinding_keeps_a_row_that_lacks_only_its_newline(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join(KEPT))
  _rewind(tmp_path, 5)
  assert path.read_bytes() == b'\n'.join(KEPT) + b'\n'


def test_rewinding_refuses_a_damaged_row_and_takes_a_missing_file(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  _rewind(tmp_path, 5)
  assert not path.exists()
  for row in (b'{"step"', b'[1]', b'{"loss": 1}', b'"step"'):
    path.write_bytes(b'\n'.join([KEPT[0], row, KEPT[1]]) + b'\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r'metrics\.jsonl:2.* is no row'):
      _rewind(tmp_path, 5)
    assert path.read_bytes() == before


def test_text_keeps_its_lines(tmp_path):
  log = _log(tmp_path)
  log.text(3, 'samples', 'one\n  <two>')
  log.close()
  # Four spaces are code in Markdown.
  assert _shown(tmp_path)['samples'] == [(3, b'    one\n      <two>')]


def test_without_tensorboard(tmp_path):
  log = _log(tmp_path, tensorboard=False)
  log.write(1, {'loss': 1.0})
  log.text(1, 'samples', 'text')
  log.close()
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_wandb_that_is_not_installed_is_an_error_at_once(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  make = registry.bind(run_log.make_log, {'wandb': 'project'}, 'log')
  with pytest.raises(ValueError, match=r"pip install 'dpo_jax\[wandb\]'"):
    make()
  with pytest.raises(ValueError, match=r"pip install 'dpo_jax\[wandb\]'"):
    _log(tmp_path, wandb='project')
  log = run_log.make_log(tensorboard=False)(tmp_path, run_config=CONFIG)
  log.write(1, {'loss': 1.0})


def _wandb_records(folder):
  """The contents of the W&B files of a folder, in order.

  After 7 bytes, a log as LevelDB's: blocks of 32 KiB with pieces of records,
  each after its checksum, its size and whether the record ends in it.
  """
  from wandb.proto import wandb_internal_pb2

  for path in sorted(folder.rglob('*.wandb')):
    data, at, whole = path.read_bytes(), 7, b''
    while at < len(data):
      left = -at % 32768
      if 0 < left < 7:
        at += left
        continue
      size, kind = struct.unpack('<HB', data[at + 4 : at + 7])
      whole += data[at + 7 : at + 7 + size]
      at += 7 + size
      if kind in (1, 4):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        yield record
        whole = b''


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
  wandb = pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / 'run'
  workdir.mkdir()
  for resume_step, step in ((None, 5), (5, 10)):
    log = _log(
      workdir, tensorboard=False, wandb='project', resume_step=resume_step
    )
    log.write(step, {'loss': float(step)})
    log.text(step, 'samples', 'a < b')
    log.close()
  # W&B's service still writes for a moment after a run is finished.
  wandb.teardown()
  records = list(_wandb_records(workdir))
  runs = [r.run for r in records if r.HasField('run')]
  assert {r.run_id for r in runs} == {(workdir / 'wandb_id').read_text()}
  assert {r.project for r in runs} == {'project'}
  assert 'seed' in {u.key for r in runs for u in r.config.update}
  found = []
  for record in records:
    items = {
      item.key or '/'.join(item.nested_key): json.loads(item.value_json)
      for item in record.history.item
    }
    if 'loss' in items:
      found.append((items['step'], items['loss']))
  assert found == [(5, 5.0), (10, 10.0)]
  assert [p.name for p in tmp_path.iterdir()] == ['run']
  pages = [p.read_text() for p in workdir.rglob('*.html')]
  assert len(pages) == 2 and all('a &lt; b' in page for page in pages)


# The terminal.


def test_lines_show_the_few_that_matter():
  row = {
    'grad_norm': 8.0,
    'loss': 0.49208,
    'rewards/accuracies': 0.83125,
    'rewards/margins': 0.5386,
    'lr': 5e-6,
    'seconds_per_step': 13.07,
    'nonfinite': 0.0,
    'eval/loss': 0.4639,
    'eval/rewards/accuracies': 0.8711,
    'eval/rewards/accuracies_low': 0.8243,
    'eval/rewards/accuracies_high': 0.9067,
    'samples/kl': 1.5,
    'samples/kl_low': 1.0,
    'samples/kl_high': 2.0,
  }
  assert run_log.lines(40, row) == (
    'step     40  training  loss   0.4921  accuracy    0.831  margin   +0.539  '
    'lr 5.00e-06  s/step    13.07\n'
    'step     40  samples   kl      1.5 [1, 2]\n'
    'step     40  held out  loss   0.4639  accuracy    0.871 [0.824, 0.907]'
  )


def test_lines_say_what_was_skipped_and_survive_unknown_metrics():
  row = {'loss': math.nan, 'nonfinite': 0.4}
  assert run_log.lines(3, row).endswith('skipped 40 % of steps: not finite')
  assert '0.125' in run_log.lines(3, {'reward/whatever': 0.125})
  assert run_log.lines(3, {}) == ''


# The end.

ROWS = [
  {'step': 0, 'eval/loss': 0.6931, 'eval/rewards/accuracies': 0.0},
  {'step': 20, 'loss': 0.5},
  {'step': 40, 'samples/length': 30.0},
  {
    'step': 40,
    'eval/loss': 0.46394,
    'eval/rewards/accuracies': 0.8711,
    'eval/rewards/accuracies_low': 0.8243,
    'eval/rewards/accuracies_high': 0.9067,
    'eval/examples': 256,
  },
]


_SUMMARY = """
held out, 256 examples                  start        end   95 % at the end
  loss                                 0.6931     0.4639
  accuracy                             0.0000     0.8711   [0.8243, 0.9067]

own samples                             start        end   95 % at the end
  length, tokens                      30.0000    30.0000

steps    40, from 20 on in this process
time     9.7 min wall, 2.0 h CPU
memory   4.20 GB at most
metrics  runs/x/metrics.jsonl
"""


def test_summary():
  text = run_summary.summary(
    ROWS,
    seconds=580,
    cpu_seconds=7300,
    peak_bytes=4_200_000_000,
    files={'metrics': pathlib.Path('runs/x/metrics.jsonl')},
    resume_step=20,
  )
  assert text == _SUMMARY.strip()


def test_summary_of_a_run_without_evaluation():
  text = run_summary.summary(
    [], seconds=1.0, cpu_seconds=1.0, peak_bytes=0, files={}
  )
  assert text.startswith('steps') and 'held out' not in text


def test_usage_is_of_this_process():
  cpu, peak = run_summary.usage()
  held = bytearray(300_000_000)
  held[::4096] = b'1' * len(held[::4096])
  sum(range(2_000_000))
  later_cpu, later_peak = run_summary.usage()
  assert later_cpu > cpu
  assert 100_000_000 < later_peak < 100e9
  assert later_peak >= peak


def test_import_is_light():
  code = (
    'import sys; import dpo_jax.training.run_log, dpo_jax.training.curves; '
    "print([m for m in ('tensorboardX', 'wandb', 'matplotlib') "
    'if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert out.stdout == '[]\n'
