"""Methods by name; each module reads like its paper."""

from dpo_jax.methods import dpo, sft

# name -> fn(*, options) -> (policy -> Method)
METHODS = {'dpo': dpo.make, 'sft': sft.make}
