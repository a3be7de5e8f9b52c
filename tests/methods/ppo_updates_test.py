"""Ten PPO updates of ours, beside those of an independent loop in PyTorch.

Ours are what a run makes of rollouts: `collection.collect` scores them, makes
advantages and minibatches, and the train step updates. Only sampling is
replaced, so that both sides have the same completions.
"""

import jax
import numpy as np
import optax
import pytest
import torch
import transformers

from dpo_jax import methods, models, types, weights
from dpo_jax.data import order
from dpo_jax.evals import reward_scores
from dpo_jax.methods import collection, judging
from dpo_jax.methods import rollouts as rollouts_lib
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import sharding
from dpo_jax.training import step as steps_lib
from tests import forests
from tests.methods import ppo_torch, trajectories
from tests.theory import arms

PROMPTS, SAMPLES, MOST = 10, 2, 8
SCHEDULE = collection.Schedule(
  num_prompts=PROMPTS,
  num_samples=SAMPLES,
  max_new_tokens=MOST,
  minibatches=5,
  epochs=2,
)
RATE, KL = 3e-3, 0.2


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  with trajectories.one_thread():
    yield


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(policy, reference, value model) of PyTorch, and our (config, params)."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2),
    **dict(num_attention_heads=4, num_labels=1, pad_token_id=0),
    **trajectories.NEW,
  )
  policy = transformers.LlamaForCausalLM(config)
  reference = transformers.LlamaForCausalLM(config)
  value = transformers.LlamaForSequenceClassification(config)
  ours = []
  for i, model in enumerate((policy, reference, value)):
    folder = tmp_path_factory.mktemp(str(i))
    model.save_pretrained(folder)
    ours.append(weights.load(str(folder)))
  return (policy, reference, value), ours


def _logps(model, prompt, completion):
  with torch.no_grad():
    logits = model(torch.tensor([prompt + completion])).logits[0]
  logps = torch.log_softmax(logits, -1)[len(prompt) - 1 :]
  return [logps[t, token].item() for t, token in enumerate(completion)]


def _rollouts(policy, reference):
  """The same completions, as each side holds them."""
  rng = np.random.default_rng(0)

  def ids(length):
    return rng.integers(1, forests.VOCAB, length).tolist()

  prompts = [ids(rng.integers(1, 6)) for _ in range(PROMPTS)]
  every = [p for p in prompts for _ in range(SAMPLES)]
  completions = [ids(rng.integers(1, MOST + 1)) for _ in every]
  logps, others = (
    [_logps(model, p, c) for p, c in zip(every, completions)]
    for model in (policy, reference)
  )
  scores = rng.normal(size=len(every)).tolist()
  theirs = ppo_torch.Rollouts(every, completions, logps, others, scores)

  def padded(rows, dtype):
    return np.array([[*r, *[0] * (MOST - len(r))] for r in rows], dtype)

  ours = rollouts_lib.Rollouts(
    prompts=prompts,
    where=['here:1'] * PROMPTS,
    prompt_texts=['p'] * len(every),
    texts=['c'] * len(every),
    tokens_NxT=padded(completions, np.int32),
    length_N=np.array(list(map(len, completions))),
    logps_NxT=padded(logps, np.float32),
    ended_N=np.arange(len(every)) % 3 > 0,
  )
  return ours, theirs


def _train(made, rollouts, scores, monkeypatch):
  """(what each update logged, parameters at the end)."""
  (config, policy), (_, reference), (value_config, value) = made
  builder = methods.build_online(
    dict(name='ppo', kl_coefficient=KL, value_coefficient=0.1)
  )
  online = builder.build(models.policy(config), models.policy(value_config))
  mesh = sharding.make_mesh(devices=1)
  monkeypatch.setattr(rollouts_lib, 'draw', lambda *args, **kwargs: rollouts)
  collector = collection.Collector(
    schedule=SCHEDULE,
    online=online,
    config=config,
    compute=models.Compute(),
    tokenizer=arms.Letters(),
    records=reward_scores.token_records([(p, [1]) for p in rollouts.prompts]),
    judge=lambda rollouts: judging.Judged(scores_N=np.float32(scores)),
    mesh=mesh,
    rows=1,
    seed=0,
    run_samples=PROMPTS * SAMPLES,
    rescore=None,
  )
  optimizer = optax.adamw(RATE, weight_decay=0.0)
  params = {'policy': policy, 'value': value}
  state = steps_lib.init_state(
    online.method, optimizer, params, jax.random.key(0)
  )
  step = steps_lib.make_train_step(online.method, optimizer)
  found = collection.collect(collector, state, reference, 0)
  state, updates = state.replace(aux=found.aux), []
  for batch in found.batches:
    state, metrics = step(state, types.Frozen(), batch)
    updates.append(metrics_lib.means(jax.device_get(metrics)))
  return updates, state.params


def _minibatches() -> list[list[int]]:
  """The completions of each minibatch, which are those of its prompts."""
  out = []
  for epoch in range(SCHEDULE.epochs):
    shuffled = order.epoch_order(PROMPTS, 0, epoch, collection.MINIBATCHES)
    for part in np.array_split(shuffled, SCHEDULE.minibatches):
      out.append([b * SAMPLES + k for b in part for k in range(SAMPLES)])
  return out


def _check_changes(start, mine, model, folder):
  """The change of each array, as a vector, to 1e-3 of its norm."""
  model.save_pretrained(folder)
  _, theirs = weights.load(str(folder))
  for (path, first), last, other in zip(
    jax.tree_util.tree_leaves_with_path(start),
    *map(jax.tree.leaves, (mine, theirs)),
    strict=True,
  ):
    change, gap = np.linalg.norm(other - first), np.linalg.norm(last - other)
    assert gap < 1e-3 * change, jax.tree_util.keystr(path)


@pytest.mark.long
def test_ten_updates_are_those_of_pytorch(made, monkeypatch, tmp_path):
  (policy, reference, value), ours = made
  rollouts, theirs = _rollouts(policy, reference)
  # The train step may take over the arrays that it starts from.
  start = [jax.tree.map(np.array, ours[i][1]) for i in (0, 2)]
  updates, params = _train(ours, rollouts, theirs.scores, monkeypatch)
  trained = ppo_torch.train(
    policy,
    value,
    theirs,
    _minibatches(),
    learning_rate=RATE,
    kl_coefficient=KL,
  )
  assert len(updates) == len(trained.updates) == 10
  names = {
    'policy/loss': 'policy_loss',
    'value/loss': 'value_loss',
    'loss': 'loss',
    'grad_norm': 'grad_norm',
  }
  for mine, other in zip(updates, trained.updates):
    for name, their_name in names.items():
      np.testing.assert_allclose(
        mine[name], other[their_name], rtol=1e-4, atol=1e-6, err_msg=name
      )
  # The ratio is clipped somewhere, or half of the loss was not compared.
  assert updates[-1]['policy/clip_fraction'] > 0
  for first, key, model in zip(start, ('policy', 'value'), (policy, value)):
    _check_changes(first, params[key], model, tmp_path / key)
  ids = torch.arange(1, forests.VOCAB)[None]
  tokens = jax.numpy.asarray(ids.numpy())
  config, value_config = ours[0][0], ours[2][0]
  hidden = models.forward(params['policy'], config, tokens)
  with torch.no_grad():
    expected = trained.policy(ids).logits.numpy()
    last = trained.value_model.model(ids).last_hidden_state
    values = trained.value_model.score(last)[..., 0].numpy()
  logits = models.logits(params['policy'], config, hidden)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
  hidden = models.forward(params['value'], value_config, tokens)
  found = models.scalar(params['value'], value_config, hidden)
  np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-4)
