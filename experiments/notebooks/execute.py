"""Executes notebooks, and saves them with what their cells put out.

  python -m experiments.notebooks.execute quickstart objective
  python -m experiments.notebooks.execute --tiny --out=/tmp/notebooks

Without names all of them; --tiny: as variants of two steps. Runs are in runs/
of the current directory. Needs `pip install -e '.[notebooks]'`.
"""

import argparse
import pathlib
import re

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent
NAMES = ('quickstart', 'objective', 'frontier')
_VARIANT = re.compile(r"^VARIANT = '\w*'", re.MULTILINE)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', help=', '.join(NAMES))
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  args = parser.parse_args()
  unknown = {*args.names} - {*NAMES}
  if unknown:
    parser.error(f'no notebook {min(unknown)!r}; there are {", ".join(NAMES)}')
  args.out.mkdir(parents=True, exist_ok=True)
  for name in args.names or NAMES:
    book = execute(name, pathlib.Path.cwd(), tiny=args.tiny)
    nbformat.write(book, args.out / f'{name}.ipynb')
    print(f'{name}: executed')


def execute(
  name: str, folder: pathlib.Path, *, tiny: bool = False
) -> nbformat.NotebookNode:
  """The notebook with outputs; nbclient's CellExecutionError if a cell fails.

  folder: the directory that its cells run in.
  """
  book = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  if tiny:
    for cell in book.cells:
      cell.source = _VARIANT.sub("VARIANT = 'tiny'", cell.source)
  client = nbclient.NotebookClient(
    book,
    timeout=None,
    # Of a bar what is left at its end.
    coalesce_streams=True,
    record_timing=False,
    kernel_name='python3',
    resources={'metadata': {'path': str(folder)}},
  )
  client.execute()
  return book


if __name__ == '__main__':
  main()
