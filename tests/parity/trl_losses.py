"""TRL's losses on given log-probabilities, and ours beside them.

TRL computes its losses in methods of its trainers, from a model's outputs. They
are called here on trainers that were never constructed, with a "model" that
returns given per-token log-probabilities.
"""

import collections
import functools
import types as python_types
import warnings

import jax.numpy as jnp
import numpy as np
import torch
import trl

from dpo_jax import losses, types
from tests.losses.pairs import gradient

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  from trl.experimental import cpo as trl_cpo
  from trl.experimental import orpo as trl_orpo

CPOTrainer, CPOConfig = trl_cpo.CPOTrainer, trl_cpo.CPOConfig
ORPOTrainer = trl_orpo.ORPOTrainer

P, TOKENS = 6, 9
Space = python_types.SimpleNamespace
ACCELERATOR = Space(
  device='cpu', gather=lambda x: x, gather_for_metrics=lambda x: x
)


def unbuilt(cls, **attributes):
  """A trainer with the attributes that its loss reads, and nothing else."""
  trainer = cls.__new__(cls)
  vars(trainer).update(
    accelerator=ACCELERATOR,
    model=Space(training=True),
    aux_loss_enabled=False,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
    **attributes,
  )
  return trainer


class Tokens:
  """Random per-token log-probs of 2 P answers, the preferred ones first."""

  def __init__(self, seed=0, rows=2 * P, scale=1.0):
    rng = np.random.default_rng(seed)
    self.length = rng.integers(2, TOKENS + 1, rows)
    self.mask = np.arange(TOKENS) < self.length[:, None]
    policy, reference = -rng.exponential(size=(2, rows, TOKENS)) * scale
    self.policy = np.float32(policy * self.mask)
    self.reference = np.float32(reference * self.mask)

  def pairs(self) -> types.PairLogps:
    def columns(x):
      return jnp.asarray(x.reshape(2, -1).T)

    return types.PairLogps(
      policy=columns(self.policy.sum(1)),
      reference=columns(self.reference.sum(1)),
      length=columns(self.length),
    )

  def outputs(self, policy):
    """What a model with TRL's fused head returns."""
    zeros = torch.zeros_like(policy)
    return Space(
      log_probs=policy,
      entropy=zeros,
      mean_logits=zeros,
      is_top1=zeros.bool(),
      log_sum_sq_probs=zeros,
    )

  def inputs(self):
    """One prompt token before each answer."""
    prompt = np.zeros((len(self.mask), 1), bool)
    mask = torch.tensor(np.concatenate([prompt, self.mask], axis=1)).long()
    ones = torch.ones_like(mask)
    return dict(input_ids=ones, attention_mask=ones, completion_mask=mask)


def dpo_loss(tokens, loss_type, *, beta=0.3, divergence='reverse_kl', **given):
  """(loss, gradient per token) of TRL's DPO trainer."""
  trainer = unbuilt(
    trl.DPOTrainer,
    **dict(ld_alpha=None, precompute_ref_logps=True, use_weighting=False),
    **dict(loss_types=[loss_type], loss_weights=[1.0], beta=beta),
    f_divergence_type=divergence,
    f_alpha_divergence_coef=given.get('coef'),
    label_smoothing=given.get('label_smoothing', 0.0),
    args=Space(discopop_tau=given.get('discopop_tau', 0.05)),
  )
  policy = torch.tensor(tokens.policy, requires_grad=True)
  chosen, rejected = torch.tensor(tokens.reference).sum(1).chunk(2)
  inputs = dict(
    tokens.inputs(), ref_chosen_logps=chosen, ref_rejected_logps=rejected
  )
  model = lambda **_: tokens.outputs(policy)  # noqa: E731
  loss = trainer._compute_loss(model, inputs, False)
  loss.backward()
  return float(loss.detach()), policy.grad.numpy()


def ours(name, **options):
  fn = losses.PREFERENCE_LOSSES[name]
  if name not in ('slic', 'unlikelihood', 'preferred_ft'):
    options.setdefault('beta', 0.3)
  return functools.partial(fn, **options)


def assert_agree(tokens, fn, trl_result, rtol=1e-5):
  """Mean loss, and the gradient that reaches each token."""
  loss, grads = trl_result
  pairs = tokens.pairs()
  np.testing.assert_allclose(fn(pairs).mean(), loss, rtol=rtol)
  per_answer = np.asarray(gradient(fn, pairs)).T.ravel() / len(pairs.length)
  expected = np.where(tokens.mask, per_answer[:, None], 0.0)
  np.testing.assert_allclose(
    np.where(tokens.mask, grads, 0.0),
    expected,
    rtol=10 * rtol,
    atol=1e-6 * np.abs(expected).max(),
  )


def answers(chosen, rejected) -> types.PairLogps:
  """Of two answers of one token each."""
  policy = jnp.stack([chosen, rejected], axis=-1)
  return types.PairLogps(policy, None, jnp.ones(policy.shape, jnp.int32))


def kto_loss(tokens, label, mismatched, **weights):
  trainer = unbuilt(
    trl.KTOTrainer,
    **dict(calculate_KL=True, precompute_ref_logps=True, loss_type='kto'),
    **dict(beta=0.3, **weights),
  )
  trainer._compute_kl_logps = lambda *_: torch.tensor(mismatched)
  policy = torch.tensor(tokens.policy, requires_grad=True)
  inputs = dict(
    tokens.inputs(),
    label=torch.tensor(label),
    ref_logps=torch.tensor(tokens.reference).sum(1),
    ref_KL_logps=torch.zeros(len(label)),
  )
  model = lambda **_: tokens.outputs(policy)  # noqa: E731
  loss = trainer._compute_loss(model, inputs, False)
  loss.backward()
  return float(loss.detach()), policy.grad.numpy()
