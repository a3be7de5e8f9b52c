"""experiments/best_of.py: the best of the first N, and the data's answers."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet

from experiments import best_of

BEGIN = '\n\nHuman: what {}?\n\nAssistant:'


def test_files_of_answers(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  rows = [
    {
      'prompt': BEGIN.format(i),
      'completions': [f' {k}' for k in range(64)],
      'scores': rng.permutation(64).tolist(),
    }
    for i in range(3)
  ]
  path = tmp_path / 'pairs.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  data = tmp_path / 'data' / 'default' / 'test' / '0000.parquet'
  data.parent.mkdir(parents=True)
  table = {
    name: [BEGIN.format(i) + f' {name} {i}' for i in range(5)]
    for name in ('chosen', 'rejected')
  }
  pyarrow.parquet.write_table(pyarrow.table(table), data)
  flags = f'--source=hh --path={tmp_path}/data --completions={path}'
  argv = ['best_of', *flags.split(), '--counts', '1', '16', '64']
  monkeypatch.setattr('sys.argv', argv)
  best_of.main()
  for n in (1, 16, 64):
    lines = (tmp_path / f'best_{n}.jsonl').read_text().splitlines()
    for row, line in zip(rows, lines, strict=True):
      found = json.loads(line)
      assert found['prompt'] == row['prompt']
      assert row['scores'][int(found['text'])] == max(row['scores'][:n])
  chosen = (tmp_path / 'chosen.jsonl').read_text().splitlines()
  texts = [json.loads(line)['text'] for line in chosen]
  assert texts == [f' chosen {i}' for i in range(3)]
