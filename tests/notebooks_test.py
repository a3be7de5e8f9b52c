"""experiments/notebooks: each runs from its first cell to its last."""

import re

import nbformat
import pytest

from experiments.notebooks import execute


def _read(name):
  return nbformat.read(execute.FOLDER / f'{name}.ipynb', as_version=4)


def test_all_are_executed_by_name():
  files = {path.stem for path in execute.FOLDER.glob('*.ipynb')}
  assert files == {*execute.NAMES}


@pytest.mark.parametrize('name', execute.NAMES)
def test_the_form_of_a_notebook(name):
  book = _read(name)
  nbformat.validate(book)
  first, setup = book.cells[:2]
  assert f'/experiments/notebooks/{name}.ipynb)' in first.source
  assert '%pip install' in setup.source and 'jax.devices()' in setup.source
  code = [cell.source for cell in book.cells if cell.cell_type == 'code']
  assert len(re.findall(r"^VARIANT = '", '\n'.join(code), re.MULTILINE)) == 1


@pytest.mark.long
@pytest.mark.download
@pytest.mark.parametrize('name', execute.NAMES)
def test_a_notebook_runs(name, tmp_path):
  book = execute.execute(name, tmp_path, tiny=True)
  code = [cell for cell in book.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
  kinds = {o.output_type for cell in code for o in cell.outputs}
  assert 'error' not in kinds
