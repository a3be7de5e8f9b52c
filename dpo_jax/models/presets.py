"""Published shapes, for counts, plans and compiles without any checkpoint."""

from dpo_jax import registry
from dpo_jax.models import config

_GPT2 = dict(
  vocab_size=50257,
  head_dim=64,
  max_positions=1024,
  norm='layer',
  positions='learned',
  activation='gelu_tanh',
  gated_mlp=False,
  attention_bias=True,
  attention_out_bias=True,
  mlp_bias=True,
  tie_embeddings=True,
)

PRESETS = {
  # Radford et al. 2019, Table 2, first row; biases, 4 d_model wide MLPs and 64
  # per head from the released code (openai/gpt-2, src/model.py and hparams).
  'gpt2': config.ModelConfig(
    num_layers=12,
    d_model=768,
    num_heads=12,
    num_kv_heads=12,
    d_ff=3072,
    **_GPT2,
  ),
  # The same, third row: 36 layers of 1280.
  'gpt2-large': config.ModelConfig(
    num_layers=36,
    d_model=1280,
    num_heads=20,
    num_kv_heads=20,
    d_ff=5120,
    **_GPT2,
  ),
  # Llama Team 2024, arXiv:2407.21783, Table 3; vocabulary, context of 8,192 and
  # norm epsilon from the config.json of meta-llama/Meta-Llama-3-8B.
  'Llama-3-8B': config.ModelConfig(
    vocab_size=128256,
    num_layers=32,
    d_model=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    d_ff=14336,
    max_positions=8192,
    rope_theta=500000.0,
    norm_eps=1e-5,
  ),
  # config.json of HuggingFaceTB/SmolLM2-135M-Instruct; the GGUF file in the
  # asset table says the same.
  'SmolLM2-135M': config.ModelConfig(
    vocab_size=49152,
    num_layers=30,
    d_model=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    max_positions=8192,
    rope_theta=100000.0,
    norm_eps=1e-5,
    tie_embeddings=True,
  ),
}


def get(name: str) -> config.ModelConfig:
  """The preset `name`; ValueError with the closest one if it is unknown."""
  return registry.lookup(PRESETS, name, 'model preset')
