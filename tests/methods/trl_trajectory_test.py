"""20 steps of objectives next to TRL's own trainers, on a tiny model.

These run as they are: on text, each completion after its prompt in a row of its
own, with PyTorch's optimizer and their own reference.
"""

import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import weights
from dpo_jax.data import batches
from tests import forests
from tests.methods import trajectories
from tests.parity import trl_trainers

VOCAB = forests.VOCAB
OPTIMIZER = dict(name='adamw', b2=0.95, weight_decay=0.1)
TRL_OPTIMIZER = dict(adam_beta2=0.95, weight_decay=0.1)
REWARDS = ('rewards/chosen', 'rewards/rejected', 'rewards/margins')
LOGPS = ('logps/chosen', 'logps/rejected')


def _dpo(ours, compared=(*REWARDS, *LOGPS), *, beta=0.2, **theirs):
  ours = dict(reference='in_step', beta=beta) | ours
  return ours, 'dpo', dict(beta=beta, **theirs), compared


def _cpo(ours, compared, *, beta, **theirs):
  theirs = dict(beta=beta, cpo_alpha=0.0, **theirs)
  return dict(beta=beta) | ours, 'cpo', theirs, compared


# name -> (our options, TRL's trainer, its settings, what both log alike beside
# loss and grad_norm). TRL's rewards are log-ratios whatever its loss compares;
# its log-probabilities are what its loss sums.
TRL_RUNS = {
  'dpo': _dpo({}, loss_type='sigmoid'),
  'ipo': _dpo(
    dict(loss='ipo', normalise='tokens'), LOGPS, beta=0.5, loss_type='ipo'
  ),
  'hinge': _dpo(dict(loss='hinge'), loss_type='hinge'),
  'nca': _dpo(dict(loss='nca'), loss_type='nca_pair'),
  'apo_zero': _dpo(dict(loss='apo_zero'), loss_type='apo_zero'),
  'sppo': _dpo(dict(loss='sppo'), loss_type='sppo_hard'),
  'aot': _dpo(dict(loss='aot'), loss_type='aot'),
  'forward_kl': _dpo(
    dict(divergence='forward_kl'),
    LOGPS,
    loss_type='sigmoid',
    f_divergence_type='forward_kl',
  ),
  'ld': _dpo(
    dict(length='ld', ld_alpha=0.4), REWARDS, loss_type='sigmoid', ld_alpha=0.4
  ),
  'tr_dpo': _dpo(
    dict(reference='drifting', reference_options=dict(every=5, mix=0.6)),
    loss_type='sigmoid',
    sync_ref_model=True,
    ref_model_sync_steps=5,
    ref_model_mixup_alpha=0.6,
  ),
  'simpo': _cpo(
    dict(loss='simpo', gamma=1.0),
    REWARDS,
    beta=2.0,
    loss_type='simpo',
    simpo_gamma=1.0,
  ),
  'cpo': _cpo(
    dict(loss='cpo', likelihood_weight=0.0),
    (*REWARDS, *LOGPS),
    beta=0.2,
    loss_type='sigmoid',
  ),
}
# Those of a trainer each, and a reference that moves.
QUICK = ('dpo',)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  with trajectories.one_thread():
    yield


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  """(folder, a function that makes the same model in PyTorch)."""
  path = tmp_path_factory.mktemp('llama')
  return path, trajectories.save(path, 'llama')


@pytest.fixture(scope='module')
def winners():
  """20 steps of pairs; every answer ends with EOS, which TRL would add.

  No answer both wins and loses: its gradients would cancel to rounding errors,
  of which Adam makes whole steps.
  """
  rng = np.random.default_rng(5)
  eos = trl_trainers.EOS

  def ids(low, high):
    return rng.integers(eos + 1, VOCAB, rng.integers(low, high)).tolist()

  records = forests.make(
    (ids(1, 9), [[*ids(1, 7), eos] for _ in range(3)], [(0, 1), (0, 2)])
    for _ in range(10)
  )
  return batches.train_batches(
    records, 20, rows=2, seed=3, batch_size=4, max_shapes=1
  )


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK))
    for name in TRL_RUNS
  ],
)
def test_objectives_track_trl(llama, winners, name, tmp_path):
  """Metrics of every step, and the parameters after the last."""
  path, make = llama
  options, trainer, settings, compared = TRL_RUNS[name]
  peak, clip = 1e-3, 4.0
  ours, params = trajectories.run(
    *(path, dict(name='dpo', **options), OPTIMIZER, winners),
    **dict(peak=peak, warmup=0, clip=clip),
  )
  pairs = [
    [(chosen[0], chosen[1], rejected[1]) for chosen, rejected in examples]
    for examples in (
      trajectories.examples(winners, step) for step in range(len(winners))
    )
  ]
  theirs, trained = trl_trainers.train(
    *(tmp_path, trainer, make, pairs, VOCAB),
    **dict(learning_rate=peak, max_grad_norm=clip),
    **TRL_OPTIMIZER,
    **settings,
  )
  for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
    for metric in ('loss', 'grad_norm', *compared):
      expected = pytest.approx(their[metric], rel=5e-5, abs=2e-5)
      assert our[metric] == expected, f'{metric}, step {step}'
  start, end = (
    jax.flatten_util.ravel_pytree(weights.load(folder)[1])[0]
    for folder in (path, trained)
  )
  assert jnp.abs(end - start).max() > 10 * peak
  params, _ = jax.flatten_util.ravel_pytree(params)
  np.testing.assert_allclose(params, end, atol=peak / 100)
