"""Methods by name; each module reads like its paper."""

from dpo_jax.methods import dpo, kto, ranking, sft

# name -> fn(*, options) -> (policy -> Method)
METHODS = {
  'dpo': dpo.make,
  'kto': kto.make,
  'ranking': ranking.make,
  'sft': sft.make,
}
