"""Objectives of reward models: rewards to float32 losses, unreduced.

Rewards are the numbers that a model gives to whole completions. In the first
two objectives only their differences within a prompt count.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.losses import inputs


def bradley_terry(
  rewards_Px2: types.Array, *, margin: float | types.Array | None = None
) -> types.Array:
  """f32[P]: -log sigma(r_w - r_l - margin), Eq. 2 of arXiv:2305.18290.

  rewards_Px2: of the preferred completion r_w and the rejected one r_l. margin:
  by how much r_w has to be larger (Llama 2, arXiv:2307.09288), one number, or
  f32[P]; None: 0.
  """
  if margin is not None:
    inputs.check_least_0(margin=margin)
  rewards = _of_examples(rewards_Px2, 2)
  difference = rewards[..., 0] - rewards[..., 1]
  if margin is not None:
    margin = jnp.broadcast_to(inputs.float32(margin), difference.shape)
    difference = difference - margin
  return -jax.nn.log_sigmoid(difference)


def plackett_luce(rewards_PxK: types.Array) -> types.Array:
  """f32[P]: -sum_k (r_k - logsumexp_{j >= k} r_j), the best in column 0.

  The negative logarithm of Eq. 18 of arXiv:2305.18290; with two completions it
  is `bradley_terry`.
  """
  rewards = _of_examples(rewards_PxK)
  later = jnp.triu(jnp.ones((rewards.shape[-1],) * 2, bool))
  later = jnp.broadcast_to(later, (*rewards.shape, rewards.shape[-1]))
  rest = jax.nn.logsumexp(rewards[..., None, :], axis=-1, where=later)
  return jnp.sum(rest - rewards, axis=-1)


def regression(rewards_P: types.Array, ratings_P: types.Array) -> types.Array:
  """f32[P]: (r - rating)^2."""
  rewards, ratings = _alike(rewards_P, ratings_P, 'ratings')
  return jnp.square(rewards - ratings)


def binary(rewards_P: types.Array, labels_P: types.Array) -> types.Array:
  """f32[P]: -log sigma(r) where the label is 1, -log sigma(-r) where it is 0.

  The reward is the logit of a classifier. A label between 0 and 1 is a
  probability.
  """
  rewards, labels = _alike(rewards_P, labels_P, 'labels')
  likely, unlikely = jax.nn.log_sigmoid(rewards), jax.nn.log_sigmoid(-rewards)
  return -labels * likely - (1 - labels) * unlikely


def centring(rewards_PxK: types.Array) -> types.Array:
  """f32[P]: the square of the sum of an example's rewards.

  Added with a small coefficient, such as 0.01, to a loss that leaves the mean
  reward open, it keeps that near 0 (arXiv:2312.09244; TRL's
  center_rewards_coefficient).
  """
  return jnp.square(jnp.sum(_of_examples(rewards_PxK), axis=-1))


def _of_examples(rewards, num: int | None = None) -> types.Array:
  """Float32 rewards [..., K]; ValueError for another shape."""
  shape = np.shape(rewards)
  if not shape or (num is not None and shape[-1] != num):
    raise ValueError(
      f'rewards are {list(shape)}; expected [..., {num or "K"}].'
    )
  return inputs.float32(rewards)


def _alike(rewards, given, name: str) -> tuple[types.Array, types.Array]:
  """Both as float32; ValueError where they differ in shape."""
  if np.shape(rewards) != np.shape(given):
    raise ValueError(
      f'rewards are {list(np.shape(rewards))} and {name} '
      f'{list(np.shape(given))}; expected equal shapes.'
    )
  return inputs.float32(rewards), inputs.float32(given)


LOSSES = {
  fn.__name__: fn for fn in (bradley_terry, plackett_luce, regression, binary)
}
