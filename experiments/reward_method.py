"""The section `method` of the studies' reward models."""


def reward_method(loss: str) -> dict:
  """A key of `dpo_jax.losses.reward`'s losses, a mean over the examples."""
  return dict(
    name='reward_model',
    loss=loss,
    centre_coefficient=0.0,
    normalise='examples',
  )
