"""Real files of other projects, each by the command that docs/data.md shows.

Run where $DPO_JAX_SHARED_DATA names a folder that holds them.
"""

import os
import pathlib
import re
import shlex

import pytest

from dpo_jax import (
  assets,
  cli,
  data,
  options,
  overrides,
  pages,
  settings,
  tokenizers,
)

ROOT = pathlib.Path(__file__).parents[1]
HELD = os.environ.get('DPO_JAX_SHARED_DATA')
pytestmark = pytest.mark.skipif(
  not HELD, reason='DPO_JAX_SHARED_DATA names no folder with the files'
)
# Rows of the table -> its files, and how many records they give: those that are
# usable by what the sources say of them, counted by other code.
FILES = {
  'IMDb': {'imdb': (25_000, 25_000)},
  'Anthropic-HH': {'hh': (4_191, 449)},
  "UltraFeedback's": {'ultrafeedback/train_clean.jsonl.gz': 994},
  'FineGrainedRLHF': {'finegrained_rlhf/dev_feedback.json.gz': 488},
  'PandaLM': {'pandalm/testset-v1.json.gz': 836},
  "LLaMA-Factory's alpaca": {'llamafactory/alpaca_en_demo.json.gz': 999},
  "LLaMA-Factory's pairs": {
    'llamafactory/dpo_en_demo.json.gz': 300,
    'llamafactory/dpo_zh_demo.json.gz': 300,
  },
  "LLaMA-Factory's calls": {
    'llamafactory/glaive_toolcall_en_demo.json.gz': 300
  },
  "LLaMA-Factory's KTO": {'llamafactory/kto_en_demo.json.gz': 300},
  "LLaMA-Factory's `v1`": {'llamafactory/v1_dpo_demo.jsonl.gz': 10},
}


def commands():
  """{row of the table: its options}."""
  text = (ROOT / 'docs' / 'data.md').read_text('utf-8')
  table = text.partition('### Files of other projects')[2]
  rows = re.findall(r'^\| (.*) \| `(--config.*)` \|$', table, re.MULTILINE)
  return dict(rows)


def sections(command, path):
  """The data sections of a command, with the file in its place."""
  words = shlex.split(re.sub('FILE|FOLDER', str(path), command))
  page = 'configs/dpo.py'
  if words[0] == '--config':
    _, page, *words = words
  _, given = cli.split(words)
  given['model.uri'] = 'given'
  config = pages.load(page).config
  config, _ = overrides.apply(config, given, options.TRAINING)
  run = settings.of(config)
  return run.train_data, run.eval_data


CASES = [(row, file) for row, files in FILES.items() for file in files]


@pytest.mark.parametrize(('row', 'file'), CASES)
def test_a_file_loads_with_the_command_that_is_shown(row, file):
  (command,) = (c for r, c in commands().items() if r.startswith(row))
  tokenizer = tokenizers.load(assets.SMOLLM2)
  path = pathlib.Path(HELD) / file
  given = sections(command, path)
  counts = [len(data.load(part, tokenizer=tokenizer)) for part in given]
  expected = FILES[row][file]
  if isinstance(expected, tuple):
    assert tuple(counts) == expected
  else:
    # One file, split by its prompts.
    assert sum(counts) == expected and min(counts) > 0


def test_every_row_of_the_table_is_tried():
  assert len(commands()) == len(FILES)
