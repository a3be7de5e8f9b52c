"""Random blocks of every quantisation type that `gguf` can dequantise."""

import gguf
import numpy as np
import pytest
from flax import traverse_util

from dpo_jax import weights

_Q = gguf.GGMLQuantizationType
_D, _HEADS, _KV, _V = 256, 4, 2, 3
_HEAD = _D // _HEADS
_MATRICES = {
  'attn_q': ('attention/q', _D),
  'attn_k': ('attention/k', _KV * _HEAD),
  'attn_v': ('attention/v', _KV * _HEAD),
  'attn_output': ('attention/o', _D),
  'ffn_gate': ('mlp/gate', _D),
  'ffn_up': ('mlp/up', _D),
  'ffn_down': ('mlp/down', _D),
}


def _can_dequantise(kind):
  block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
  try:
    gguf.quants.dequantize(block, kind)
  except NotImplementedError:
    return False
  return kind not in (_Q.F32, _Q.F16)  # Those are stored as arrays of floats.


_KINDS = [kind for kind in _Q if _can_dequantise(kind)]


def _random_rows(rng, count, kind):
  """`count` rows of _D random weights: blocks of bytes, finite when read.

  Blocks whose scale is infinite or NaN are drawn again.
  """
  block, size = gguf.GGML_QUANT_SIZES[kind]
  blocks = rng.integers(0, 256, (count * _D // block, size), np.uint8)
  with np.errstate(all='ignore'):
    while True:
      values = gguf.quants.dequantize(blocks, kind)
      bad = ~np.isfinite(values).all(-1)
      if not bad.any():
        return blocks.reshape(count, -1)
      blocks[bad] = rng.integers(0, 256, (bad.sum(), size), np.uint8)


def _write(path, kind, rows):
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(1)
  writer.add_context_length(8)
  writer.add_embedding_length(_D)
  writer.add_feed_forward_length(_D)
  writer.add_head_count(_HEADS)
  writer.add_head_count_kv(_KV)
  writer.add_layer_norm_rms_eps(1e-5)
  for name, data in rows.items():
    writer.add_tensor(name, data, raw_dtype=kind)
  for name in ('blk.0.attn_norm', 'blk.0.ffn_norm', 'output_norm'):
    writer.add_tensor(f'{name}.weight', np.ones(_D, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_the_types_are_many():
  assert {_Q.Q4_K, _Q.Q6_K, _Q.IQ2_XXS, _Q.IQ1_M, _Q.TQ1_0} <= set(_KINDS)


@pytest.mark.parametrize('kind', _KINDS, ids=lambda kind: kind.name)
def test_tensors_equal_what_gguf_dequantises(tmp_path, kind):
  rng = np.random.default_rng(0)
  rows = {'token_embd.weight': _random_rows(rng, _V, kind)}
  for name, (_, count) in _MATRICES.items():
    rows[f'blk.0.{name}.weight'] = _random_rows(rng, count, kind)
  _write(tmp_path / 'x.gguf', kind, rows)
  _, params = weights.load(tmp_path / 'x.gguf')
  flat = traverse_util.flatten_dict(params, sep='/')

  def expected(name):
    values = gguf.quants.dequantize(rows[name], kind)
    assert values.shape[1] == _D and np.unique(values).size > 2
    return values

  tokens = expected('token_embd.weight')
  np.testing.assert_array_equal(flat['embed/tokens'], tokens)
  for name, (ours, count) in _MATRICES.items():
    matrix = expected(f'blk.0.{name}.weight')
    if name in ('attn_q', 'attn_k'):  # Rows 2j and 2j + 1 rotate together.
      heads = matrix.reshape(-1, _HEAD, _D)
      matrix = np.concatenate([heads[:, 0::2], heads[:, 1::2]], 1)
    matrix = matrix.reshape(count, _D)
    found = flat[f'layers/{ours}/kernel'][0]
    np.testing.assert_array_equal(found, matrix.T)


def test_a_type_that_gguf_cannot_dequantise_is_named(tmp_path):
  kind = _Q.Q8_K
  assert kind not in _KINDS
  block, size = gguf.GGML_QUANT_SIZES[kind]
  sizes = {'token_embd': _V} | {
    f'blk.0.{name}': count for name, (_, count) in _MATRICES.items()
  }
  rows = {
    f'{name}.weight': np.zeros((count, _D // block * size), np.uint8)
    for name, count in sizes.items()
  }
  _write(tmp_path / 'x.gguf', kind, rows)
  with pytest.raises(ValueError, match=r'token_embd\.weight.*Q8_K'):
    weights.load(tmp_path / 'x.gguf')
