"""The model card of an exported model: base, training, results, usage.

Markdown that begins with the YAML fields that the Hugging Face hub reads.
"""

import importlib.metadata
import math
import pprint
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax import methods

PAGE = 'training_config.py'
Rows = Sequence[Mapping[str, float]]

_PAGE = '''"""The config that trained this model.

Read by {version}:

  python -m dpo_jax.train --config {page} --workdir runs/{name}
"""

from ml_collections import config_dict


def get_config():
  return config_dict.ConfigDict(_VALUES)


_VALUES = {values}
'''
_CARD = """---
{head}
---

# {name}

{summary} Written by {version}.

{facts}
{results}## Use

```python
import transformers

model = transformers.{auto}.from_pretrained('{name}')
tokenizer = transformers.AutoTokenizer.from_pretrained('{name}')
```

'{name}' stands for this folder or its name on the hub.

{reproduce}## Terms

Those of the base model, and of what it was trained on.
"""


def of_weights(uri: str, *, name: str, shape: str, head: str) -> str:
  """The card of a converted model; `shape` describes its sizes.

  head: that of its `ModelConfig`.
  """
  return _fill(
    name=name,
    base=uri,
    head=head,
    tags=(),
    summary=f'`{uri}`, converted without training.',
    facts={'Base model': f'`{uri}`', 'Model': shape},
  )


def of_run(
  config: Mapping[str, Any],
  rows: Rows,
  *,
  data: Mapping[str, Mapping[str, Any]],
  name: str,
  shape: str,
  step: int,
) -> str:
  """The card of a run's model at `step`.

  config: the run's. rows: of its metrics.jsonl. data: title, such as 'Training
  data' -> options. shape: a description of the model's sizes.
  """
  base, method = config['model']['uri'], dict(config['method'])
  kind = method.pop('name')
  loss = method.pop('loss', kind)
  facts = {
    'Base model': f'`{base}`',
    **_reference(config),
    'Objective': f'{loss}: {_options(method)}' if method else loss,
    **{what: _options(options) for what, options in data.items()},
    **_steps(config, step),
    'Optimizer': _options(config['optimizer']),
    'Schedule': _options(config['schedule']),
    'Model': shape,
  }
  return _fill(
    name=name,
    base=base,
    head=methods.head(config['method']),
    tags=(loss,),
    summary=f'`{base}`, trained with {loss}.',
    facts=facts,
    results=_results(rows, step),
    reproduce=f'## Reproduce\n\n```\npython -m dpo_jax.train --config {PAGE} '
    f'--workdir runs/{name}\n```\n\n`{PAGE}` has all values of the run, '
    'model and data included.\n\n',
  )


def _steps(config: Mapping[str, Any], step: int) -> dict[str, str]:
  """The card's rows that say what a run's steps were made of."""
  planned = f'planned: {_length(config)}'
  if config.get('rollouts') is None:
    batch = config['train_batches']['batch_size']
    return {'Steps': f'{step}, of {batch} examples each; {planned}'}
  judge = 'reward' if config.get('reward') is not None else 'preference'
  value = config[judge]
  return {
    judge.title(): value if isinstance(value, str) else _options(value),
    'Rollouts': _options(config['rollouts']),
    'Steps': f'{step}; {planned}',
  }


def _reference(config: Mapping[str, Any]) -> dict[str, str]:
  """The card's row that names the reference; {} if the method has none."""
  if not methods.has_reference(config['method']):
    return {}
  model = config['model']
  return {'Reference': f'`{model.get("reference") or model["uri"]}`'}


def _length(config: Mapping[str, Any]) -> str:
  steps, epochs = config.get('steps'), config.get('epochs')
  if steps is not None:
    return f'{steps} steps'
  return 'one epoch' if epochs in (None, 1) else f'{epochs} epochs'


def page(config: Mapping[str, Any], *, name: str) -> str:
  """A config page with a run's values, for training it again."""
  values = pprint.pformat(dict(config), width=78, sort_dicts=True)
  return _PAGE.format(version=version(), page=PAGE, name=name, values=values)


def version() -> str:
  """The versions of dpo_jax and jax, such as 'dpo_jax 1.0 and jax 0.10'."""
  return ' and '.join(_version(name) for name in ('dpo_jax', 'jax'))


def _version(name: str) -> str:
  try:
    return f'{name} {importlib.metadata.version(name)}'
  except importlib.metadata.PackageNotFoundError:
    return f'{name} from its sources'


def _fill(
  *, name, base, head, tags, summary, facts, results='', reproduce=''
) -> str:
  pipeline, auto = {
    'logits': ('text-generation', 'AutoModelForCausalLM'),
    'scalar': ('text-classification', 'AutoModelForSequenceClassification'),
  }[head]
  fields = ['library_name: transformers', f'pipeline_tag: {pipeline}']
  hub = re.fullmatch(r'hf://(?:models/)?([\w.-]+/[\w.-]+).*', base)
  if hub:
    fields.append(f'base_model: {hub[1]}')
  fields += ['tags:', *(f'- {tag}' for tag in ('dpo_jax', *tags))]
  lines = ['| | |', '|---|---|']
  lines += [f'| {what} | {_cell(value)} |' for what, value in facts.items()]
  return _CARD.format(
    head='\n'.join(fields),
    auto=auto,
    name=name,
    summary=summary,
    version=version(),
    facts='\n'.join(lines) + '\n',
    results=results,
    reproduce=reproduce,
  )


def _cell(text: str) -> str:
  return text.replace('|', r'\|').replace('\n', ' ')


def _options(values: Mapping[str, Any]) -> str:
  """The options that are not None, as 'name=dpo, beta=0.1'."""
  given = {k: v for k, v in values.items() if v is not None}
  return ', '.join(f'{k}={v}' for k, v in given.items())


def _results(rows: Rows, step: int) -> str:
  """Tables of the first and last held-out and sample metrics up to `step`."""
  out = ''
  for prefix, title in (('eval/', 'Held out'), ('samples/', 'Own samples')):
    known = [
      row
      for row in rows
      if row['step'] <= step and any(name.startswith(prefix) for name in row)
    ]
    if known:
      out += f'{_table(known[0], known[-1], prefix, title)}\n'
  return '## Results\n\n' + (out or f'No evaluation up to step {step}.\n\n')


def _table(first: Mapping, last: Mapping, prefix: str, title: str) -> str:
  """One metric per line, with the 95 % interval of the last value."""
  counted = f'{prefix}examples'
  if counted in last:
    title += f', {last[counted]:.0f} examples'
  start = f'step {first["step"]}'
  end = f'step {last["step"]}'
  lines = [
    f'| {title} | {start} | {end} | 95 % interval |',
    '|---|--:|--:|--:|',
  ]
  for name, value in last.items():
    if not name.startswith(prefix) or name == counted:
      continue
    if name.endswith(('_low', '_high')):
      continue
    before = first.get(name, math.nan)
    ends = [last.get(f'{name}_{end}') for end in ('low', 'high')]
    interval = '' if None in ends else '{:.4f} to {:.4f}'.format(*ends)
    cells = f'{before:.4f} | {value:.4f} | {interval}'
    lines.append(f'| {name.removeprefix(prefix)} | {cells} |')
  return '\n'.join(lines) + '\n'
