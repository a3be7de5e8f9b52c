"""PPO in PyTorch, written from its papers: what runs of ours are compared with.

Differences from TRL 1.12's trainer: the value after a completion's last token
is 0 whether it ended or was cut; policy and value losses are means over the
tokens of a whole minibatch; minibatches are given; no dropout. AdamW is
PyTorch's with one learning rate for policy and value model and no weight decay.
"""

from typing import NamedTuple

import torch


class Rollouts(NamedTuple):
  """Completions that were sampled; lists over them, of lists over tokens.

  scores: one a completion. No prompt and no completion is empty.
  """

  prompts: list[list[int]]
  completions: list[list[int]]
  logps: list[list[float]]
  reference_logps: list[list[float]]
  scores: list[float]


class Trained(NamedTuple):
  """What `train` did, for the completions in their order and by update.

  values, advantages (before whitening), whitened, returns: lists of tensors,
  one number a token. updates: dicts of floats, 'policy_loss', 'value_loss',
  'loss', and 'grad_norm' before clipping, over both models. policy,
  value_model: the modules, at their last weights.
  """

  values: list[torch.Tensor]
  advantages: list[torch.Tensor]
  whitened: list[torch.Tensor]
  returns: list[torch.Tensor]
  updates: list[dict[str, float]]
  policy: torch.nn.Module
  value_model: torch.nn.Module


def train(
  policy: torch.nn.Module,
  value_model: torch.nn.Module,
  rollouts: Rollouts,
  minibatches: list[list[int]],
  *,
  learning_rate: float,
  kl_coefficient: float = 0.05,
  discount: float = 1.0,
  gae_lambda: float = 0.95,
  policy_clip: float = 0.2,
  value_clip: float | None = 0.2,
  value_coefficient: float = 0.1,
  betas: tuple[float, float] = (0.9, 0.999),
  eps: float = 1e-8,
  max_grad_norm: float | None = None,
) -> Trained:
  """Trains both models in place: one update for each of `minibatches`.

  policy: a transformers LlamaForCausalLM; value_model: a
  LlamaForSequenceClassification with num_labels=1, its own trunk and a linear
  head on its last (normalised) hidden states. A value belongs to the position
  that predicts its token. minibatches: indices of completions, e.g. a
  permutation of them for each epoch, cut into parts.
  loss = policy_loss + value_coefficient value_loss.
  """
  policy.eval()
  value_model.eval()
  with torch.no_grad():
    every = range(len(rollouts.completions))
    values = _values(value_model, rollouts, every)
  advantages = [
    _advantages(_rewards(rollouts, i, kl_coefficient), v, discount, gae_lambda)
    for i, v in enumerate(values)
  ]
  returns = [a + v for a, v in zip(advantages, values, strict=True)]
  whitened = _whiten(advantages)
  parameters = [*policy.parameters(), *value_model.parameters()]
  optimizer = torch.optim.AdamW(
    parameters, lr=learning_rate, betas=betas, eps=eps, weight_decay=0.0
  )
  updates = []
  for indices in minibatches:
    policy_loss = _policy_loss(
      torch.cat(_logps(policy, rollouts, indices)),
      torch.cat([torch.tensor(rollouts.logps[i]) for i in indices]),
      torch.cat([whitened[i] for i in indices]),
      policy_clip,
    ).mean()
    value_loss = _value_loss(
      torch.cat(_values(value_model, rollouts, indices)),
      torch.cat([values[i] for i in indices]),
      torch.cat([returns[i] for i in indices]),
      value_clip,
    ).mean()
    loss = policy_loss + value_coefficient * value_loss
    losses = dict(policy_loss=policy_loss, value_loss=value_loss, loss=loss)
    losses['grad_norm'] = _update(optimizer, parameters, loss, max_grad_norm)
    updates.append({name: x.item() for name, x in losses.items()})
  return Trained(
    values, advantages, whitened, returns, updates, policy, value_model
  )


def _update(optimizer, parameters, loss, max_grad_norm):
  """One step; the norm of the gradient before it is clipped."""
  optimizer.zero_grad()
  loss.backward()
  limit = float('inf') if max_grad_norm is None else max_grad_norm
  norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
  optimizer.step()
  return norm


def _rewards(rollouts, index, kl_coefficient):
  """Penalties by k1, and the score at the last token."""
  logps, reference = (
    torch.tensor(x[index]) for x in (rollouts.logps, rollouts.reference_logps)
  )
  rewards = -kl_coefficient * (logps - reference)
  rewards[-1] += rollouts.scores[index]
  return rewards


def _advantages(rewards, values, discount, gae_lambda):
  """Backwards over the tokens of one completion."""
  out = torch.zeros_like(values)
  advantage, next_value = 0.0, 0.0
  for t in reversed(range(len(values))):
    delta = rewards[t] + discount * next_value - values[t]
    advantage = delta + discount * gae_lambda * advantage
    out[t], next_value = advantage, values[t]
  return out


def _whiten(advantages):
  """Over the tokens of all completions, with the variance over n - 1."""
  every = torch.cat(advantages)
  scale = torch.sqrt(every.var(unbiased=True) + 1e-8)
  return [(a - every.mean()) / scale for a in advantages]


def _policy_loss(logps, old_logps, advantages, clip):
  ratio = torch.exp(logps - old_logps)
  clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
  return -torch.min(advantages * ratio, advantages * clipped)


def _value_loss(values, old_values, returns, clip):
  error = (values - returns) ** 2
  if clip is not None:
    near = torch.clamp(values, old_values - clip, old_values + clip)
    error = torch.max(error, (near - returns) ** 2)
  return error / 2


def _hidden_states(trunk, rollouts, indices):
  """[(last hidden states that predict a completion's tokens)], one batch."""
  rows = [rollouts.prompts[i] + rollouts.completions[i] for i in indices]
  width = max(map(len, rows))
  ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
  mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
  hidden = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
  starts = [len(rollouts.prompts[i]) - 1 for i in indices]
  return [
    h[start : len(row) - 1]
    for h, start, row in zip(hidden, starts, rows, strict=True)
  ]


def _logps(policy, rollouts, indices):
  out = []
  for i, hidden in zip(
    indices, _hidden_states(policy.model, rollouts, indices), strict=True
  ):
    logps = torch.log_softmax(policy.lm_head(hidden), dim=-1)
    ids = torch.tensor(rollouts.completions[i])
    out.append(logps[torch.arange(len(ids)), ids])
  return out


def _values(value_model, rollouts, indices):
  return [
    value_model.score(hidden)[:, 0]
    for hidden in _hidden_states(value_model.model, rollouts, indices)
  ]
