"""The model families whose checkpoints can be read and written."""

import dataclasses
import difflib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from dpo_jax import registry
from dpo_jax.models import config as model_config
from dpo_jax.weights import gemma, gpt2, gpt_neox, gptj, llama, mapping, qwen

# A config is written as the first family that can express it.
FAMILIES = {
  f.name: f._replace(
    hf=f.hf._replace(tensor_maps=(*f.hf.tensor_maps, mapping.SCORE))
  )
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
# Fields of config.json that do not affect what the model computes.
_IRRELEVANT = re.compile(
  r'_.*|architectures|auto_map|model_type|.*dtype|transformers_version|'
  r'use_cache|initializer_.*|.*_token_id|.*_token_index|.*(dropout|pdrop).*|'
  r'.*_init.*|pretraining_tp|task_specific_params|summary_.*|output_.*|'
  r'return_.*|tokenizer_class|gradient_checkpointing|id2label|label2id|'
  r'tie_word_embeddings|finetuning_task|problem_type|chunk_size_feed_forward|'
  r'inference_.*|attn_implementation|scale_attention_softmax_in_fp32|'
  r'attention_softmax_in_fp32|is_(encoder_)?decoder|num_labels|cross_.*'
)


def of_architecture(name: Any) -> mapping.Family:
  """The family of a GGUF file; ValueError names the closest if unknown."""
  known = {n: f for n, f in FAMILIES.items() if f.gguf}
  return registry.lookup(known, str(name), 'general.architecture')


def of_model_type(values: Mapping[str, Any]) -> mapping.Family:
  """The family of a config.json.

  For an unknown model_type a ValueError names the supported family that shares
  most fields, and the fields that this family lacks.
  """
  name = values.get('model_type')
  family = FAMILIES.get(name) if isinstance(name, str) else None
  if family and family.hf:
    return family
  closest = max(
    (f for f in FAMILIES.values() if f.hf and not f.hf.section),
    key=lambda f: _similarity(f, values),
  )
  unknown = ', '.join(
    f'{key} = {textwrap.shorten(repr(values[key]), 40)}'
    for key in sorted(_relevant(values) - _known(closest))
  )
  problem = (
    f'model_type {name!r} is not supported'
    if name is not None
    else "config.json has no 'model_type'"
  )
  raise ValueError(
    f'{problem}. By the fields of its config.json '
    f'the closest supported family is {closest.name!r}, '
    + (f'which has no {unknown}. ' if unknown else 'but the code differs. ')
    + f'Supported: {", ".join(sorted(FAMILIES))}.'
  )


def _relevant(values: Mapping[str, Any]) -> set[str]:
  """Names of the fields that affect the model and are not off."""
  return {
    key
    for key, value in values.items()
    if not _IRRELEVANT.fullmatch(key) and value not in (None, 0, [], {})
  }


def _known(family: mapping.Family) -> set[str]:
  return {*(f.name for f in family.hf.fields.values()), *family.hf.also_read}


def _similarity(family: mapping.Family, values: Mapping[str, Any]):
  """A sort key: fields shared less fields not shared, then similar names."""
  known = _known(family)
  shared, absent = known & values.keys(), known - values.keys()
  name = str(values.get('model_type'))
  alike = difflib.SequenceMatcher(None, family.name, name).ratio()
  return 2 * len(shared) - len(absent) - len(_relevant(values) - known), alike


def of_config(
  config: model_config.ModelConfig,
) -> tuple[mapping.Family, dict[str, Any]]:
  """A family that can express `config`, and the fields of its config.json.

  The ops of its Hugging Face format are bound to `config`. If no family can, a
  ValueError names the closest one and the fields that it cannot express.
  """
  misfits = {}
  for family in FAMILIES.values():
    if not family.hf or not family.hf.extra:
      continue
    try:
      values = mapping.write_config(family.hf, config)
      values |= mapping.write_head(family, config)
      read = mapping.read_config(family.hf, values)
    except ValueError as error:
      misfits[family.name] = [str(error)]
      continue
    differing = [
      f'{f.name} = {getattr(config, f.name)!r} (it has '
      f'{getattr(read, f.name)!r})'
      for f in dataclasses.fields(config)
      if getattr(config, f.name) != getattr(read, f.name)
    ]
    if not differing:
      return family._replace(hf=mapping.bind(family.hf, config)), values
    misfits[family.name] = differing
  closest = min(misfits, key=lambda name: len(misfits[name]))
  raise ValueError(
    'No supported model family can express this config. The closest is '
    f'{closest}: {", ".join(misfits[closest])}. Others: '
    f'{", ".join(name for name in misfits if name != closest)}.'
  )
