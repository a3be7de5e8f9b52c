"""The decoder as pure functions of a dict parameter tree, and its cache."""

from dpo_jax.models.adapters import from_apply
from dpo_jax.models.config import ModelConfig, RopeScaling
from dpo_jax.models.decode_weights import unstack
from dpo_jax.models.decoder import (
  Compute,
  forward,
  logits,
  policy,
  step_logits,
)
from dpo_jax.models.heads import scalar, with_scalar_head
from dpo_jax.models.kv_cache import Cache, decode, insert, prefill
from dpo_jax.models.specs import init, num_params, param_specs

__all__ = [
  'Cache',
  'Compute',
  'ModelConfig',
  'RopeScaling',
  'decode',
  'forward',
  'from_apply',
  'init',
  'insert',
  'logits',
  'num_params',
  'param_specs',
  'policy',
  'prefill',
  'scalar',
  'step_logits',
  'unstack',
  'with_scalar_head',
]
