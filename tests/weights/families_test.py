"""Every family, with all its variants on, against `transformers`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dpo_jax import models, weights
from dpo_jax.weights import families
from tests import forests
from tests.sampling import prefilled
from tests.weights import peers

SAMPLES, STEPS = 2, 7
TOLERANCE = 1e-4


class Loaded(NamedTuple):
  name: str
  peer: transformers.PreTrainedModel
  config: models.ModelConfig
  params: Any
  folder: Any


def _load(name, folder):
  peer = peers.make(name)
  peer.save_pretrained(folder)
  return Loaded(name, peer, *weights.load(folder), folder)


@pytest.fixture(scope='module', params=peers.OPTIONS)
def loaded(request, tmp_path_factory):
  return _load(request.param, tmp_path_factory.mktemp('peer'))


def test_every_family_has_a_peer():
  written = {n for n, f in families.FAMILIES.items() if f.hf and f.hf.extra}
  assert written == set(map(peers.model_type, peers.OPTIONS))


def _peer_logits(peer, ids_BxL):
  with torch.no_grad():
    return peer(torch.as_tensor(ids_BxL)).logits.numpy()


def _assert_close(actual, expected):
  assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_logits_of_packed_forests_equal_those_of_plain_sequences(loaded):
  records = forests.make(
    [
      (list(range(3, 15)), [[1, 2, 3, 4, 5, 6, 7], [9, 8]], [(0, 1)]),
      (list(range(20, 31)), [[40, 41, 42], [43, 44, 45, 46]], [(1, 0)]),
    ]
  )
  batch = forests.pack(records, rows=1, batch_size=2, num_batches=1, seed=0)[0]
  assert batch.layout.shared

  @jax.jit
  def both(params):
    out = []
    for backend in ('dense', 'tree'):
      hidden = models.forward(
        params,
        loaded.config,
        batch.tokens_RxL,
        batch.layout,
        compute=models.Compute(attention=backend),
      )
      out.append(models.logits(params, loaded.config, hidden)[0])
    return out

  found = both(loaded.params)
  layout = batch.layout
  segment, branch = layout.segment_RxL[0], layout.branch_RxL[0]
  seen = 0
  for tree in range(1, segment.max() + 1):
    for b in (1, 2):
      at = np.flatnonzero((segment == tree) & ((branch == 0) | (branch == b)))
      expected = _peer_logits(loaded.peer, batch.tokens_RxL[0, at][None])[0]
      for logits in found:
        _assert_close(np.asarray(logits)[at], expected)
      seen += len(at)
  assert seen == 12 * 2 + 9 + 11 * 2 + 7


@pytest.mark.parametrize(
  'loaded', ['mistral', 'gemma2', 'gemma3_text'], indirect=True
)
def test_decoding_equals_the_peer_token_by_token(loaded):
  """Prompts below and above the window, own tokens beyond it.

  Other families are in tests/models/kv_cache_test.py.
  """
  prompts = [[5, 6, 7], list(range(30, 42))]
  compute, config = models.Compute(), loaded.config
  rng = np.random.default_rng(0)
  after_BxSxT = rng.integers(0, 97, (2, SAMPLES, STEPS))
  last, cache, index_B = prefilled.cache_of(
    loaded.params,
    config,
    prompts,
    num_samples=SAMPLES,
    capacity=STEPS,
    compute=compute,
  )
  params = models.unstack(loaded.params, compute)

  @jax.jit
  def step(token, t, cache):
    hidden, cache = models.decode(
      params, config, token, t, cache, compute=compute
    )
    logits = models.step_logits(params, config, hidden.reshape(-1, 32))
    return logits.T.reshape(2, SAMPLES, -1), cache

  logits = models.step_logits(params, config, last).T
  found = [jnp.repeat(logits[:, None], SAMPLES, axis=1)]
  for t in range(STEPS):
    token = after_BxSxT[index_B, :, t]
    logits, cache = step(token, jnp.int32(t), cache)
    found.append(logits)
  found = np.stack(found, 2)
  for place, b in enumerate(index_B):
    for s in range(SAMPLES):
      ids = np.array([[*prompts[b], *after_BxSxT[b, s]]])
      expected = _peer_logits(loaded.peer, ids)[0, len(prompts[b]) - 1 :]
      _assert_close(found[place, s], expected)


def _greedy(peer):
  ids = torch.arange(3, 9)[None]
  out = peer.generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
  )
  return out[0].tolist()


def test_what_was_exported_is_the_peer(loaded, tmp_path):
  weights.save(tmp_path / 'ours', loaded.config, loaded.params)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'))
  assert type(again) is type(loaded.peer)
  expected, found = loaded.peer.state_dict(), again.state_dict()
  assert expected.keys() == found.keys()
  for key, value in expected.items():
    assert torch.equal(value, found[key]), key
  ids = torch.arange(40)[None]
  assert torch.equal(loaded.peer(ids).logits, again.eval()(ids).logits)
  assert _greedy(loaded.peer) == _greedy(again)

  config, params = weights.load(tmp_path / 'ours')
  assert config == loaded.config
  jax.tree.map(np.testing.assert_array_equal, params, loaded.params)


@pytest.mark.parametrize('name', ['gemma3_text', 'gpt_neox'])
def test_gradients_equal_those_of_the_peer(name, tmp_path):
  """Gradients of the peer, mapped like its weights, are our gradients."""
  loaded = _load(name, tmp_path / 'peer')
  ids = np.random.default_rng(0).integers(0, 97, (2, 20))
  direction = np.random.default_rng(1).normal(size=(2, 20, 97))
  direction = direction.astype(np.float32)
  peer = loaded.peer
  (
    peer(torch.as_tensor(ids)).logits * torch.as_tensor(direction)
  ).sum().backward()
  with torch.no_grad():
    for p in peer.parameters():
      p.copy_(p.grad)
  peer.save_pretrained(tmp_path / 'gradients')
  _, expected = weights.load(tmp_path / 'gradients')

  @jax.jit
  @jax.grad
  def gradient(params):
    hidden = models.forward(params, loaded.config, ids)
    return jnp.vdot(models.logits(params, loaded.config, hidden), direction)

  found = gradient(loaded.params)
  for path, a in jax.tree_util.tree_leaves_with_path(found):
    b = functools.reduce(lambda tree, k: tree[k.key], path, expected)
    assert np.abs(a - b).max() <= 2e-4 * np.abs(b).max(), path
