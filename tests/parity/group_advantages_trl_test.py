"""RLOO's and GRPO's advantages and losses as TRL 1.16's trainers have them.

The trainers are built for a tiny model and make one step; the advantages are
those that they log. Losses are then taken of given log-probabilities.
"""

import functools

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import trl

from dpo_jax.losses import policy_gradient
from tests.methods import trajectories
from tests.parity import trl_trainers

VOCAB, B, K, T = 11, 2, 4, 3
SCORES = np.float32(np.random.default_rng(0).normal(size=(B, K)))
TRAINERS = {
  'rloo': (trl.RLOOTrainer, trl.RLOOConfig, {}),
  'grpo': (trl.GRPOTrainer, trl.GRPOConfig, dict(loss_type='bnpo')),
}


def test_the_facts_here_are_of_this_trl():
  assert trl.__version__.startswith('1.16.')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """f(name, **settings): TRL's trainer after a step with rewards SCORES."""

  @functools.cache
  def run(name, **settings):
    cls, config, defaults = TRAINERS[name]
    model = transformers.LlamaConfig(
      **dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1),
      **dict(num_attention_heads=2, vocab_size=VOCAB, eos_token_id=0),
      **dict(bos_token_id=None, pad_token_id=0),
    )
    prompts = [{'prompt': f'w{i} w{i + 1}'} for i in range(B)]
    with trl_trainers.quietly():
      args = config(
        **dict(output_dir=tmp_path_factory.mktemp(name), save_strategy='no'),
        **dict(use_cpu=True, bf16=False, report_to='none', disable_tqdm=True),
        **dict(
          per_device_train_batch_size=B * K, num_generations=K, max_steps=1
        ),
        **dict(max_completion_length=T),
        **dict(beta=0.0),
        **defaults,
        **settings,
      )
      trainer = cls(
        transformers.LlamaForCausalLM(model),
        lambda completions, **_: SCORES.ravel().tolist(),
        args=args,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=trl_trainers.tokenizer(VOCAB),
      )
      trainer.train()
    return trainer

  with trajectories.one_thread():
    yield run


def _logged(trainer):
  return np.reshape(trainer._logs['advantages'], (B, K))


def _close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_leave_one_out_is_their_rloo(trained):
  _close(policy_gradient.leave_one_out(SCORES), _logged(trained('rloo')))


def test_group_relative_is_their_grpo(trained):
  theirs = _logged(trained('grpo'))
  _close(policy_gradient.group_relative(SCORES), theirs)
  unscaled = _logged(trained('grpo', scale_rewards='none'))
  _close(policy_gradient.group_relative(SCORES, scale=False), unscaled)


def test_their_other_scales_are_of_the_batch(trained):
  """'batch' divides by one deviation of all scores, uncentred by prompt."""
  centred = policy_gradient.group_relative(SCORES, scale=False)
  theirs = _logged(trained('grpo', scale_rewards='batch'))
  _close(centred / (SCORES.std(ddof=1) + 1e-4), theirs)


class Tokens:
  """Random log-probs of ragged completions, far enough apart to be clipped."""

  def __init__(self):
    rng = np.random.default_rng(1)
    self.mask = np.arange(T) < rng.integers(1, T + 1, B * K)[:, None]
    old = -rng.exponential(size=(B * K, T))
    logps = old + rng.normal(size=old.shape, scale=0.4)
    reference = -rng.exponential(size=old.shape)
    self.old, self.logps, self.reference = (
      np.float32(x * self.mask) for x in (old, logps, reference)
    )
    self.advantages = np.float32(rng.normal(size=B * K))

  def theirs(self, trainer):
    """Their loss of these log-probabilities and its gradient."""
    logps = torch.tensor(self.logps, requires_grad=True)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
      logps,
      torch.zeros_like(logps),
      None,
    )
    ids, old = torch.zeros(B * K, T, dtype=torch.long), torch.tensor(self.old)
    loss = trainer._compute_loss(
      None,
      dict(
        **dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1),
        **dict(completion_ids=ids, completion_mask=torch.tensor(self.mask) * 1),
        **dict(old_per_token_logps=old, old_logps=old.sum(1)),
        ref_per_token_logps=torch.tensor(self.reference),
        advantages=torch.tensor(self.advantages),
      ),
    )
    loss.backward()
    return loss.item(), logps.grad.numpy()

  def agree(self, ours, trainer):
    loss, gradient = jax.value_and_grad(ours)(jnp.asarray(self.logps))
    their_loss, their_gradient = self.theirs(trainer)
    _close(loss, their_loss)
    _close(gradient * self.mask, their_gradient * self.mask)

  def token_mean(self, logps, kl_coefficient=0.0):
    """Of the policy's loss and k3, over all tokens of the batch."""
    losses = policy_gradient.ppo_policy_loss(
      *(logps, self.old, np.repeat(self.advantages[:, None], T, 1)), clip=0.2
    )
    kl = policy_gradient.kl_estimates['k3'](logps, self.reference)
    losses = jnp.where(self.mask, losses + kl_coefficient * kl, 0.0)
    return losses.sum() / self.mask.sum()


def test_policy_loss_is_their_grpos(trained):
  """loss_type 'bnpo', a mean over tokens; their default is 'dapo'."""
  tokens = Tokens()
  tokens.agree(tokens.token_mean, trained('grpo'))


def test_their_grpo_has_k3_in_its_loss(trained, monkeypatch):
  """Times the ratio by default, which the paper doesn't have."""
  tokens, trainer = Tokens(), trained('grpo')
  monkeypatch.setattr(trainer, 'beta', 0.3)
  ours = functools.partial(tokens.token_mean, kl_coefficient=0.3)
  corrected, _ = tokens.theirs(trainer)
  monkeypatch.setattr(trainer.args, 'use_bias_correction_kl', False)
  tokens.agree(ours, trainer)
  assert abs(corrected - ours(jnp.asarray(tokens.logps))) > 0.01


def test_their_rloo_clips_the_ratios_of_completions(trained):
  """A token a completion, so to speak; ours with the tokens' ratios differs."""
  tokens = Tokens()

  def of_completions(logps):
    return policy_gradient.ppo_policy_loss(
      *(logps.sum(1), tokens.old.sum(1), tokens.advantages), clip=0.2
    ).mean()

  tokens.agree(of_completions, trained('rloo'))
  ours = tokens.token_mean(jnp.asarray(tokens.logps))
  assert abs(ours - tokens.theirs(trained('rloo'))[0]) > 0.01


def test_their_defaults():
  def default(config, name):
    return config.__dataclass_fields__[name].default

  assert default(trl.RLOOConfig, 'beta') == 0.05
  assert default(trl.RLOOConfig, 'normalize_advantages') is False
  assert default(trl.RLOOConfig, 'epsilon') == 0.2
  assert default(trl.GRPOConfig, 'beta') == 0.0
  assert default(trl.GRPOConfig, 'use_bias_correction_kl') is True
  assert default(trl.GRPOConfig, 'scale_rewards') == 'group'
  assert default(trl.GRPOConfig, 'loss_type') == 'dapo'
  assert default(trl.GRPOConfig, 'epsilon') == 0.2
