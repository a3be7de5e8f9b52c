"""Training, step by step, next to an independent one in PyTorch.

The other side knows nothing of packing: it reads which examples a step holds,
and `transformers` scores each completion after its prompt in a row of its own.
"""

import numpy as np
import pytest
import torch

from dpo_jax.data import batches
from tests import forests
from tests.methods import trajectories

VOCAB = forests.VOCAB
# name -> (a section of ours, PyTorch's).
OPTIMIZERS = {
  'rmsprop': (dict(name='rmsprop'), lambda p: torch.optim.RMSprop(p, lr=1.0)),
  'adamw': (
    dict(name='adamw', b2=0.95, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=1.0, betas=(0.9, 0.95)),
  ),
}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  with trajectories.one_thread():
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """name -> (folder, a function that makes the same model in PyTorch)."""

  def save(name):
    path = tmp_path_factory.mktemp(name)
    return path, trajectories.save(path, name)

  return save


def _logps(model, rows):
  """Summed log-probs of the completions of (prompt, completion) rows."""
  width = max(len(prompt) + len(answer) for prompt, answer in rows)
  ids = torch.zeros(len(rows), width, dtype=torch.long)
  counted = torch.zeros(len(rows), width, dtype=torch.bool)
  for i, (prompt, answer) in enumerate(rows):
    end = len(prompt) + len(answer)
    ids[i, :end] = torch.tensor([*prompt, *answer])
    counted[i, len(prompt) : end] = True
  # Padding lies on the right, where a causal model does not look.
  logps = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
  picked = logps.gather(-1, ids[:, 1:, None])[..., 0]
  return (picked * counted[:, 1:]).sum(1)


class Peer:
  """The optimisation in PyTorch: its optimizer, warmup and clipping."""

  def __init__(self, model, optimizer, *, peak, warmup, clip):
    self.model, self.peak, self.warmup = model, peak, warmup
    self.clip, self.steps = clip, 0
    section, make = OPTIMIZERS[optimizer]
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
      decayed = not any(part in name for part in ('norm', 'ln_', 'bias'))
      groups[decayed].append(parameter)
    decay = section.get('weight_decay', 0.0)
    self.optimizer = make(
      [
        {'params': groups[True], 'weight_decay': decay},
        {'params': groups[False], 'weight_decay': 0.0},
      ]
    )

  def update(self, loss):
    """One step; returns the gradient's norm before clipping."""
    self.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
    rise = min(1.0, (self.steps + 1) / (self.warmup + 1))
    for group in self.optimizer.param_groups:
      group['lr'] = self.peak * rise
    self.optimizer.step()
    self.steps += 1
    return norm


def _assert_close(ours, theirs, step):
  for name, value in theirs.items():
    expected = pytest.approx(float(value.detach()), rel=0, abs=1e-4)
    assert ours[name] == expected, f'{name}, step {step}'


@pytest.mark.parametrize(
  'model, optimizer, smoothing, split, options',
  [
    pytest.param(
      *('llama', 'rmsprop', 0.0, 2, dict(peak=3e-4, warmup=6, clip=2.0)),
      marks=pytest.mark.long,
    ),
    pytest.param(
      *('llama', 'adamw', 0.2, 1, dict(peak=1e-3, warmup=6, clip=2.0)),
      marks=pytest.mark.long,
    ),
    ('gpt2', 'rmsprop', 0.0, 1, dict(peak=3e-4, warmup=0, clip=1e9)),
  ],
)
def test_dpo_tracks_pytorch(
  checkpoint, model, optimizer, smoothing, split, options
):
  path, make = checkpoint(model)
  records = forests.random_records(5, num=10, max_branches=3, min_prompt=1)
  packed = batches.train_batches(
    records, 20, rows=2, seed=3, batch_size=4, max_shapes=1
  )
  beta = 0.2
  method = dict(
    name='dpo', beta=beta, reference='in_step', label_smoothing=smoothing
  )
  ours, _ = trajectories.run(
    path, method, OPTIMIZERS[optimizer][0], packed, split, **options
  )

  reference, peer = make(), Peer(make(), optimizer, **options)
  norms = []
  for step, metrics in enumerate(ours):
    rows = [
      row for example in trajectories.examples(packed, step) for row in example
    ]
    policy = _logps(peer.model, rows).reshape(-1, 2)
    with torch.no_grad():
      frozen = _logps(reference, rows).reshape(-1, 2)
    ratios = policy - frozen
    # Eq. 7 of arXiv:2305.18290, over labels flipped with some probability.
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    as_labelled = torch.nn.functional.logsigmoid(margins)
    flipped = torch.nn.functional.logsigmoid(-margins)
    loss = -((1 - smoothing) * as_labelled + smoothing * flipped).mean()
    expected = {
      'loss': loss,
      'rewards/margins': margins.mean(),
      'rewards/chosen': beta * ratios[:, 0].mean(),
      'rewards/rejected': beta * ratios[:, 1].mean(),
      'logps/chosen': policy[:, 0].mean(),
      'logps/rejected': policy[:, 1].mean(),
      'grad_norm': peer.update(loss),
    }
    _assert_close(metrics, expected, step)
    norms.append(metrics['grad_norm'])
  # The policy went somewhere; clipping mattered in some steps, not in all.
  assert ours[-1]['rewards/margins'] > 0.5
  assert min(norms) < options['clip']
  assert max(norms) > options['clip'] or options['clip'] == 1e9


@pytest.mark.parametrize(
  'model, normalise',
  [
    pytest.param('llama', 'tokens', marks=pytest.mark.long),
    ('gpt2', 'sequences'),
  ],
)
def test_sft_tracks_pytorch(checkpoint, model, normalise):
  path, make = checkpoint(model)
  rng = np.random.default_rng(5)

  def ids(low, high):
    return rng.integers(0, VOCAB, rng.integers(low, high)).tolist()

  records = forests.make([(ids(1, 9), [ids(2, 8)], [(0,)]) for _ in range(10)])
  packed = batches.train_batches(
    records, 10, rows=1, seed=3, batch_size=4, max_shapes=1
  )
  options = dict(peak=3e-3, warmup=3, clip=1.0)
  method = dict(name='sft', normalise=normalise)
  ours, _ = trajectories.run(
    path, method, OPTIMIZERS['adamw'][0], packed, **options
  )

  peer = Peer(make(), 'adamw', **options)
  for step, metrics in enumerate(ours):
    rows = [row for (row,) in trajectories.examples(packed, step)]
    total = _logps(peer.model, rows).sum()
    counts = {
      'tokens': sum(len(answer) for _, answer in rows),
      'sequences': len(rows),
    }
    loss = -total / counts[normalise]
    expected = {
      'loss': loss,
      'logps/tokens': total / counts['tokens'],
      'logps/sequences': total / counts['sequences'],
      'grad_norm': peer.update(loss),
    }
    _assert_close(metrics, expected, step)
  assert ours[-1]['loss'] < 0.9 * ours[0]['loss']
