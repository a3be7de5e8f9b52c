"""GGUF files of every family that has them, against its Hugging Face folder.

Names are those of the `gguf` package, which llama.cpp's converter uses.
"""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

from dpo_jax import weights
from dpo_jax.weights import families
from tests.weights import peers

_F32 = gguf.GGMLQuantizationType.F32
# GGUF's name of an architecture, the peer, and what is other than in the peer's
# quirks because GGUF cannot say it.
_PLAIN = dict(
  attention_bias=False, rope_parameters=None, tie_word_embeddings=True
)
CASES = {
  'llama': ('llama', _PLAIN | dict(mlp_bias=False, hidden_act='silu')),
  'qwen2': ('qwen2', dict(use_sliding_window=False)),
  'qwen3': (
    'qwen3',
    _PLAIN | dict(use_sliding_window=False, layer_types=None),
  ),
  'gemma2': (
    'gemma2',
    _PLAIN | dict(query_pre_attn_scalar=12, layer_types=None),
  ),
  'gemma3': (
    'gemma3_text',
    _PLAIN
    | dict(
      query_pre_attn_scalar=12,
      final_logit_softcapping=None,
      layer_types=None,
      num_hidden_layers=7,
    ),
  ),
}


def test_every_family_with_gguf_is_tested():
  known = {n for n, f in families.FAMILIES.items() if f.gguf}
  # GPT-2 has its own test.
  assert known == {*CASES, 'gpt2'}


def _write(path, arch, peer, **fields):
  config = peer.config
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  ropes = config.rope_parameters
  writer.add_rope_freq_base(ropes.get('full_attention', ropes)['rope_theta'])
  if getattr(config, 'head_dim', None):
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
  for name, value in fields.items():
    getattr(writer, f'add_{name}')(value)
  (number,) = (k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
  names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
  for name, tensor in peer.state_dict().items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    module, part = name.rsplit('.', 1)
    value = tensor.numpy()
    if 'gemma' in arch and 'norm' in name:
      value = value + 1
    if arch == 'llama' and module.endswith(('q_proj', 'k_proj')):
      # Row j of a head's first half, then row j of its second.
      heads = value.reshape(-1, 2, config.head_dim // 2, *value.shape[1:])
      value = heads.swapaxes(1, 2).reshape(value.shape)
    writer.add_tensor(
      f'{names.get_name(module)}.{part}', np.ascontiguousarray(value)
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _fields(arch, peer):
  if arch == 'gemma2':
    config = peer.config
    return dict(
      sliding_window=config.sliding_window,
      attn_logit_softcapping=config.attn_logit_softcapping,
      final_logit_softcapping=config.final_logit_softcapping,
    )
  return {'sliding_window': 5} if arch == 'gemma3' else {}


@pytest.mark.parametrize('arch', CASES)
def test_a_gguf_file_is_what_its_folder_is(arch, tmp_path):
  name, changes = CASES[arch]
  peer = peers.make(name, **changes)
  with torch.no_grad():
    for p in peer.parameters():
      p.copy_(p.bfloat16())
  peer.save_pretrained(tmp_path / 'hf')
  _write(tmp_path / 'x.gguf', arch, peer, **_fields(arch, peer))
  config, params = weights.load(tmp_path / 'x.gguf')
  expected_config, expected = weights.load(tmp_path / 'hf')
  assert config == expected_config

  def same(path, a, b):
    # The file has offsets from 1 as bfloat16 + 1 in float32.
    lost = 2**-24 if 'gemma' in arch and 'norm' in str(path) else 0
    np.testing.assert_allclose(a, b, rtol=0, atol=lost, err_msg=str(path))

  jax.tree_util.tree_map_with_path(same, params, expected)


def test_transformers_reads_the_same_from_a_gguf_file(tmp_path):
  name, changes = CASES['gemma3']
  peer = peers.make(name, **changes)
  _write(tmp_path / 'x.gguf', 'gemma3', peer, **_fields('gemma3', peer))
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='x.gguf', dtype=torch.float32, config=peer.config
  )
  held = transformers.Gemma3ForCausalLM(peer.config)
  held.load_state_dict(again.state_dict())
  held.save_pretrained(tmp_path / 'hf')
  _, expected = weights.load(tmp_path / 'hf')
  _, params = weights.load(tmp_path / 'x.gguf')
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize('arch', ['gemma2', 'gemma3'])
def test_the_largest_gemmas_scale_scores_by_their_width(arch, tmp_path):
  layers = {'gemma2': 46, 'gemma3': 62}[arch]
  name, changes = CASES[arch]
  changes = changes | dict(num_hidden_layers=layers, query_pre_attn_scalar=8)
  peer = peers.make(name, **changes)
  peer.save_pretrained(tmp_path / 'hf')
  _write(tmp_path / 'x.gguf', arch, peer, **_fields(arch, peer))
  config = weights.read_config(tmp_path / 'x.gguf')
  assert config == weights.read_config(tmp_path / 'hf')
  assert config.attention_scale == 8**-0.5
