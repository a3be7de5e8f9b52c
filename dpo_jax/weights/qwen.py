"""Qwen 2 and 2.5: biases on q, k and v. Qwen 3: norms of q and k instead."""

from dpo_jax.models import config as model_config
from dpo_jax.weights import llama, mapping, rotary, sliding_windows

_Field = mapping.Field


def _windows(fields: dict, values: dict) -> dict:
  """If windows are used, layers from max_window_layers on are local."""
  first = values.get('max_window_layers', 28)
  default = [i >= first for i in range(fields['num_layers'])]
  used = values.get('use_sliding_window', False)
  window = values.get('sliding_window', 4096) if used else None
  return sliding_windows.read(values, default, window)


def _complete_2(fields: dict, values: dict, reader) -> dict:
  return {
    **llama.complete(fields, values),
    **_windows(fields, values),
    'attention_bias': True,
  }


def _complete_3(fields: dict, values: dict, reader) -> dict:
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
    'layer_types': sliding_windows.types_of(config),
  }


def _complete_gguf_3(fields: dict, values: dict, reader) -> dict:
  return llama.complete_gguf(fields, values, reader) | {'qk_norm': True}


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
_HF_2 = mapping.Format(
  fields=_FIELDS,
  also_read=_ALSO,
  complete=_complete_2,
  extra=_extra,
  prefix='model.',
  ignored=llama.IGNORED,
  tensor_maps=llama.tensor_maps(),
)
_HF_3 = _HF_2._replace(
  fields={
    **_FIELDS,
    'head_dim': _Field('head_dim', 128),
    'attention_bias': _Field('attention_bias', False),
  },
  complete=_complete_3,
)
_GGUF_2 = mapping.Format(
  fields=llama.GGUF_FIELDS,
  complete=llama.complete_gguf,
  tensor_maps=llama.gguf_tensor_maps(),
)

QWEN2 = mapping.Family(
  'qwen2', 'Qwen2ForCausalLM', 'Qwen2ForSequenceClassification', _HF_2, _GGUF_2
)
QWEN3 = mapping.Family(
  'qwen3',
  'Qwen3ForCausalLM',
  'Qwen3ForSequenceClassification',
  _HF_3,
  _GGUF_2._replace(complete=_complete_gguf_3),
)
