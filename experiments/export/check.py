"""Does an exported policy say in transformers what it says here?

  python -m experiments.export.check runs/quickstart

Exports the run, scores its held-out completions with transformers from the
exported folder and with what evaluates training from the run's parameters, and
compares log-probabilities token by token. See README.md. Writes quickstart.json
(the run's name) beside this file, or --out.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch
import tqdm
import transformers

from dpo_jax import (
  assets,
  data,
  export,
  methods,
  models,
  settings,
  tokenizers,
  types,
  weights,
)
from dpo_jax.data import batches, store
from dpo_jax.training import metrics, sharding
from dpo_jax.training import step as steps_lib

# In nats, of one token.
TOLERANCE = 1e-4
BATCH = 16


def score_here(
  s: settings.TrainSettings,
  params_dir: pathlib.Path,
  records: store.TokenRecords,
) -> np.ndarray:
  """f64[tokens] of all records, NaN where the evaluation scores none."""
  config, params = weights.load(params_dir)
  method = methods.build(s.method)(models.policy(config, s.model.compute))
  score = steps_lib.make_score(method)
  place = np.arange(len(records.tokens), dtype=np.int32)
  records = dataclasses.replace(records, extras={'place': place})
  (packed,) = batches.eval_batches(records, s.eval_rows, **s.eval_batches)
  params = sharding.replicate(s.mesh, params)
  out = np.full(len(place), np.nan)
  made = batches.iterate(packed, s.mesh)
  for batch in tqdm.tqdm(made, 'here', len(packed)):
    bare = batch.replace(extras_RxN={})
    logps = score(params, types.Frozen(), bare, jax.random.key(0))['logps']
    real = np.asarray(batch.score_weight_RxN) > 0
    out[np.asarray(batch.extras_RxN['place'])[real]] = np.asarray(logps)[real]
  return out


def score_there(
  folder: pathlib.Path, records: store.TokenRecords, wanted: np.ndarray
) -> np.ndarray:
  """The same with transformers; texts of one length together, unpadded."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  by_length = {}
  for i in range(len(records)):
    prompt = records.prompt(i).tolist()
    for span in records.completion_spans(i):
      if wanted[span].any():
        ids = prompt + records.tokens[span].tolist()
        by_length.setdefault(len(ids), []).append((ids, span))
  out = np.full(len(records.tokens), np.nan)
  for texts in tqdm.tqdm(by_length.values(), 'transformers'):
    for begin in range(0, len(texts), BATCH):
      batch = texts[begin : begin + BATCH]
      tokens = torch.tensor([ids for ids, _ in batch])
      with torch.no_grad():
        logps = model(tokens).logits[:, :-1].log_softmax(-1)
      found = logps.gather(2, tokens[:, 1:, None])[..., 0].numpy()
      for row, (ids, span) in zip(found, batch):
        # The first token of all is predicted by nothing.
        size = min(span.stop - span.start, len(ids) - 1)
        out[span.stop - size : span.stop] = row[len(row) - size :]
  return np.where(wanted, out, np.nan)


def compare(run_dir: pathlib.Path) -> dict:
  """Differences in nats, and the means that training had logged."""
  config = assets.read_json(run_dir / 'config.json')
  run = settings.of(config)
  with tempfile.TemporaryDirectory() as temp:
    folder = pathlib.Path(temp) / 'exported'
    export.export(export.choose(str(run_dir), checkpoint='params'), folder)
    tokenizer = tokenizers.load(folder)
    records = data.load(run.eval_data, tokenizer=tokenizer)
    here = score_here(run, run_dir / 'params', records)
    wanted = ~np.isnan(here)
    there = score_there(folder, records, wanted)
  apart = np.abs(here - there)[wanted]
  return {
    'tokens': int(wanted.sum()),
    'apart_max': float(apart.max()),
    'apart_mean': float(apart.mean()),
    'logps_mean': {
      'here': float(here[wanted].mean()),
      'transformers': float(there[wanted].mean()),
    },
    'chosen': {
      'logged': _logged(run_dir),
      'transformers': _mean_of_preferred(records, there),
    },
  }


def _logged(run_dir: pathlib.Path) -> float | None:
  rows = metrics.read_jsonl(run_dir / 'metrics.jsonl')
  found = [row.get('eval/logps/chosen') for row in rows]
  return next((x for x in reversed(found) if x is not None), None)


def _mean_of_preferred(records: store.TokenRecords, logps) -> float:
  """The mean over examples of the sum over the preferred completion."""
  sums = []
  for i in range(len(records)):
    spans = records.completion_spans(i)
    sums += [logps[spans[example[0]]] for example in records.examples(i)]
  return float(np.mean([np.nansum(x) for x in sums if not np.isnan(x).all()]))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('run', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  found = compare(args.run)
  found = {
    'command': f'python -m experiments.export.check runs/{args.run.name}',
    'tolerance': TOLERANCE,
    **found,
    'versions': {
      name: importlib.metadata.version(name)
      for name in ('jax', 'torch', 'transformers', 'safetensors')
    },
  }
  text = json.dumps(found, indent=2) + '\n'
  print(text)
  out = args.out or pathlib.Path(__file__).with_name(f'{args.run.name}.json')
  with assets.atomic_path(out) as temp:
    temp.write_text(text, 'utf-8')
  if not found['apart_max'] <= TOLERANCE:
    sys.exit(f'They are {found["apart_max"]} nats apart.')


if __name__ == '__main__':
  main()
