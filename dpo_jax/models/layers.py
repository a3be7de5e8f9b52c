"""Parts of a decoder layer: dense, norms, MLP, rotary positions."""

import math

import jax
import jax.numpy as jnp

from dpo_jax.models import config as model_config
from dpo_jax.models import parallel

ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}


def _like(vector, x):
  """A vector broadcast along the last axis of `x`."""
  return jnp.broadcast_to(vector, x.shape)


def dense(x, w):
  """x[..., in] @ kernel[in, out] (+ bias[out]), in the dtype of `x`.

  w: {'kernel'} or {'kernel', 'bias'}; in decoding also `kernel_out_in`, the
  transposed kernel, in the place of `kernel`. Float32 master weights are cast
  here, so that no copy of the whole tree exists in the compute dtype.
  """
  y = _product(x, w)
  return y + _like(w['bias'], y).astype(x.dtype) if 'bias' in w else y


def dense_from_parts(x, w):
  """`dense` with the inputs' axis and the kernel's rows split over 'tensor'."""
  y = parallel.sum_products(_product(x, w))
  return y + _like(w['bias'], y).astype(x.dtype) if 'bias' in w else y


def _product(x, w):
  """x @ kernel.

  With few rows of x, XLA's CPU backend takes a fourth less time for the
  transposed product of a transposed kernel (85 against 63 GFLOP a CPU second
  for [1536, 576] by [576, 32] on an EPYC core). The barrier keeps XLA from
  undoing the transposition.
  """
  if 'kernel' in w:
    return _matmul(x, w['kernel'])
  y = jnp.einsum('oi,...i->o...', w['kernel_out_in'], x)
  return jnp.moveaxis(jax.lax.optimization_barrier(y), 0, -1)


@jax.custom_vjp
def _matmul(x, kernel):
  """x @ kernel, with the kernel's gradient computed as x^T g.

  Autodiff computes it as (g^T x)^T. XLA's CPU backend then fuses the
  transposition into the elementwise operations that produce g, with an access
  order so bad for caches that the product takes twice as long (60 against 28
  CPU ms for [1488, 576]^T [1488, 1536] on an EPYC core).
  """
  return x @ kernel.astype(x.dtype)


def _matmul_fwd(x, kernel):
  return _matmul(x, kernel), (x, kernel)


def _matmul_bwd(residuals, g):
  x, kernel = residuals
  x, g = jax.lax.platform_dependent(
    x,
    g,
    cpu=lambda *arrays: jax.lax.optimization_barrier(arrays),
    default=lambda *arrays: arrays,
  )
  grad_x = g @ kernel.astype(g.dtype).T
  grad_kernel = jnp.einsum(
    '...i,...o->io', x, g, preferred_element_type=kernel.dtype
  )
  return grad_x, grad_kernel


_matmul.defvjp(_matmul_fwd, _matmul_bwd)


def rms_norm(x, w, *, eps):
  """RMSNorm (arXiv:1910.07467), statistics in float32."""
  x32 = x.astype(jnp.float32)
  scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * scale * _like(w['scale'], x)).astype(x.dtype)


def rms_norm_offset(x, w, *, eps):
  """RMSNorm whose scale is stored as its difference from 1."""
  return rms_norm(x, {'scale': 1.0 + w['scale'].astype(jnp.float32)}, eps=eps)


def layer_norm(x, w, *, eps):
  """LayerNorm (arXiv:1607.06450), statistics in float32."""
  x32 = x.astype(jnp.float32)
  x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  y = x32 * scale * _like(w['scale'], x) + _like(w['bias'], x)
  return y.astype(x.dtype)


NORMS = {'rms': rms_norm, 'rms_offset': rms_norm_offset, 'layer': layer_norm}


def mlp(x, w, *, activation):
  """The feed-forward block, gated if `w` has a gate."""
  act = ACTIVATIONS[activation]
  x = parallel.split_inputs(x)
  up = dense(x, w['up'])
  hidden = act(dense(x, w['gate'])) * up if 'gate' in w else act(up)
  return dense_from_parts(hidden, w['down'])


def softcap(x, cap: float | None):
  """cap * tanh(x / cap), or x if `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def rope_frequencies(
  dim: int, theta: float, scaling: model_config.RopeScaling | None
):
  """Radians per position, f32[dim / 2] (arXiv:2104.09864, Eq. 15)."""
  exponent = jnp.arange(0, dim, 2, dtype=jnp.float32)
  freq = 1.0 / theta ** (exponent / dim)
  if scaling is None:
    return freq
  if scaling.kind == 'linear':
    return freq / scaling.factor
  # Llama 3.1: wavelengths up to context / high_freq_factor stay, those beyond
  # context / low_freq_factor are stretched, those between are blended.
  turns = scaling.original_max_positions * freq / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return freq * keep + freq / scaling.factor * (1.0 - keep)


def ropes(config: model_config.ModelConfig, position_RxL):
  """(cos, sin) of the rotary angles, each f32[R, L, 1, rotary_dim / 2].

  A tuple of one such pair for all layers, or of two, for global and for local
  layers.
  """
  kinds = [(config.rope_theta, config.rope_scaling)]
  if config.local_rope_theta is not None:
    kinds.append((config.local_rope_theta, config.local_rope_scaling))
  dim = config.head_dim if config.rotary_dim is None else config.rotary_dim

  def angles(theta, scaling):
    frequencies = rope_frequencies(dim, theta, scaling)[None, None, None]
    angles = position_RxL[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)

  return tuple(angles(*kind) for kind in kinds)


def rope_of_layer(ropes, local):
  """The (cos, sin) of a layer; `local` may be traced."""
  if len(ropes) == 1:
    return ropes[0]
  if isinstance(local, bool):
    return ropes[local]
  return jax.tree.map(lambda a, b: jnp.where(local, b, a), *ropes)


def rotate(x_RxLxHxd, angles):
  """Rotates each head by its position's angles, in float32.

  Dimension i is paired with i + rotary_dim / 2; dimensions from rotary_dim on
  are unchanged.
  """
  cos, sin = angles
  half = cos.shape[-1]
  ends = [half, 2 * half] if 2 * half < x_RxLxHxd.shape[-1] else [half]
  x = x_RxLxHxd.astype(jnp.float32)
  a, b, *rest = jnp.split(x, ends, axis=-1)
  turned = [a * cos - b * sin, b * cos + a * sin, *rest]
  return jnp.concatenate(turned, axis=-1).astype(x_RxLxHxd.dtype)
