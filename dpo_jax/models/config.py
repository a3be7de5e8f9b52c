"""`ModelConfig`: the sizes and variants of a decoder-only transformer."""

import dataclasses
import math

from dpo_jax import registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """A change of the rotary frequencies for contexts longer than trained.

  kind: 'linear' divides every frequency by `factor`; 'llama3' divides only low
  frequencies and blends between `low_freq_factor` and `high_freq_factor`.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192

  def __post_init__(self):
    _check_all(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A pre-norm decoder-only transformer.

  norm: 'rms' (scale only), 'rms_offset' (the scale is stored as its difference
  from 1) or 'layer' (scale and bias).
  qk_norm: the same norm on each head of q and k, before rotation.
  post_norms: norms also of the outputs of attention and MLP.
  residual: 'sequential'; 'parallel': attention and MLP read the same x, each
  through its own norm; 'parallel_one_norm': both through one norm.
  positions: 'rotary' (dimension i is paired with i + rotary_dim / 2) or
  'learned'.
  rotary_dim: the leading dimensions of each head that are rotated; None: all.
  local_layers: for each layer, whether it has a sliding window; (): none has.
  window: how many positions a token sees in local layers, itself included;
  None: all.
  local_rope_theta, local_rope_scaling: of local layers; if theta is None they
  are rotated like the other layers.
  embedding_scale: multiplies token embeddings; rounded to the compute dtype.
  activation: 'silu', 'gelu' (exact), 'gelu_tanh' or 'relu'.
  gated_mlp: down(act(gate(x)) * up(x)) instead of down(act(up(x))).
  attention_bias: of the q, k and v projections; attention_out_bias: of o.
  attention_scale: multiplies q.k; None: head_dim ** -0.5.
  attention_scale_by_layer: also divides the scale of layer i by i + 1.
  attention_softcap, logit_softcap: c in c * tanh(x / c), applied to the scaled
  scores and to the logits.
  head: 'logits' over the vocabulary, or 'scalar': one number a position, of a
  reward or value model. A scalar model ignores the fields of the unembedding.
  """

  vocab_size: int
  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  max_positions: int
  norm: str = 'rms'
  norm_eps: float = 1e-5
  qk_norm: bool = False
  post_norms: bool = False
  residual: str = 'sequential'
  positions: str = 'rotary'
  rotary_dim: int | None = None
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  local_layers: tuple[bool, ...] = ()
  window: int | None = None
  local_rope_theta: float | None = None
  local_rope_scaling: RopeScaling | None = None
  embedding_scale: float | None = None
  activation: str = 'silu'
  gated_mlp: bool = True
  attention_bias: bool = False
  attention_out_bias: bool = False
  mlp_bias: bool = False
  unembed_bias: bool = False
  tie_embeddings: bool = False
  attention_scale: float | None = None
  attention_scale_by_layer: bool = False
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  head: str = 'logits'

  def __post_init__(self):
    _check_all(self)
    for field, known in _CHOICES.items():
      if getattr(self, field) not in known:
        raise ValueError(
          f'ModelConfig.{field} is {getattr(self, field)!r}; known: {known}.'
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads '
        f'{self.num_kv_heads}.'
      )
    for scaling in (self.rope_scaling, self.local_rope_scaling):
      if scaling and scaling.kind not in ('linear', 'llama3'):
        raise ValueError(
          f'Unknown rope scaling {scaling.kind!r}; known: linear, llama3.'
        )
    rotated = self.head_dim if self.rotary_dim is None else self.rotary_dim
    if rotated % 2 or not 0 < rotated <= self.head_dim:
      raise ValueError(
        f'rotary_dim is {rotated}; expected an even number up to head_dim, '
        f'{self.head_dim}.'
      )
    self._check_local()

  def _check_local(self):
    if self.local_layers and len(self.local_layers) != self.num_layers:
      raise ValueError(
        f'local_layers has {len(self.local_layers)} entries for '
        f'{self.num_layers} layers.'
      )
    for field in ('window', 'local_rope_theta'):
      if getattr(self, field) is not None and not any(self.local_layers):
        raise ValueError(
          f'{field} is {getattr(self, field)}, but no layer is local '
          '(local_layers).'
        )
    if self.local_rope_scaling and self.local_rope_theta is None:
      raise ValueError('local_rope_scaling needs a local_rope_theta.')


def check(field: str, value: object, name: str | None = None) -> None:
  """ValueError unless `value` is a valid number for a numeric field.

  name: what the error calls the field; None: `field`.
  """
  if field in _INTEGERS:
    registry.check_integer(name or field, value, 1)
  elif field in _NUMBERS:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
      raise ValueError(
        f'{name or field} is {value!r}; expected a number above 0.'
      )


def _check_all(config):
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if value is not None or field.default is not None:
      check(field.name, value)


_INTEGERS = {
  *('vocab_size', 'num_layers', 'd_model', 'num_heads', 'num_kv_heads'),
  *('head_dim', 'd_ff', 'max_positions', 'rotary_dim', 'window'),
  'original_max_positions',
}
_NUMBERS = {
  *('norm_eps', 'rope_theta', 'local_rope_theta', 'embedding_scale'),
  *('attention_scale', 'attention_softcap', 'logit_softcap'),
  *('factor', 'low_freq_factor', 'high_freq_factor'),
}
_CHOICES = {
  'norm': ('rms', 'rms_offset', 'layer'),
  'residual': ('sequential', 'parallel', 'parallel_one_norm'),
  'positions': ('rotary', 'learned'),
  'activation': ('silu', 'gelu', 'gelu_tanh', 'relu'),
  'head': ('logits', 'scalar'),
}
