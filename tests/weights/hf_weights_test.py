"""Folders in Hugging Face layout, read and written, against `transformers`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import traverse_util

from dpo_jax import weights
from dpo_jax.models import config as model_config
from dpo_jax.models import specs

_SIZES = dict(
  vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4
)
_LLAMA = _SIZES | dict(
  num_key_value_heads=2,
  intermediate_size=40,
  max_position_embeddings=64,
  head_dim=8,
  rms_norm_eps=1e-4,
)
_GPT2 = dict(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=64)
_LLAMA3_ROPE = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 5e5,
}

_PEERS = {
  'llama': ('llama', _LLAMA),
  'llama-tied': ('llama', _LLAMA | {'tie_word_embeddings': True}),
  'llama-biases': (
    'llama',
    _LLAMA | {'attention_bias': True, 'mlp_bias': True, 'hidden_act': 'gelu'},
  ),
  'llama-rope-linear': (
    'llama',
    _LLAMA
    | {
      'rope_parameters': {
        'rope_type': 'linear',
        'factor': 2.0,
        'rope_theta': 1e5,
      }
    },
  ),
  'llama-rope-llama3': ('llama', _LLAMA | {'rope_parameters': _LLAMA3_ROPE}),
  'gpt2': ('gpt2', _GPT2),
  'gpt2-untied': ('gpt2', _GPT2 | {'tie_word_embeddings': False}),
  'gpt2-options': (
    'gpt2',
    _GPT2
    | {
      'n_inner': 20,
      'layer_norm_epsilon': 1e-4,
      'activation_function': 'relu',
      'scale_attn_weights': False,
      'scale_attn_by_inverse_layer_idx': True,
    },
  ),
}


def _peer(name):
  model_type, options = _PEERS[name]
  config = transformers.AutoConfig.for_model(model_type, **options)
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config)
  with torch.no_grad():
    for p in model.parameters():  # Biases and norms start as constants.
      p.normal_()
  return model


def _expected(state, model_type):
  """Our tree from a torch state dict, without using our tables."""
  state = {k: v.numpy() for k, v in state.items()}

  def stack(form, transpose):
    rows = [state[form.format(i)] for i in range(3)]
    return np.stack([r.T if transpose else r for r in rows])

  flat = {}
  if model_type == 'llama':
    flat['embed/tokens'] = state['model.embed_tokens.weight']
    flat['final_norm/scale'] = state['model.norm.weight']
    norms = {'attention': 'input_layernorm', 'mlp': 'post_attention_layernorm'}
    for ours, theirs in norms.items():
      form = f'model.layers.{{}}.{theirs}.weight'
      flat[f'layers/{ours}_norm/scale'] = stack(form, False)
    modules = {f'attention/{x}': f'self_attn.{x}_proj' for x in 'qkvo'}
    modules |= {f'mlp/{x}': f'mlp.{x}_proj' for x in ('gate', 'up', 'down')}
    for ours, theirs in modules.items():
      form = f'model.layers.{{}}.{theirs}'
      flat[f'layers/{ours}/kernel'] = stack(f'{form}.weight', True)
      if f'{form}.bias'.format(0) in state:
        flat[f'layers/{ours}/bias'] = stack(f'{form}.bias', False)
  else:
    flat['embed/tokens'] = state['transformer.wte.weight']
    flat['embed/positions'] = state['transformer.wpe.weight']
    modules = {
      'attention_norm': 'ln_1',
      'mlp_norm': 'ln_2',
      'attention/o': 'attn.c_proj',
      'mlp/up': 'mlp.c_fc',
      'mlp/down': 'mlp.c_proj',
    }
    for ours, theirs in modules.items():
      weight = 'scale' if 'norm' in ours else 'kernel'
      form = f'transformer.h.{{}}.{theirs}'
      flat[f'layers/{ours}/{weight}'] = stack(f'{form}.weight', False)
      flat[f'layers/{ours}/bias'] = stack(f'{form}.bias', False)
    for part, leaf in (('weight', 'kernel'), ('bias', 'bias')):
      fused = stack(f'transformer.h.{{}}.attn.c_attn.{part}', False)
      for i, x in enumerate('qkv'):
        flat[f'layers/attention/{x}/{leaf}'] = fused[..., 24 * i : 24 * i + 24]
    flat['final_norm/scale'] = state['transformer.ln_f.weight']
    flat['final_norm/bias'] = state['transformer.ln_f.bias']
  return flat, state['lm_head.weight']


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('name', _PEERS)
def test_loads_what_transformers_saved(tmp_path, name):
  peer = _peer(name)
  peer.save_pretrained(tmp_path)
  config, params = weights.load(tmp_path)
  flat, head = _expected(peer.state_dict(), _PEERS[name][0])
  if not config.tie_embeddings:
    flat['unembed/kernel'] = head
  found = traverse_util.flatten_dict(params, sep='/')
  assert found.keys() == flat.keys()
  _equal(found, flat)
  shapes = {k: spec.shape for k, spec in specs.flat_specs(config).items()}
  assert {k: v.shape for k, v in found.items()} == shapes
  assert all(v.dtype == jnp.float32 for v in found.values())


def test_configs_of_transformers(tmp_path):
  configs = {}
  for name in _PEERS:
    _peer(name).save_pretrained(tmp_path / name)
    configs[name] = weights.load(tmp_path / name)[0]
  llama, gpt2 = configs['llama'], configs['gpt2']
  assert llama == model_config.ModelConfig(
    vocab_size=50,
    num_layers=3,
    d_model=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=40,
    max_positions=64,
    norm_eps=1e-4,
  )
  assert (gpt2.d_ff, gpt2.activation) == (96, 'gelu_tanh')
  assert (gpt2.norm, gpt2.positions, gpt2.gated_mlp) == (
    'layer',
    'learned',
    False,
  )
  assert gpt2.attention_scale is None and gpt2.tie_embeddings
  options = configs['gpt2-options']
  assert (options.d_ff, options.activation) == (20, 'relu')
  assert (gpt2.norm_eps, options.norm_eps) == (1e-5, 1e-4)
  assert (options.attention_scale, options.attention_scale_by_layer) == (
    1.0,
    True,
  )
  assert configs['llama-biases'].activation == 'gelu'
  assert configs['llama-rope-linear'].rope_scaling.factor == 2.0
  assert configs['llama-rope-linear'].rope_theta == 1e5
  scaling = configs['llama-rope-llama3'].rope_scaling
  assert (scaling.kind, scaling.original_max_positions) == ('llama3', 32)


@pytest.mark.parametrize('sharded', [False, True])
@pytest.mark.parametrize('name', _PEERS)
def test_transformers_loads_what_we_saved(tmp_path, name, sharded):
  peer = _peer(name)
  peer.save_pretrained(tmp_path / 'theirs')
  config, params = weights.load(tmp_path / 'theirs')
  limit = 10_000 if sharded else 10**9
  weights.save(
    tmp_path / 'ours', config, params, max_shard_bytes=limit, eos_id=7
  )
  files = list((tmp_path / 'ours').glob('*.safetensors'))
  assert (len(files) > 2) == sharded
  assert (
    tmp_path / 'ours' / 'model.safetensors.index.json'
  ).exists() == sharded

  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'))
  assert type(again) is type(peer) and again.config.eos_token_id == 7
  expected, found = peer.state_dict(), again.state_dict()
  assert expected.keys() == found.keys()
  for key, value in expected.items():
    assert torch.equal(value, found[key]), key
  ids = torch.arange(12)[None]
  assert torch.equal(peer.eval()(ids).logits, again.eval()(ids).logits)

  config_again, params_again = weights.load(tmp_path / 'ours')
  assert config_again == config
  _equal(params_again, params)


_CONFIG = model_config.ModelConfig(
  vocab_size=32,
  num_layers=2,
  d_model=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  d_ff=24,
  max_positions=64,
)


@pytest.fixture
def tiny():
  return _CONFIG, specs.init(jax.random.key(0), _CONFIG)


def test_shards_hold_what_they_may(tiny, tmp_path):
  weights.save(tmp_path / 'x', *tiny, max_shard_bytes=3000)
  index = json.loads((tmp_path / 'x/model.safetensors.index.json').read_text())
  total = 4 * specs.num_params(_CONFIG)
  assert index['metadata']['total_size'] == total
  names = set()
  for file in set(index['weight_map'].values()):
    tensors = safetensors.numpy.load_file(tmp_path / 'x' / file)
    assert sum(t.nbytes for t in tensors.values()) <= 3000
    names |= tensors.keys()
  assert names == index['weight_map'].keys()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_dtypes(tiny, tmp_path, dtype):
  config, params = tiny
  weights.save(tmp_path / 'x', config, params, dtype=jnp.dtype(dtype))
  rounded = jax.tree.map(lambda x: x.astype(dtype), params)
  _, narrow = weights.load(tmp_path / 'x', dtype=dtype)
  assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype(dtype)}
  _equal(narrow, rounded)
  _, wide = weights.load(tmp_path / 'x')
  assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype('float32')}
  _equal(wide, rounded)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'x')
  assert peer.dtype == getattr(torch, dtype)


def test_shardings_are_where_leaves_are_put(tiny, tmp_path):
  config, params = tiny
  weights.save(tmp_path / 'x', config, params)
  mesh = jax.make_mesh((1,), ('fsdp',), (jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('fsdp')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  shardings = jax.tree.map(lambda _: sharding, params)
  _, loaded = weights.load(tmp_path / 'x', shardings=shardings)
  assert all(x.sharding == sharding for x in jax.tree.leaves(loaded))
  _equal(loaded, params)


def _rewrite(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def test_all_that_does_not_fit_is_named_at_once(tiny, tmp_path):
  weights.save(tmp_path / 'x', *tiny)

  def spoil(tensors):
    del tensors['model.norm.weight']
    tensors['model.layers.0.self_attn.q_proj.bias'] = np.zeros(16, np.float32)
    tensors['model.layers.1.mlp.up_proj.weight'] = np.zeros((2, 3), np.float32)

  _rewrite(tmp_path / 'x', spoil)
  with pytest.raises(ValueError) as error:
    weights.load(tmp_path / 'x')
  text = str(error.value)
  assert 'missing model.norm.weight: expected (16,)' in text
  assert 'unexpected model.layers.0.self_attn.q_proj.bias: found (16,)' in text
  assert (
    'wrong shape model.layers.1.mlp.up_proj.weight: expected (24, 16), '
    'found (2, 3)' in text
  )


def test_checkpoints_of_old(tmp_path):
  """No prefix, buffers among the weights, the tied matrix stored twice."""
  peer = _peer('gpt2')
  peer.save_pretrained(tmp_path)
  _, expected = weights.load(tmp_path)

  def age(tensors):
    for name in list(tensors):
      tensors[name.removeprefix('transformer.')] = tensors.pop(name)
    for i in range(3):
      tensors[f'h.{i}.attn.bias'] = np.ones((1, 1, 64, 64), np.float32)
      tensors[f'h.{i}.attn.masked_bias'] = np.array(-1e4, np.float32)
    tensors['lm_head.weight'] = tensors['wte.weight'].copy()

  _rewrite(tmp_path, age)
  _equal(weights.load(tmp_path)[1], expected)


def test_inverse_frequencies_are_ignored(tiny, tmp_path):
  weights.save(tmp_path / 'x', *tiny)
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  _rewrite(tmp_path / 'x', lambda t: t.update({name: np.ones(2, np.float32)}))
  _equal(weights.load(tmp_path / 'x')[1], tiny[1])


def _with_config(folder, **changes):
  path = folder / 'config.json'
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in values.items() if v != 'drop'}))
  return folder


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model_type': 'lama'}, r"'lama'.*'llama'.*gpt2"),
    ({'model_type': 'drop'}, 'model_type'),
    ({'hidden_act': 'quick_gelu'}, r'hidden_act.*quick_gelu.*gelu_new'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 2.0}}, r'rope_type.*yarn'),
    ({'rope_scaling': {'rope_type': 'dynamic'}}, r'rope_type.*dynamic'),
    ({'rope_parameters': {'rope_type': 'longrope'}}, r'rope_type.*longrope'),
    ({'rope_scaling': {'rope_type': 'linear'}}, r"no 'factor'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'hidden_size': 'drop'}, "no 'hidden_size'"),
  ],
)
def test_unsupported_llamas_are_named(tiny, tmp_path, changes, words):
  weights.save(tmp_path / 'x', *tiny)
  with pytest.raises(ValueError, match=words):
    weights.load(_with_config(tmp_path / 'x', **changes))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'add_cross_attention': True}, 'add_cross_attention'),
    ({'activation_function': 'tanh'}, r'activation_function.*tanh'),
    ({'n_head': 5}, 'not a multiple'),
  ],
)
def test_unsupported_gpt2s_are_named(tmp_path, changes, words):
  _peer('gpt2').save_pretrained(tmp_path)
  with pytest.raises(ValueError, match=words):
    weights.load(_with_config(tmp_path, **changes))


def test_old_and_new_fields_of_rope_mean_the_same(tiny, tmp_path):
  weights.save(tmp_path / 'x', *tiny)
  scaling = {'factor': 4.0}
  old = {'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', **scaling}}
  new = {'rope_theta': 'drop', 'rope_scaling': 'drop'}
  new['rope_parameters'] = {'rope_type': 'linear', 'rope_theta': 7.0, **scaling}
  a, _ = weights.load(_with_config(tmp_path / 'x', **old))
  b, _ = weights.load(_with_config(tmp_path / 'x', **new))
  assert a == b and a.rope_theta == 7.0 and a.rope_scaling.factor == 4.0


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'attention_scale': 0.3}, 'attention_scale = 0.3'),
    ({'gated_mlp': False}, 'gated_mlp = False'),
    ({'attention_out_bias': True}, 'closest is llama.*attention_out_bias'),
    ({'logit_softcap': 3.0}, 'logit_softcap = 3.0'),
    ({'qk_norm': True, 'norm': 'layer'}, r'closest is .*norm = .layer.'),
    ({'positions': 'learned'}, "positions = 'learned'"),
  ],
)
def test_configs_no_family_can_express(tiny, tmp_path, change, words):
  config = dataclasses.replace(_CONFIG, **change)
  params = specs.init(jax.random.key(0), config)
  with pytest.raises(ValueError, match=words):
    weights.save(tmp_path / 'x', config, params)
  assert not (tmp_path / 'x').exists()


def test_save_refuses_other_parameters_and_full_folders(tiny, tmp_path):
  config, params = tiny
  with pytest.raises(ValueError, match=r'missing unembed/kernel: expected'):
    weights.save(
      tmp_path / 'x',
      config,
      {k: v for k, v in params.items() if k != 'unembed'},
    )
  weights.save(tmp_path / 'x', config, params)
  with pytest.raises(FileExistsError):
    weights.save(tmp_path / 'x', config, params)
  _equal(weights.load(tmp_path / 'x')[1], params)
  assert [p.name for p in tmp_path.iterdir()] == ['x']


def test_folders_without_weights_say_what_they_hold(tiny, tmp_path):
  (tmp_path / 'pytorch_model.bin').write_text('')
  with pytest.raises(ValueError, match=r'config\.json.*pytorch_model\.bin'):
    weights.load(tmp_path)
  with pytest.raises(ValueError, match=r'or a \.gguf file'):
    weights.load(tmp_path / 'pytorch_model.bin')
  weights.save(tmp_path / 'x', *tiny, max_shard_bytes=3000)
  next((tmp_path / 'x').glob('model-00001-*')).unlink()
  with pytest.raises(ValueError, match=r'lacks .*model-00001'):
    weights.load(tmp_path / 'x')
  (tmp_path / 'x' / 'model.safetensors.index.json').unlink()
  with pytest.raises(ValueError, match='neither'):
    weights.load(tmp_path / 'x')
