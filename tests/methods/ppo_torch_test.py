"""The PyTorch loop of PPO has our advantages and losses, and it learns."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dpo_jax.losses import policy_gradient
from tests import forests
from tests.methods import ppo_torch, trajectories

LENGTHS = [3, 1, 5, 4]
N, T = len(LENGTHS), max(LENGTHS)
MASK = np.arange(T) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  with trajectories.one_thread():
    yield


def _models():
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1),
    **dict(num_attention_heads=2, num_labels=1, pad_token_id=0),
    **trajectories.NEW,
  )
  policy = transformers.LlamaForCausalLM(config)
  return policy, transformers.LlamaForSequenceClassification(config)


def _rollouts(policy):
  """Random completions, with log-probabilities by a padding-free forward."""
  rng = np.random.default_rng(0)

  def ids(length):
    return rng.integers(1, forests.VOCAB, length).tolist()

  prompts, completions = (
    [ids(2), ids(4), ids(1), ids(3)],
    list(map(ids, LENGTHS)),
  )
  logps = []
  for prompt, completion in zip(prompts, completions, strict=True):
    with torch.no_grad():
      logits = policy(torch.tensor([prompt + completion])).logits[0]
    logits = torch.log_softmax(logits, -1)[len(prompt) - 1 :]
    logps.append(
      [logits[t, token].item() for t, token in enumerate(completion)]
    )
  reference = [[x + rng.normal() for x in row] for row in logps]
  scores = rng.normal(size=N).tolist()
  return ppo_torch.Rollouts(prompts, completions, logps, reference, scores)


def _padded(rows):
  return jnp.array([[*map(float, r), *[0.0] * (T - len(r))] for r in rows])


def _close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('max_grad_norm', [None, 0.1])
def test_its_advantages_and_losses_are_ours(max_grad_norm):
  policy, value_model = _models()
  rollouts = _rollouts(policy)
  # At the sampler's weights, ratios are 1 and values are the old ones.
  trained = ppo_torch.train(
    *(policy, value_model, rollouts, [[0, 2], [1, 3], [0, 1, 2, 3]]),
    **dict(learning_rate=1e-2, kl_coefficient=0.3, max_grad_norm=max_grad_norm),
  )
  kl = policy_gradient.kl_estimates['k1'](
    _padded(rollouts.logps), _padded(rollouts.reference_logps)
  )
  rewards = policy_gradient.token_rewards(
    jnp.array(rollouts.scores), kl, MASK, kl_coefficient=0.3
  )
  values = _padded(trained.values)
  advantages, returns = policy_gradient.generalized_advantages(
    rewards, values, MASK, discount=1.0, gae_lambda=0.95
  )
  white = policy_gradient.whiten(advantages, MASK)
  _close(_padded(trained.advantages), advantages)
  _close(_padded(trained.returns), returns)
  _close(_padded(trained.whitened), white)
  logps, rows = _padded(rollouts.logps), np.array([0, 2])
  policy_loss, value_loss = (
    (losses * MASK)[rows].sum() / MASK[rows].sum()
    for losses in (
      policy_gradient.ppo_policy_loss(logps, logps, white, clip=0.2),
      policy_gradient.ppo_value_loss(values, values, returns, clip=0.2),
    )
  )
  first, *_, last = trained.updates
  _close(first['policy_loss'], policy_loss)
  _close(first['value_loss'], value_loss)
  _close(first['loss'], policy_loss + 0.1 * value_loss)
  # Before clipping, so that this is the same whatever the limit is.
  assert first['grad_norm'] > 0.2
  # All advantages have mean 0: the loss of all completions starts at 0.
  assert last['policy_loss'] < -0.01
