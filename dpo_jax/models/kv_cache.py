"""Decoding with a key-value cache in which a prompt is stored only once.

B prompts have S sequences each, which advance by one token at a time together.
A sequence attends to its prompt's keys and values, which its prompt's sequences
share, and to those of its own tokens, in one softmax over both. A prompt may
take another's place at any time.

On a mesh prompts are split over 'data' and 'fsdp', key-value heads over
'tensor'.
Prefill runs like a training batch: each device gathers a layer's weights. In a
decoding step that gather would dominate, so the weights stay split and the
activations are exchanged instead: their width is split over 'fsdp' before a
product, and the partial products are summed after it.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.models import config as model_config
from dpo_jax.models import decode_attention, decoder, parallel, tree_gather

# (keys, values), each a tuple with one array per layer.
KeysValues = tuple[tuple[types.Array, ...], tuple[types.Array, ...]]


@flax.struct.dataclass
class Cache:
  """Keys and values; k and v are tuples with one array per layer.

  prompt_k: [B, G, d, P], prompt_v: [B, G, P, d]; valid up to `prompt_length_B`.
  own_k: [B, S, G, d, C], own_v: [B, S, G, C, d]: of the sequences' own tokens;
  those that step t adds are at t mod C.
  A layer with a window holds no more keys of either kind than its window: the
  last ones.
  prompt_length_B: tokens of each prompt. joined_B: the step that adds the
  first own tokens of its sequences.
  """

  prompt_k: tuple[types.Array, ...]
  prompt_v: tuple[types.Array, ...]
  own_k: tuple[types.Array, ...]
  own_v: tuple[types.Array, ...]
  prompt_length_B: types.Array
  joined_B: types.Array


_PROMPT = PartitionSpec(parallel.ROWS, parallel.TENSOR)
_OWN = PartitionSpec(parallel.ROWS, None, parallel.TENSOR)


def shardings(mesh: jax.sharding.Mesh) -> Cache:
  """The shardings of a cache on a mesh: one NamedSharding per field."""
  prompt, own, replicated = (
    NamedSharding(mesh, spec) for spec in (_PROMPT, _OWN, PartitionSpec())
  )
  return Cache(prompt, prompt, own, own, replicated, replicated)


def split_over(mesh: jax.sharding.Mesh | None, x: types.Array, *axes):
  """Constrains `x` to be split over these mesh axes; no-op without a mesh."""
  if mesh is None:
    return x
  sharding = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.lax.with_sharding_constraint(x, sharding)


def empty(
  config: model_config.ModelConfig,
  *,
  prompts: int,
  num_samples: int,
  longest_prompt: int,
  capacity: int,
  dtype: str,
) -> Cache:
  """A cache for `prompts` prompts of up to `longest_prompt` tokens.

  capacity: the most own tokens of a sequence.
  """
  own = (prompts, num_samples)

  def zeros(*shape, most, keys):
    shape = (*shape, config.num_kv_heads)
    for i in range(config.num_layers):
      window = config.window if _is_local(config, i) else None
      size = min(most, window or most)
      last = (config.head_dim, size) if keys else (size, config.head_dim)
      yield jnp.zeros((*shape, *last), dtype)

  return Cache(
    prompt_k=tuple(zeros(prompts, most=longest_prompt, keys=True)),
    prompt_v=tuple(zeros(prompts, most=longest_prompt, keys=False)),
    own_k=tuple(zeros(*own, most=capacity, keys=True)),
    own_v=tuple(zeros(*own, most=capacity, keys=False)),
    prompt_length_B=jnp.ones(prompts, jnp.int32),
    joined_B=jnp.zeros(prompts, jnp.int32),
  )


def _is_local(config: model_config.ModelConfig, layer: int) -> bool:
  return bool(config.local_layers) and config.local_layers[layer]


def prefill(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_RxL: types.Array,
  layout: types.Layout,
  *,
  compute: decoder.Compute,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[types.Array, KeysValues]:
  """Hidden states of the prompts' last tokens, [B, D], and their keys.

  params: with stacked layers. layout: of prompts, with `paths`; B is the number
  of trees in all rows. mesh: over which parameters and rows are split.

  Keys and values are those of `Cache`, of all of a prompt's tokens.
  """
  run = functools.partial(_run_prompts, config=config, compute=compute)
  if mesh is not None:
    rows, heads = _axes_of(mesh)
    kept = PartitionSpec(rows, heads)
    rows = PartitionSpec(rows)
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(parallel.partitions(mesh, config, params), rows, rows),
      out_specs=(rows, kept),
    )
  return run(params, tokens_RxL, layout)


def _axes_of(mesh):
  """The mesh axes of prompts and of key-value heads that split anything."""
  rows = parallel.split(mesh, parallel.ROWS) or None
  return rows, parallel.split(mesh, (parallel.TENSOR,)) or None


def _run_prompts(params, tokens_RxL, layout, *, config, compute):
  hidden, keys_values = decoder.forward_with_kv(
    params, config, tokens_RxL, layout, compute=compute
  )
  path_RxTxP = layout.paths.index_RxTxP
  last_RxTx1 = jnp.take_along_axis(
    path_RxTxP, layout.tree_length_RxT[..., None] - 1, axis=2
  )

  def of_prompts(x):  # [R, L, ...] -> [B, P, ...]
    return tree_gather.merge_axes(tree_gather.take(x, path_RxTxP), 0)

  # Entries beyond a prompt's end are other tokens': finite, and masked later.
  k, v = ([of_prompts(x) for x in part] for part in keys_values)
  return (
    tree_gather.merge_axes(tree_gather.take(hidden, last_RxTx1), 0)[:, 0],
    (
      tuple(x.transpose(0, 2, 3, 1) for x in k),
      tuple(x.transpose(0, 2, 1, 3) for x in v),
    ),
  )


def insert(
  cache: Cache,
  keys_values: KeysValues,
  length_N: types.Array,
  slot_RxT: types.Array,
  step: types.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> Cache:
  """The cache with other prompts, whose sequences have no tokens yet.

  keys_values: from `prefill`, of N = R * T prompts. slot: the place of each,
  counted within its row; -1 for none. step: the first to decode them.
  """
  run = _insert
  if mesh is not None:
    rows, heads = _axes_of(mesh)
    kept, rows = PartitionSpec(rows, heads), PartitionSpec(rows)
    run = jax.shard_map(
      run, mesh=mesh, in_specs=(kept, kept, rows, rows), out_specs=kept
    )
  prompt_k, prompt_v = run(
    (cache.prompt_k, cache.prompt_v), keys_values, length_N, slot_RxT
  )
  slot_N = slot_of_all(slot_RxT, len(cache.joined_B))
  return cache.replace(
    prompt_k=prompt_k,
    prompt_v=prompt_v,
    prompt_length_B=put_at(cache.prompt_length_B, slot_N, length_N),
    joined_B=put_at(cache.joined_B, slot_N, step),
  )


def slot_of_all(slot_RxT: types.Array, batch: int) -> types.Array:
  """Places counted over all rows, i32[R * T], `batch` for none."""
  rows = len(slot_RxT)
  first_Rx1 = jnp.arange(rows)[:, None] * (batch // rows)
  return jnp.where(slot_RxT < 0, batch, first_Rx1 + slot_RxT).reshape(-1)


def put_at(x_Bx, slot_N, value):
  """x with `value` at these places; those beyond its end are left out."""
  return x_Bx.at[slot_N].set(value, mode='drop')


def _insert(held, fresh, length_N, slot_RxT):
  slot_N = slot_of_all(slot_RxT.reshape(1, -1), len(held[0][0]))

  def put(into, x, axis):
    size = into.shape[axis]
    if size < x.shape[axis]:  # The last tokens of each prompt.
      first_N = jnp.maximum(length_N - size, 0)
      index_NxI = first_N[:, None] + jnp.arange(size)[None]
      x = jax.vmap(lambda x, index: jnp.take(x, index, axis - 1))(x, index_NxI)
    at = (slot_N, *[slice(None)] * (axis - 1), slice(x.shape[axis]))
    return into.at[at].set(x, mode='drop')

  return tuple(
    tuple(put(a, b, axis) for a, b in zip(old, new))
    for old, new, axis in zip(held, fresh, (3, 2))
  )


def decode(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_BxS: types.Array,
  step: types.Array,
  cache: Cache,
  *,
  compute: decoder.Compute,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[types.Array, Cache]:
  """Hidden states [B, S, D] of one more token of every sequence, and the cache.

  params: from `unstack`. step: rises by one from call to call. mesh: over which
  parameters and cache are split.
  """
  own_before_B = step - cache.joined_B
  position_B = cache.prompt_length_B + own_before_B
  position_BxS = jnp.broadcast_to(position_B[:, None], tokens_BxS.shape)
  held = cache.prompt_k[0].shape[-1] + cache.own_k[0].shape[-1]
  config = decoder.without_idle_window(config, held)
  x, ropes = decoder.embed(params, config, tokens_BxS, position_BxS, compute)
  sequences = (parallel.DATA, None)  # How B and S are split in the layers.
  heads = (None, parallel.TENSOR)
  own_k, own_v = [], []
  for i, w in enumerate(params['layers']):

    def attend(q, k, v, scale, *, i=i, **rule):
      q, k, v = (split_over(mesh, x, parallel.ROWS, *heads) for x in (q, k, v))
      own = _write(cache.own_k[i], cache.own_v[i], k, v, step)
      prompt = (cache.prompt_k[i], cache.prompt_v[i], cache.prompt_length_B)
      out = decode_attention.attend(
        q, prompt, (*own, own_before_B + 1), step, scale, **rule
      )
      out = split_over(mesh, out, parallel.ROWS, *heads)
      return split_over(mesh, out, parallel.DATA, *heads), own

    local = _is_local(config, i)
    x = split_over(mesh, x, *sequences, parallel.FSDP)
    x, own = decoder.layer(x, w, config, ropes, attend, i, local)
    own_k.append(own[0])
    own_v.append(own[1])
  x = split_over(mesh, x, *sequences, parallel.FSDP)
  cache = cache.replace(own_k=tuple(own_k), own_v=tuple(own_v))
  return decoder.final_norm(params, config, x), cache


def _write(own_k, own_v, k_BxSxGxd, v_BxSxGxd, step):
  """Writes the keys and values of a step's tokens, in place."""
  zero, at = jnp.zeros_like(step), step % own_k.shape[-1]
  k, v = k_BxSxGxd[..., None], v_BxSxGxd[..., None, :]
  own_k = jax.lax.dynamic_update_slice(own_k, k, (*[zero] * 4, at))
  own_v = jax.lax.dynamic_update_slice(own_v, v, (*[zero] * 3, at, zero))
  return own_k, own_v
