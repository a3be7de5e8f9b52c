"""The gradient of section 4, arXiv:2305.18290, in all of a real model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import methods, models, registry, tokenizers, weights
from dpo_jax.data import batches
from dpo_jax.training import step
from tests import forests

BETA = 0.3
LENGTH = 16
PAIRS = [
  ('The film is', ' a quiet triumph.', ' a mess, and dull.'),
  ('Her acting was', ' warm, funny and precise.', ' lifeless.'),
]


def _rows(gguf):
  """(prompt, [chosen, rejected]) as ids."""
  tokenizer = tokenizers.load(str(gguf))
  for prompt, *answers in PAIRS:
    ends = [[*tokenizer.encode(a), tokenizer.eos_id] for a in answers]
    yield tokenizer.encode(prompt), ends


def _perturbed(params, scale):
  """Every parameter changed, by a share of its leaf's size."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)

  def move(x):
    noise = rng.standard_normal(x.shape, np.float32)
    return x + scale * jnp.std(x) * noise

  return tree.unflatten(map(move, leaves))


def _method_gradient(config, rows, policy_params, reference_params):
  """Of the mean loss over the pairs, by autodiff through the method."""
  section = dict(name='dpo', beta=BETA, reference='in_step')
  policy = models.policy(config)
  method = registry.build(methods.METHODS, section, 'method')()(policy)
  records = forests.make([(*row, [(0, 1)]) for row in rows])
  (packed,) = batches.eval_batches(records, 1, batch_size=len(rows))
  assert len(packed) == 1
  frozen = method.freeze(reference_params)
  aux = method.init_aux(reference_params)

  @jax.jit
  def gradient(params, frozen, batch):
    def mean(params):
      key = jax.random.key(0)
      full = step.annotated(method, method.score, frozen, aux, batch, key)
      scores = method.score(params, frozen, full, key)
      total, count, _ = method.objective(scores, full, aux)
      return total / count

    return jax.grad(mean)(params)

  return gradient(policy_params, frozen, packed[0])


def _plain_logp(config, params, ids, scored):
  """log p of the scored tokens of one sequence, by a full softmax."""
  compute = models.Compute(attention='dense')
  hidden = models.forward(params, config, ids[None], compute=compute)
  logps = jax.nn.log_softmax(models.logits(params, config, hidden)[0, :-1])
  picked = jnp.take_along_axis(logps, ids[1:, None], axis=-1)[:, 0]
  return jnp.sum(jnp.where(scored[1:], picked, 0.0))


def _sequence(prompt, answer):
  """ids i32[LENGTH] and which of them count; what follows is not seen."""
  ids, scored = np.zeros(LENGTH, np.int32), np.zeros(LENGTH, bool)
  end = len(prompt) + len(answer)
  ids[:end] = prompt + answer
  scored[len(prompt) : end] = True
  return ids, scored


def _hand_assembled(config, rows, policy_params, reference_params):
  """-beta E[sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l))].

  And the weights sigma(r_l - r_w). Every sequence has a backward pass of its
  own.
  """
  logp = functools.partial(_plain_logp, config)
  with_gradient, alone = jax.jit(jax.value_and_grad(logp)), jax.jit(logp)
  total, weights_P = None, []
  for prompt, answers in rows:
    sequences = [_sequence(prompt, answer) for answer in answers]
    found = [with_gradient(policy_params, *s) for s in sequences]
    better, worse = (
      BETA * float(own - alone(reference_params, *s))
      for (own, _), s in zip(found, sequences)
    )
    weight = 1 / (1 + np.exp(better - worse))
    weights_P.append(weight)
    part = jax.tree.map(
      lambda a, b: -BETA * weight / len(rows) * (a - b),  # noqa: B023
      *(gradient for _, gradient in found),
    )
    total = part if total is None else jax.tree.map(jnp.add, total, part)
  return total, np.array(weights_P)


@pytest.mark.long
@pytest.mark.download
def test_autodiff_gives_the_papers_weighted_form(smollm2_gguf):
  config, reference = weights.load(str(smollm2_gguf))
  policy, rows = _perturbed(reference, 0.1), list(_rows(smollm2_gguf))
  expected, weights_P = _hand_assembled(config, rows, policy, reference)
  # Far from 1/2 and from each other: the weight matters.
  assert np.abs(weights_P - 0.5).min() > 0.05 and np.ptp(weights_P) > 0.1
  got = _method_gradient(config, rows, policy, reference)
  assert jax.tree.structure(got) == jax.tree.structure(expected)

  def distance(a, b):
    return float(jnp.linalg.norm((a - b).ravel()))

  for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
    size = float(jnp.linalg.norm(leaf.ravel()))
    other = functools.reduce(lambda tree, key: tree[key.key], path, got)
    assert size > 0 and distance(other, leaf) < 1e-4 * size, path
