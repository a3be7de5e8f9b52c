"""The families of checkpoints that can be read and written."""

import dataclasses
import difflib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from dpo_jax import registry
from dpo_jax.models import config as model_config
from dpo_jax.weights import gemma, gpt2, gpt_neox, gptj, llama, qwen, tables

# A config is written as the first that can express it.
FAMILIES = {
  f.name: f
  for f in (
    llama.FAMILY,
    llama.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3_TEXT,
    gemma.GEMMA3,
    gptj.FAMILY,
    gpt_neox.FAMILY,
    gpt2.FAMILY,
  )
}
# Fields of config.json that say nothing of a model's shape.
_SILENT = re.compile(
  r'_.*|architectures|auto_map|model_type|.*dtype|transformers_version|'
  r'use_cache|initializer_.*|.*_token_id|.*_token_index|.*(dropout|pdrop).*|'
  r'.*_init.*|pretraining_tp|task_specific_params|summary_.*|output_.*|'
  r'return_.*|tokenizer_class|gradient_checkpointing|id2label|label2id|'
  r'tie_word_embeddings|finetuning_task|problem_type|chunk_size_feed_forward|'
  r'inference_.*|attn_implementation|scale_attention_softmax_in_fp32|'
  r'attention_softmax_in_fp32|is_(encoder_)?decoder|num_labels|cross_.*'
)


def of_architecture(name: Any) -> tables.Family:
  """The family of a GGUF file; ValueError with the closest one if unknown."""
  known = {n: f for n, f in FAMILIES.items() if f.gguf}
  return registry.lookup(known, str(name), 'general.architecture')


def of_model_type(values: Mapping[str, Any]) -> tables.Family:
  """The family of a config.json.

  ValueError for unknown ones, with the one that shares most of the fields, and
  those that it does not share.
  """
  name = values.get('model_type')
  family = FAMILIES.get(name) if isinstance(name, str) else None
  if family and family.hf:
    return family
  closest = max(
    (f for f in FAMILIES.values() if f.hf and not f.hf.section),
    key=lambda f: _likeness(f, values),
  )
  strange = ', '.join(
    f'{key} = {textwrap.shorten(repr(values[key]), 40)}'
    for key in sorted(_on(values) - _known(closest))
  )
  said = (
    f'model_type {name!r} is not supported'
    if name is not None
    else "config.json has no 'model_type'"
  )
  raise ValueError(
    f'{said}. By the fields of its config.json '
    f'the closest that is supported is {closest.name!r}, '
    + (f'which has no {strange}. ' if strange else 'whose code it is not. ')
    + f'Supported: {", ".join(sorted(FAMILIES))}.'
  )


def _on(values: Mapping[str, Any]) -> set[str]:
  """Fields that say something of the model, and are not off."""
  return {
    key
    for key, value in values.items()
    if not _SILENT.fullmatch(key) and value not in (None, 0, [], {})
  }


def _known(family: tables.Family) -> set[str]:
  return {*(f.name for f in family.hf.fields.values()), *family.hf.also}


def _likeness(family: tables.Family, values: Mapping[str, Any]):
  """Shared less other fields, then the likeness of the names."""
  known = _known(family)
  shared, absent = known & values.keys(), known - values.keys()
  name = str(values.get('model_type'))
  alike = difflib.SequenceMatcher(None, family.name, name).ratio()
  return 2 * len(shared) - len(absent) - len(_on(values) - known), alike


def of_config(
  config: model_config.ModelConfig,
) -> tuple[tables.Family, dict[str, Any]]:
  """A family whose config.json can say all of `config`, and what it says.

  The ops of its layout are bound to `config`. ValueError with what the closest
  family says instead, if none can.
  """
  misfits = {}
  for family in FAMILIES.values():
    if not family.hf or not family.hf.extra:
      continue
    try:
      values = tables.write_config(family.hf, config)
      read = tables.read_config(family.hf, values)
    except ValueError as error:
      misfits[family.name] = [str(error)]
      continue
    differing = [
      f'{f.name} = {getattr(config, f.name)!r} (it means '
      f'{getattr(read, f.name)!r})'
      for f in dataclasses.fields(config)
      if getattr(config, f.name) != getattr(read, f.name)
    ]
    if not differing:
      return family._replace(hf=tables.bind(family.hf, config)), values
    misfits[family.name] = differing
  closest = min(misfits, key=lambda name: len(misfits[name]))
  raise ValueError(
    'No family of checkpoints can express this config. The closest is '
    f'{closest}: {", ".join(misfits[closest])}. Others: '
    f'{", ".join(name for name in misfits if name != closest)}.'
  )
