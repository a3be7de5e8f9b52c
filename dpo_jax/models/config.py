"""The shape of a decoder, its fields named by mechanism."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Change of the rotary frequencies for contexts beyond the trained one.

  kind 'linear' divides every frequency by `factor`; 'llama3' divides the long
  wavelengths and blends between `low_freq_factor` and `high_freq_factor`.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A pre-norm decoder-only transformer.

  norm: 'rms' (scale only) or 'layer' (scale and bias).
  positions: 'rotary' (halves rotated, on the whole head) or 'learned'.
  activation: 'silu', 'gelu' (exact), 'gelu_tanh' or 'relu'.
  gated_mlp: down(act(gate(x)) * up(x)) rather than down(act(up(x))).
  attention_bias: on the q, k, v projections; attention_out_bias: on o.
  attention_scale: multiplies q.k; None is head_dim ** -0.5.
  attention_scale_by_layer: further divides layer i's scale by i + 1.
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
  positions: str = 'rotary'
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  activation: str = 'silu'
  gated_mlp: bool = True
  attention_bias: bool = False
  attention_out_bias: bool = False
  mlp_bias: bool = False
  tie_embeddings: bool = False
  attention_scale: float | None = None
  attention_scale_by_layer: bool = False

  def __post_init__(self):
    choices = {
      'norm': ('rms', 'layer'),
      'positions': ('rotary', 'learned'),
      'activation': ('silu', 'gelu', 'gelu_tanh', 'relu'),
    }
    for field, known in choices.items():
      if getattr(self, field) not in known:
        raise ValueError(
          f'ModelConfig.{field} is {getattr(self, field)!r}; known: {known}.'
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads {self.num_heads} is no multiple of num_kv_heads '
        f'{self.num_kv_heads}.'
      )
    scaling = self.rope_scaling
    if scaling and scaling.kind not in ('linear', 'llama3'):
      raise ValueError(
        f'Unknown rope scaling {scaling.kind!r}; known: linear, llama3.'
      )
