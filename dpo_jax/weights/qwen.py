"""Qwen 2 and 2.5: biases on q, k, v. Qwen 3: norms of q and k instead."""

from dpo_jax.models import config as model_config
from dpo_jax.weights import llama, rotary, tables, windows

_Field = tables.Field


def _windows(fields: dict, values: dict) -> dict:
  """The layers from max_window_layers on are local, if any are."""
  first = values.get('max_window_layers', 28)
  default = [i >= first for i in range(fields['num_layers'])]
  used = values.get('use_sliding_window', False)
  window = values.get('sliding_window', 4096) if used else None
  return windows.read(values, default, window)


def _complete_2(fields: dict, values: dict, source) -> dict:
  return {
    **llama.complete(fields, values),
    **_windows(fields, values),
    'attention_bias': True,
  }


def _complete_3(fields: dict, values: dict, source) -> dict:
  return {
    **llama.complete(fields, values),
    **_windows(fields, values),
    'attention_out_bias': fields['attention_bias'],
    'qk_norm': True,
  }


def _extra(config: model_config.ModelConfig) -> dict:
  local = (*config.local_layers, True)
  return rotary.write(config) | {
    'use_sliding_window': config.window is not None,
    'sliding_window': config.window,
    'max_window_layers': local.index(True)
    if any(local[:-1])
    else config.num_layers,
    'layer_types': windows.types_of(config),
  }


def _complete_gguf_3(fields: dict, values: dict, source) -> dict:
  return llama.complete_gguf(fields, values, source) | {'qk_norm': True}


_FIELDS = llama.FIELDS | {
  'max_positions': _Field('max_position_embeddings', 32768)
}
_ALSO = (
  *rotary.READS,
  'use_sliding_window',
  'sliding_window',
  'max_window_layers',
  'layer_types',
)
_HF_2 = tables.Layout(
  fields=_FIELDS,
  also=_ALSO,
  complete=_complete_2,
  extra=_extra,
  prefix='model.',
  ignored=llama.IGNORED,
  rules=llama.rules(),
)
_HF_3 = _HF_2._replace(
  fields={
    **_FIELDS,
    'head_dim': _Field('head_dim', 128),
    'attention_bias': _Field('attention_bias', False),
  },
  complete=_complete_3,
)
_GGUF_2 = tables.Layout(
  fields=llama.GGUF_FIELDS,
  complete=llama.complete_gguf,
  rules=llama.gguf_rules(),
)

QWEN2 = tables.Family('qwen2', 'Qwen2ForCausalLM', _HF_2, _GGUF_2)
QWEN3 = tables.Family(
  'qwen3',
  'Qwen3ForCausalLM',
  _HF_3,
  _GGUF_2._replace(complete=_complete_gguf_3),
)
