"""GGUF files against `gguf` itself and against `transformers`."""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util

from dpo_jax import weights
from dpo_jax.models import config as model_config
from dpo_jax.models import presets, specs

_Q = gguf.GGMLQuantizationType
_D, _F, _V, _HEADS, _KV, _HEAD = 64, 96, 40, 4, 2, 16


def _llama_tensors(rng, *, biases=False, untied=True):
  """float32 tensors as a llama file names them, shaped [out, in]."""
  shapes = {'token_embd.weight': (_V, _D), 'output_norm.weight': (_D,)}
  if untied:
    shapes['output.weight'] = (_V, _D)
  for i in range(2):
    matrices = {
      'attn_q': (_HEADS * _HEAD, _D),
      'attn_k': (_KV * _HEAD, _D),
      'attn_v': (_KV * _HEAD, _D),
      'attn_output': (_D, _HEADS * _HEAD),
      'ffn_gate': (_F, _D),
      'ffn_up': (_F, _D),
      'ffn_down': (_D, _F),
    }
    for name, shape in matrices.items():
      shapes[f'blk.{i}.{name}.weight'] = shape
      if biases:
        shapes[f'blk.{i}.{name}.bias'] = shape[:1]
    for name in ('attn_norm', 'ffn_norm'):
      shapes[f'blk.{i}.{name}.weight'] = (_D,)
  return {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}


def _write(path, tensors, *, arch='llama', kind=_Q.F32, **fields):
  """Writes a file with its matrices quantised; returns what they then hold."""
  writer = gguf.GGUFWriter(path, arch)
  common = {
    'block_count': 2,
    'context_length': 128,
    'embedding_length': _D,
    'feed_forward_length': _F,
    'head_count': _HEADS,
  }
  if arch == 'llama':
    common |= {'head_count_kv': _KV, 'layer_norm_rms_eps': 1e-5}
    common |= {'rope_dimension_count': _HEAD, 'rope_freq_base': 5e5}
  else:
    common['layer_norm_eps'] = 1e-5
  for name, value in (common | fields).items():
    if value is not None:
      getattr(writer, f'add_{name}')(value)
  held = {}
  for name, value in tensors.items():
    used = kind if value.ndim == 2 else _Q.F32
    stored = gguf.quants.quantize(value, used)
    held[name] = gguf.quants.dequantize(stored, used).reshape(value.shape)
    writer.add_tensor(name, stored, raw_dtype=used)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return held


def _interleaved_to_halves(rows):
  """Row 2j of a head is row j of its first half, 2j + 1 of its second."""
  heads = rows.reshape(-1, _HEAD, *rows.shape[1:])
  return np.concatenate([heads[:, 0::2], heads[:, 1::2]], 1).reshape(rows.shape)


@pytest.mark.parametrize(
  'kind',
  [
    *(_Q.F32, _Q.F16, _Q.BF16, _Q.Q8_0, _Q.Q4_0, _Q.Q4_1, _Q.Q5_0, _Q.Q5_1),
    _Q.MXFP4,
  ],
  ids=lambda kind: kind.name,
)
def test_llama_tensors_equal_what_gguf_dequantises(tmp_path, kind):
  tensors = _llama_tensors(np.random.default_rng(0), biases=True)
  held = _write(tmp_path / 'x.gguf', tensors, kind=kind)
  config, params = weights.load(tmp_path / 'x.gguf')
  assert config == model_config.ModelConfig(
    vocab_size=_V,
    num_layers=2,
    d_model=_D,
    num_heads=_HEADS,
    num_kv_heads=_KV,
    head_dim=_HEAD,
    d_ff=_F,
    max_positions=128,
    norm_eps=1e-5,
    rope_theta=5e5,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
  )
  flat = traverse_util.flatten_dict(params, sep='/')
  np.testing.assert_array_equal(flat['unembed/kernel'], held['output.weight'])
  np.testing.assert_array_equal(flat['embed/tokens'], held['token_embd.weight'])
  names = {'attention/q': 'attn_q', 'attention/k': 'attn_k'}
  names |= {'attention/v': 'attn_v', 'attention/o': 'attn_output'}
  names |= {f'mlp/{x}': f'ffn_{x}' for x in ('gate', 'up', 'down')}
  for i in range(2):
    for ours, theirs in names.items():
      weight = held[f'blk.{i}.{theirs}.weight']
      bias = held[f'blk.{i}.{theirs}.bias']
      if theirs in ('attn_q', 'attn_k'):
        weight = _interleaved_to_halves(weight)
        bias = _interleaved_to_halves(bias)
      np.testing.assert_array_equal(flat[f'layers/{ours}/kernel'][i], weight.T)
      np.testing.assert_array_equal(flat[f'layers/{ours}/bias'][i], bias)


@pytest.mark.long
@pytest.mark.download
def test_smollm2_equals_transformers(smollm2_gguf):
  config, params = weights.load(smollm2_gguf)
  assert config == presets.get('SmolLM2-135M')
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
  )
  state = {k: v.numpy() for k, v in peer.state_dict().items()}
  flat = traverse_util.flatten_dict(params, sep='/')
  count = 0

  def same(ours, theirs):
    nonlocal count
    count += theirs.size
    np.testing.assert_array_equal(ours, theirs)

  same(flat['embed/tokens'], state['model.embed_tokens.weight'])
  same(flat['final_norm/scale'], state['model.norm.weight'])
  names = {f'attention/{x}/kernel': f'self_attn.{x}_proj' for x in 'qkvo'}
  names |= {f'mlp/{x}/kernel': f'mlp.{x}_proj' for x in ('gate', 'up', 'down')}
  names['attention_norm/scale'] = 'input_layernorm'
  names['mlp_norm/scale'] = 'post_attention_layernorm'
  for ours, theirs in names.items():
    leaf = np.asarray(flat[f'layers/{ours}'])
    for i in range(30):
      same(leaf[i], state[f'model.layers.{i}.{theirs}.weight'].T)
  assert count == specs.num_params(config) == 134_515_008


def _gpt2_tensors(rng):
  shapes = {'token_embd.weight': (_V, _D), 'position_embd.weight': (128, _D)}
  for i in range(2):
    matrices = {
      'attn_qkv': (3 * _D, _D),
      'attn_output': (_D, _D),
      'ffn_up': (_F, _D),
      'ffn_down': (_D, _F),
    }
    for name, shape in matrices.items():
      shapes[f'blk.{i}.{name}.weight'] = shape
      shapes[f'blk.{i}.{name}.bias'] = shape[:1]
    for name in ('attn_norm', 'ffn_norm'):
      shapes[f'blk.{i}.{name}.weight'] = shapes[f'blk.{i}.{name}.bias'] = (_D,)
  shapes['output_norm.weight'] = shapes['output_norm.bias'] = (_D,)
  return {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}


def test_gpt2_equals_transformers(tmp_path):
  tensors = _gpt2_tensors(np.random.default_rng(0))
  _write(tmp_path / 'x.gguf', tensors, arch='gpt2', kind=_Q.Q8_0)
  config, params = weights.load(tmp_path / 'x.gguf')
  sizes = dict(n_embd=_D, n_head=_HEADS, n_layer=2, n_inner=_F)
  sizes |= dict(vocab_size=_V, n_positions=128)
  peer = transformers.GPT2LMHeadModel.from_pretrained(
    tmp_path,
    gguf_file='x.gguf',
    dtype=torch.float32,
    config=transformers.GPT2Config(**sizes),
  )
  # One that was read from GGUF refuses to be saved.
  again = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
  again.load_state_dict(peer.state_dict())
  again.save_pretrained(tmp_path / 'hf')
  _, expected = weights.load(tmp_path / 'hf')
  assert config.tie_embeddings and config.activation == 'gelu_tanh'
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize('arch', ['llama', 'gpt2'])
def test_a_stored_copy_of_the_embedding_is_a_tie(tmp_path, arch):
  rng = np.random.default_rng(0)
  make = {'llama': _llama_tensors, 'gpt2': _gpt2_tensors}[arch]
  tensors = make(rng)
  for output, tied in ((tensors['token_embd.weight'], True), (None, False)):
    if output is None:
      output = rng.standard_normal((_V, _D), np.float32)
    _write(tmp_path / 'x.gguf', tensors | {'output.weight': output}, arch=arch)
    config, params = weights.load(tmp_path / 'x.gguf')
    assert config.tie_embeddings == tied == ('unembed' not in params)


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama3_frequencies(tmp_path, factor):
  """The file's divisors equal those of `transformers` for this scaling."""
  scaling = {'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0}
  scaling |= {'high_freq_factor': 4.0, 'rope_theta': 5e5}
  scaling['original_max_position_embeddings'] = 8192
  options = dict(hidden_size=_HEADS * _HEAD, num_attention_heads=_HEADS)
  config = transformers.LlamaConfig(
    **options, max_position_embeddings=131072, rope_parameters=scaling
  )
  init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS['llama3']
  scaled, _ = init(config, 'cpu')
  plain = 5e5 ** -(np.arange(0, _HEAD, 2) / _HEAD)
  tensors = _llama_tensors(np.random.default_rng(0))
  divisors = (plain / scaled.numpy()).astype(np.float32)
  assert np.unique(divisors).size > 1
  tensors['rope_freqs.weight'] = divisors
  _write(tmp_path / 'x.gguf', tensors)
  config, _ = weights.load(tmp_path / 'x.gguf')
  assert config.rope_scaling.kind == 'llama3'
  assert config.rope_scaling.factor == pytest.approx(factor, rel=1e-5)
  tensors['rope_freqs.weight'] = divisors[::-1].copy()
  _write(tmp_path / 'x.gguf', tensors)
  with pytest.raises(ValueError, match=r'rope_freqs\.weight'):
    weights.load(tmp_path / 'x.gguf')


def test_linear_scaling(tmp_path):
  tensors = _llama_tensors(np.random.default_rng(0))
  path = tmp_path / 'x.gguf'
  linear = gguf.RopeScalingType.LINEAR
  _write(path, tensors, rope_scaling_type=linear, rope_scaling_factor=4.0)
  scaling = weights.load(path)[0].rope_scaling
  assert scaling == model_config.RopeScaling(kind='linear', factor=4.0)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'rope_scaling_type': gguf.RopeScalingType.YARN}, r'scaling\.type.*yarn'),
    ({'expert_count': 8}, 'expert_count = 8'),
    ({'rope_dimension_count': 8}, r'rope\.dimension_count = 8'),
    ({'value_length': 8}, r'attention\.value_length = 8'),
    ({'head_count_kv': [1, 2]}, r'head_count_kv is \[1, 2\]; expected'),
    ({'block_count': None}, "no 'block_count'"),
    ({'arch': 'lama'}, "mean 'llama'"),
    (
      {'block_count': 3},
      r'missing blk\.2\.attn_k\.weight: expected \(32, 64\)',
    ),
    ({'block_count': 1}, r'unexpected blk\.1\.attn_k\.weight: found'),
  ],
)
def test_unsupported_files_are_named(tmp_path, fields, words):
  tensors = _llama_tensors(np.random.default_rng(0))
  _write(tmp_path / 'x.gguf', tensors, **fields)
  with pytest.raises(ValueError, match=words):
    weights.load(tmp_path / 'x.gguf')
