"""Imports go downward only: the rooms of the house and their doors."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Each room may import those named, and modules of its own.
ROOTS = {'types', 'registry', 'assets', 'defaults'}
ROOMS = {
  'losses': ROOTS,
  'models': ROOTS,
  'tokenizers': ROOTS,
  'weights': ROOTS | {'models'},
  'chat': ROOTS | {'tokenizers'},
  'data': ROOTS | {'tokenizers', 'models', 'chat'},
  'sampling': ROOTS | {'models'},
  'training': ROOTS | {'models'},
}
METHODS = ROOTS | set(ROOMS) | {'methods', 'rewards', 'evals', 'judges'}
ENTRY_POINTS = {
  'train',
  'compare',
  'evaluate',
  'sample',
  'export',
  'judge',
  'pairs',
  'plan',
}
# What `train` is made of, each importing those before it.
TRAINING = (
  'compilation_cache',
  'data_sections',
  'settings',
  'sampling_settings',
  'online_settings',
  'build',
  'run_report',
  'run_actions',
  'run_dir',
  'online',
  'answers',
  'option_types',
  'method_options',
  'options',
  'option_values',
  'overrides',
  'pages',
  'cli',
)


def _allowed(path: pathlib.Path) -> set[str]:
  room = path.relative_to(ROOT / 'dpo_jax').parts[0].removesuffix('.py')
  if room in ROOTS:
    return ROOTS
  if room in ROOMS:
    return ROOMS[room] | {room}
  if room in ('methods', 'evals'):
    return METHODS
  if room in ('rewards', 'judges'):
    return METHODS - {'evals'}
  if room in TRAINING:
    return METHODS | set(TRAINING[: TRAINING.index(room)])
  if room == 'iterative':  # Runs two of the other commands.
    return METHODS | set(TRAINING) | {'pairs', 'train'}
  assert room in ENTRY_POINTS | {'__init__'}, (
    f'{room} has no place in the house'
  )
  return METHODS | set(TRAINING)


def _rooms_imported(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    parts = [name.split('.') for name in names]
    assert not any(p[0] in ('configs', 'experiments') for p in parts), path
    found |= {p[1] for p in parts if p[0] == 'dpo_jax'}
  return found


FILES = sorted((ROOT / 'dpo_jax').rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
  assert _rooms_imported(path) <= _allowed(path)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_have_one_noun(path):
  assert len(path.read_text().splitlines()) <= 350
