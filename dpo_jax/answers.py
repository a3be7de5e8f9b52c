"""Answers of two sides to the same prompts: sampled, of a file, or the data's.

A side is 'data' (the preferred completion of each record, or the only one), a
.jsonl file of answers, or a model: a training run's directory, or any URI of
weights.
"""

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dpo_jax import assets, build, data, models, tokenizers, weights
from dpo_jax import sampling as sampling_lib
from dpo_jax.data import order, store
from dpo_jax.evals import samples
from dpo_jax.training import run_inputs

DATA = 'data'
Answers = dict[str, str]  # Prompt -> answer, in the order of the prompts.


class Sampling(NamedTuple):
  """How models are sampled; options: those of `samples.generate`."""

  seed: int
  mesh: jax.sharding.Mesh
  dtype: str
  batch_size: int
  options: Mapping[str, Any]


class Prompts(NamedTuple):
  """Prompts of a data section: how many, and how many distinct ones before."""

  section: Mapping[str, Any]
  count: int
  skip: int


class Model(NamedTuple):
  """A side that is sampled: its tokenizer, and the records that it read."""

  uri: str
  tokenizer: tokenizers.Tokenizer
  config: models.ModelConfig
  records: store.TokenRecords
  chosen: list[int]

  def prompts(self) -> list[list[int]]:
    """Ids of the prompts."""
    return [self.records.prompt(i).tolist() for i in self.chosen]

  def texts(self) -> list[str]:
    """The prompts without BOS."""
    return [samples.text_of_prompt(p, self.tokenizer) for p in self.prompts()]

  def check(self, name: str, known: run_inputs.Inputs) -> None:
    """ValueError if the run in `known` began with other weights or records.

    name: of the side.
    """
    known.check_files(
      name, self.uri, functools.partial(assets.files_at, self.uri)
    )
    files = ', '.join(self.records.files)
    sha256 = self.records.fingerprint(extras=True)
    known.check('data', {f'data ({name})': run_inputs.Input(files, sha256)})

  def answers_of_data(self) -> Answers:
    """The preferred completion of each record, or the only one."""
    found = {}
    for text, i in zip(self.texts(), self.chosen):
      best = self.records.examples(i)[0][0]
      ids = self.records.completions(i)[best].tolist()
      found[text] = samples.text_of_sample(ids, self.tokenizer)[0]
    return found


def is_file(side: str) -> bool:
  """Whether a side is a file of answers."""
  return side.endswith('.jsonl')


def read_file(path: str) -> Answers:
  """The answers of rows {"prompt": text, "text": text}, as `sample` writes.

  ValueError that names the line for another row or a prompt that comes twice.
  """
  found = {}
  for where, row in assets.read_json_lines(assets.resolve(path)):
    row = row if isinstance(row, dict) else {}
    texts = [row.get(name) for name in ('prompt', 'text')]
    if not all(isinstance(text, str) for text in texts):
      raise ValueError(
        f'{where}: expected the fields prompt and text, both texts, as '
        f'`sample --out` writes; found: {", ".join(row) or "none"}.'
      )
    if texts[0] in found:
      raise ValueError(
        f'{where}: the prompt {texts[0][:60]!r} comes twice; one '
        'answer of each is compared.'
      )
    found[texts[0]] = texts[1]
  if not found:
    raise ValueError(f'{path} has no answers.')
  return found


def open_model(side: str, prompts: Prompts, max_new_tokens: int) -> Model:
  """A model with its prompts; ValueError for what does not fit together.

  side: a run's directory stands for the parameters that it ended with.
  """
  params = pathlib.Path(side) / 'params'
  uri = str(params) if params.is_dir() else side
  tokenizer = tokenizers.load(uri, model=uri)
  config = weights.read_config(uri)
  build.check_tokenizer(tokenizer, config)
  records = data.load(prompts.section, tokenizer=tokenizer)
  chosen = _distinct(records, prompts)
  model = Model(uri, tokenizer, config, records, chosen)
  sampling_lib.check(
    model.prompts(),
    config,
    max_new_tokens=max_new_tokens,
    eos_id=tokenizer.stop_ids,
  )
  return model


def _distinct(records: store.TokenRecords, prompts: Prompts) -> list[int]:
  """Records with distinct prompts, after as many as are skipped."""
  found = {}
  for i in order.unshuffled(records):
    found.setdefault(tuple(records.prompt(i).tolist()), int(i))
  chosen = list(found.values())[prompts.skip :][: prompts.count]
  if len(chosen) < prompts.count:
    raise ValueError(
      f'num_prompts is {prompts.count} after skip_prompts={prompts.skip}, but '
      f'the data has {len(found)} distinct prompts.'
    )
  return chosen


def of_model(
  model: Model,
  s: Sampling,
  temperatures: Sequence[float],
  side: int,
  folder: pathlib.Path,
) -> list[Answers]:
  """The model's answers at each temperature, kept in files of `folder`.

  side: 0 or 1; each has its own random keys. What has a file is not sampled
  again.
  """
  paths = [
    folder / f'answers_{"ab"[side]}_T{temperature:g}.jsonl'
    for temperature in temperatures
  ]
  params, texts = None, model.texts()
  key = jax.random.fold_in(jax.random.key(s.seed), side)
  for i, (temperature, path) in enumerate(zip(temperatures, paths)):
    if path.exists():
      continue
    if params is None:
      _, params = build.load_model(s.mesh, model.uri)
    rows = samples.generate(
      params,
      model.config,
      model.prompts(),
      model.tokenizer,
      key=jax.random.fold_in(key, i),
      num_samples=1,
      temperature=temperature,
      batch_size=s.batch_size,
      compute=models.Compute(dtype=s.dtype),
      **s.options,
    )
    found = [
      {'prompt': text, 'text': row['text']} for text, row in zip(texts, rows)
    ]
    samples.write_jsonl(path, found)
  return [read_file(str(path)) for path in paths]


def match(prompts: Iterable[str], answers: Answers, name: str) -> None:
  """ValueError unless the answers, of side `name`, are of these prompts."""
  prompts = dict.fromkeys(prompts)
  for one, other, verb in (
    (prompts, answers, 'has no answer to'),
    (answers, prompts, 'answers also'),
  ):
    missing = [prompt for prompt in one if prompt not in other]
    if missing:
      raise ValueError(
        f'{name} {verb} {len(missing)} of the prompts that are compared, such '
        f'as {missing[0][:60]!r}.'
      )
