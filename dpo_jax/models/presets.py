"""Configs of published models, for use without their checkpoints."""

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
_GEMMA = dict(
  head_dim=256,
  norm='rms_offset',
  norm_eps=1e-6,
  post_norms=True,
  activation='gelu_tanh',
  tie_embeddings=True,
)

PRESETS = {
  # Radford et al. 2019, Table 2, first row; biases, an MLP width of 4 d_model
  # and a head size of 64 from the released code (openai/gpt-2, src/model.py and
  # hparams).
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
  # config.json of EleutherAI/gpt-j-6b.
  'gpt-j-6b': config.ModelConfig(
    vocab_size=50400,
    num_layers=28,
    d_model=4096,
    num_heads=16,
    num_kv_heads=16,
    head_dim=256,
    d_ff=16384,
    max_positions=2048,
    norm='layer',
    residual='parallel_one_norm',
    rotary_dim=64,
    activation='gelu_tanh',
    gated_mlp=False,
    mlp_bias=True,
    unembed_bias=True,
  ),
  # config.json of EleutherAI/pythia-2.8b; Biderman et al. 2023,
  # arXiv:2304.01373, Table 1.
  'pythia-2.8b': config.ModelConfig(
    vocab_size=50304,
    num_layers=32,
    d_model=2560,
    num_heads=32,
    num_kv_heads=32,
    head_dim=80,
    d_ff=10240,
    max_positions=2048,
    norm='layer',
    residual='parallel',
    rotary_dim=20,
    activation='gelu',
    gated_mlp=False,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
  ),
  # config.json of meta-llama/Llama-3.2-1B.
  'Llama-3.2-1B': config.ModelConfig(
    vocab_size=128256,
    num_layers=16,
    d_model=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    d_ff=8192,
    max_positions=131072,
    rope_theta=500000.0,
    rope_scaling=config.RopeScaling(kind='llama3', factor=32.0),
    tie_embeddings=True,
  ),
  # config.json of mistralai/Mistral-7B-v0.1; Jiang et al. 2023,
  # arXiv:2310.06825, Table 1.
  'Mistral-7B': config.ModelConfig(
    vocab_size=32000,
    num_layers=32,
    d_model=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    d_ff=14336,
    max_positions=32768,
    local_layers=(True,) * 32,
    window=4096,
  ),
  # config.json of Qwen/Qwen2.5-0.5B.
  'Qwen2.5-0.5B': config.ModelConfig(
    vocab_size=151936,
    num_layers=24,
    d_model=896,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    d_ff=4864,
    max_positions=32768,
    rope_theta=1000000.0,
    norm_eps=1e-6,
    attention_bias=True,
    tie_embeddings=True,
  ),
  # config.json of Qwen/Qwen3-0.6B.
  'Qwen3-0.6B': config.ModelConfig(
    vocab_size=151936,
    num_layers=28,
    d_model=1024,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    d_ff=3072,
    max_positions=40960,
    rope_theta=1000000.0,
    norm_eps=1e-6,
    qk_norm=True,
    tie_embeddings=True,
  ),
  # config.json of google/gemma-2-2b; Gemma Team 2024, arXiv:2408.00118,
  # Table 1.
  'gemma-2-2b': config.ModelConfig(
    vocab_size=256000,
    num_layers=26,
    d_model=2304,
    num_heads=8,
    num_kv_heads=4,
    d_ff=9216,
    max_positions=8192,
    local_layers=(True, False) * 13,
    window=4096,
    attention_softcap=50.0,
    logit_softcap=30.0,
    embedding_scale=2304**0.5,
    **_GEMMA,
  ),
  # config.json of google/gemma-3-270m; its GGUF file says the same.
  'gemma-3-270m': config.ModelConfig(
    vocab_size=262144,
    num_layers=18,
    d_model=640,
    num_heads=4,
    num_kv_heads=1,
    d_ff=2048,
    max_positions=32768,
    qk_norm=True,
    local_layers=(*(True,) * 5, False) * 3,
    window=512,
    rope_theta=1000000.0,
    local_rope_theta=10000.0,
    embedding_scale=640**0.5,
    **_GEMMA,
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
