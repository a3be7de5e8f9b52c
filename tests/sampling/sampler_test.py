"""Samples of tiny models: exact distributions, keys, ends, errors."""

import contextlib
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import models, sampling, types
from dpo_jax.losses import logprobs
from dpo_jax.sampling import engine
from tests import compilations, forests
from tests.sampling import exact

CONFIG = forests.CONFIG
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3, 3]]
KEY = jax.random.key(11)
RULES = {
  'none': {},
  'temperature': dict(temperature=1.6),
  'top_k': dict(top_k=12),
  'top_p': dict(top_p=0.6),
  'all_at_once': dict(temperature=0.8, top_k=30, top_p=0.8),
}


@pytest.fixture(scope='module')
def params():
  return forests.params(2)


def _sample(params, prompts=PROMPTS, **options):
  options = dict(key=KEY, max_new_tokens=6) | options
  return sampling.sample(params, CONFIG, prompts, **options)


@jax.jit
def _all_logits(params, ids_BxL):
  compute = models.Compute(attention='dense')
  hidden = models.forward(params, CONFIG, ids_BxL, compute=compute)
  return models.logits(params, CONFIG, hidden)


def _logits(params, ids):
  """Of every position of one sequence, padded so that one shape compiles."""
  padded = np.zeros((1, CONFIG.max_positions), np.int32)
  padded[0, : len(ids)] = ids
  return np.asarray(_all_logits(params, padded))[0, : len(ids)]


def _logps(params, prompt, tokens):
  """log p of each token by a full softmax."""
  logits = _logits(params, [*prompt, *tokens])[len(prompt) - 1 : -1]
  logps = jax.nn.log_softmax(logits, axis=-1)
  return np.asarray(logps)[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name, marks=[pytest.mark.long] * (name not in ('none', 'all_at_once'))
    )
    for name in RULES
  ],
)
def test_frequencies_are_those_of_the_models_distribution(params, name):
  out = _sample(params, num_samples=8000, max_new_tokens=2, **RULES[name])
  for prompt, tokens_SxT in zip(PROMPTS, out.tokens_BxSxT):
    logits = _logits(params, prompt)[-1]
    first = exact.distribution(logits, **dict(temperature=1.0) | RULES[name])
    exact.assert_drawn_from(tokens_SxT[:, 0], first)


def test_frequencies_of_second_tokens_too(params):
  out = _sample(params, num_samples=8000, max_new_tokens=2)
  for prompt, tokens_SxT in zip(PROMPTS, out.tokens_BxSxT):
    tokens = range(CONFIG.vocab_size)
    joint = np.array(
      [
        exact.distribution(_logits(params, [*prompt, t])[-1], temperature=1.0)
        for t in tokens
      ]
    )
    first = exact.distribution(_logits(params, prompt)[-1], temperature=1.0)
    exact.assert_drawn_from(tokens_SxT[:, 1], first @ joint)
    common = first.argmax()
    after = tokens_SxT[tokens_SxT[:, 0] == common, 1]
    exact.assert_drawn_from(after, joint[common])


@pytest.mark.parametrize(
  'options', [dict(temperature=0.0), dict(), dict(temperature=1.5, top_k=9)]
)
def test_logps_are_the_scorers(params, options):
  out = _sample(params, num_samples=2, eos_id=4, max_new_tokens=9, **options)
  rows = len(PROMPTS) * 2
  length = max(map(len, PROMPTS)) + 9
  tokens_RxL = np.zeros((rows, length), np.int32)
  index, token, weight = np.zeros((3, rows, 9), np.int32)
  for b, prompt in enumerate(PROMPTS):
    for s in range(2):
      r, n = 2 * b + s, out.lengths_BxS[b, s]
      ids = out.tokens_BxSxT[b, s, :n]
      tokens_RxL[r, : len(prompt) + n] = [*prompt, *ids]
      index[r, :n] = len(prompt) - 1 + np.arange(n)
      token[r, :n], weight[r, :n] = ids, 1
  layout = models.decoder.plain_layout(rows, length)
  unread = dict.fromkeys(f.name for f in dataclasses.fields(types.Batch))
  batch = types.Batch(
    **unread
    | dict(
      tokens_RxL=tokens_RxL,
      layout=layout,
      score_index_RxN=jnp.asarray(index),
      score_token_RxN=jnp.asarray(token),
      score_weight_RxN=jnp.asarray(weight, jnp.float32),
    )
  )
  policy = models.policy(CONFIG)
  logps = logprobs.token_logps(
    policy.head(params),
    policy.hidden(params, batch.tokens_RxL, layout),
    batch,
    chunk_size=4,
  )
  actual = out.logps_BxSxT.reshape(rows, 9)
  np.testing.assert_allclose(actual, logps, rtol=1e-4, atol=1e-5)


def test_behaviour_logps(params):
  plain = _sample(params)
  np.testing.assert_allclose(
    plain.behaviour_logps_BxSxT, plain.logps_BxSxT, atol=1e-5
  )
  assert not _sample(params, temperature=0.0).behaviour_logps_BxSxT.any()
  rule = dict(temperature=0.7, top_k=5, top_p=0.8)
  out = _sample(params, **rule)
  for b, prompt in enumerate(PROMPTS):
    tokens = out.tokens_BxSxT[b, 0]
    logits = _logits(params, [*prompt, *tokens])[len(prompt) - 1 : -1]
    for t, token in enumerate(tokens):
      p = exact.distribution(logits[t], **rule)[token]
      np.testing.assert_allclose(
        out.behaviour_logps_BxSxT[b, 0, t], np.log(p), rtol=1e-4, atol=1e-5
      )


def test_greedy_is_the_argmax_of_each_full_forward(params):
  out = _sample(params, temperature=0.0, num_samples=2)
  for b, prompt in enumerate(PROMPTS):
    ids = list(prompt)
    for _ in range(6):
      ids.append(int(_logits(params, ids)[-1].argmax()))
    for s in range(2):
      assert out.tokens_BxSxT[b, s].tolist() == ids[len(prompt) :]


@pytest.mark.parametrize('stops', [17, (17, 4, 40)])
def test_eos_ends_a_sequence(params, stops):
  free = _sample(params, num_samples=40, max_new_tokens=30)
  out = _sample(params, num_samples=40, max_new_tokens=30, eos_id=stops)
  lengths = set()
  for b in range(len(PROMPTS)):
    for s in range(40):
      # Up to the first of them a sequence is what it is without one.
      tokens = free.tokens_BxSxT[b, s]
      found = np.flatnonzero(np.isin(tokens, stops))
      n = found[0] + 1 if len(found) else 30
      assert out.lengths_BxS[b, s] == n
      np.testing.assert_array_equal(out.tokens_BxSxT[b, s, :n], tokens[:n])
      assert (out.tokens_BxSxT[b, s, n:] == 17).all()
      np.testing.assert_allclose(
        out.logps_BxSxT[b, s, :n], free.logps_BxSxT[b, s, :n], atol=1e-5
      )
      assert not out.logps_BxSxT[b, s, n:].any()
      assert not out.behaviour_logps_BxSxT[b, s, n:].any()
      lengths.add(int(n))
  assert len(lengths) > 10 and (30 in lengths or stops != 17)
  assert (free.lengths_BxS == 30).all()


@contextlib.contextmanager
def _recorded_steps():
  """A list of the steps at which the loop inside stops."""
  made, steps = engine.make_advance, []

  def counted(*options):
    def advance(*args):
      state = made(*options)(*args)
      steps.append(int(state.step))
      return state

    return advance

  with mock.patch.object(engine, 'make_advance', counted):
    yield steps


def test_the_loop_stops_when_all_have_ended(params):
  free = _sample(params, PROMPTS[:1], temperature=0.0, max_new_tokens=16)
  tokens = free.tokens_BxSxT[0, 0].tolist()
  eos = tokens[5]
  end = tokens.index(eos) + 1
  with _recorded_steps() as steps:
    _sample(params, PROMPTS[:1], temperature=0.0, max_new_tokens=16, eos_id=eos)
  # The first token is drawn before the first step.
  assert steps == [end - 1]
  stream = sampling.stream(
    params,
    CONFIG,
    PROMPTS[0],
    key=KEY,
    max_new_tokens=16,
    temperature=0.0,
    eos_id=eos,
  )
  assert list(stream) == tokens[:end]


def test_the_key_decides(params):
  a, b = (_sample(params, num_samples=3) for _ in range(2))
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x, y)
  other = _sample(params, num_samples=3, key=jax.random.key(12))
  assert (other.tokens_BxSxT != a.tokens_BxSxT).any(axis=-1).all()
  # Neither prompts nor samples share their noise.
  same = _sample(params, [PROMPTS[0]] * 4, num_samples=3)
  sequences = same.tokens_BxSxT.reshape(12, -1)
  assert len(np.unique(sequences, axis=0)) == 12


@pytest.mark.parametrize(
  'companions',
  [
    [[4]] * 4,
    [[8] * 70, [8] * 60, [8] * 50, [8] * 40],
    [[2, 2], [3, 3, 3], [4] * 30, [5, 5]],
  ],
  ids=['short', 'long', 'mixed'],
)
def test_samples_do_not_depend_on_companions_or_padding(params, companions):
  whole = _sample(params, num_samples=2)
  for i, prompt in enumerate(PROMPTS):
    prompts = [*companions[:i], prompt, *companions[i + 1 :]]
    out = _sample(params, prompts, num_samples=2)
    np.testing.assert_array_equal(out.tokens_BxSxT[i], whole.tokens_BxSxT[i])
    np.testing.assert_allclose(
      out.logps_BxSxT[i], whole.logps_BxSxT[i], rtol=1e-4, atol=1e-5
    )


def test_neither_more_samples_nor_more_tokens_change_the_first(params):
  whole = _sample(params, num_samples=5, max_new_tokens=40)
  part = _sample(params, num_samples=2, max_new_tokens=7)
  np.testing.assert_array_equal(
    part.tokens_BxSxT, whole.tokens_BxSxT[:, :2, :7]
  )
  one = _sample(params, PROMPTS[:1], max_new_tokens=7)
  np.testing.assert_array_equal(one.tokens_BxSxT, part.tokens_BxSxT[:1, :1])


def _many_prompts(count=20):
  rng = np.random.default_rng(3)
  return [
    rng.integers(0, CONFIG.vocab_size, n).tolist()
    for n in rng.integers(1, 40, count)
  ]


@pytest.mark.parametrize(
  ('batch_size', 'window'),
  [
    (3, 5),
    *(
      pytest.param(*values, marks=pytest.mark.long)
      for values in ((1, None), (8, None), (16, 5))
    ),
  ],
)
def test_prompts_that_wait_get_the_same_samples(params, batch_size, window):
  config = CONFIG
  if window:
    local = tuple(i % 2 == 0 for i in range(CONFIG.num_layers))
    config = dataclasses.replace(CONFIG, window=window, local_layers=local)
  options = dict(
    key=KEY, max_new_tokens=30, num_samples=2, eos_id=(17, 4, 40, 8, 22)
  )
  prompts = _many_prompts()
  whole = sampling.sample(params, config, prompts, **options)
  assert len(np.unique(whole.lengths_BxS)) > 10
  out = sampling.sample(
    params, config, prompts, batch_size=batch_size, **options
  )
  np.testing.assert_array_equal(out.lengths_BxS, whole.lengths_BxS)
  np.testing.assert_array_equal(out.tokens_BxSxT, whole.tokens_BxSxT)
  for part in ('logps_BxSxT', 'behaviour_logps_BxSxT'):
    np.testing.assert_allclose(
      getattr(out, part), getattr(whole, part), rtol=1e-4, atol=1e-5
    )


def test_progress_counts_samples(params):
  counts = []
  options = dict(batch_size=8, max_new_tokens=9, num_samples=3, eos_id=17)
  _sample(params, _many_prompts(20), progress=counts.append, **options)
  assert len(counts) > 2 and sum(counts) == 60


def test_no_stop_ids_are_none(params):
  out, none = (
    _sample(params, max_new_tokens=5, eos_id=stops) for stops in ((), None)
  )
  np.testing.assert_array_equal(out.tokens_BxSxT, none.tokens_BxSxT)


@pytest.mark.long
def test_answers_of_unequal_length_cost_their_tokens(params):
  prompts = _many_prompts(64)
  with _recorded_steps() as steps:
    out = _sample(
      params, prompts, batch_size=8, max_new_tokens=80, eos_id=(17, 4, 40)
    )
  lengths = out.lengths_BxS[:, 0] - 1  # One token is drawn as a prompt joins.
  in_batches = lengths.reshape(8, 8).max(1).sum()
  least = lengths.sum() / 8
  # At the end fewer and fewer are left.
  assert least <= steps[-1] <= least + lengths.max() < in_batches


@pytest.mark.long
def test_a_stream_of_prompts_compiles_few_programs(params):
  """Of any number and length: less than one program of each kind a call."""
  jax.clear_caches()
  rng = np.random.default_rng(0)
  with compilations.recorded() as compiled:
    for _ in range(30):
      lengths = rng.integers(1, 60, rng.integers(1, 200))
      prompts = [
        rng.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths
      ]
      _sample(params, prompts, batch_size=16, max_new_tokens=2, eos_id=3)
  counts = [
    compiled.count(f'jit({name})') for name in ('prefill', 'join', 'advance')
  ]
  assert all(counts) and np.less_equal(counts, (30, 12, 3)).all()


def test_a_stream_is_a_sample_of_one(params):
  rule = dict(temperature=0.9, top_p=0.9, eos_id=17, max_new_tokens=20)
  out = _sample(params, PROMPTS[:1], **rule)
  stream = sampling.stream(params, CONFIG, PROMPTS[0], key=KEY, **rule)
  n = out.lengths_BxS[0, 0]
  assert list(stream) == out.tokens_BxSxT[0, 0, :n].tolist()


def test_params_live_on_after_sampling_and_take_donation(params):
  tree = jax.tree.map(jnp.copy, params)
  before = _sample(tree)
  double = jax.jit(lambda x: jax.tree.map(lambda a: a * 2, x), donate_argnums=0)
  doubled = double(tree)
  after = _sample(params)
  np.testing.assert_array_equal(before.tokens_BxSxT, after.tokens_BxSxT)
  np.testing.assert_array_equal(
    doubled['embed']['tokens'], params['embed']['tokens'] * 2
  )


def test_replicated_params(params):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), 'data')
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  out = _sample(jax.device_put(params, everywhere))
  np.testing.assert_array_equal(out.tokens_BxSxT, _sample(params).tokens_BxSxT)


def test_up_to_the_last_position(params):
  prompt = [1] * (CONFIG.max_positions - 3)
  out = _sample(params, [prompt], max_new_tokens=3, temperature=0.0)
  expected = _logps(params, prompt, out.tokens_BxSxT[0, 0])
  np.testing.assert_allclose(out.logps_BxSxT[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
  ('prompts', 'options', 'message'),
  [
    ([], {}, 'no prompts'),
    ([[1], [], [2]], {}, 'Prompt 1 has no tokens'),
    ([[1], [61]], {}, 'Prompt 1 has the token id 61.*vocabulary of 61'),
    ([[-1]], {}, 'Prompt 0 has the token id -1'),
    ([[1] * 123], {}, 'Prompt 0 has 123 tokens; with max_new_tokens 6.* 128'),
    ([[1]], dict(max_new_tokens=0), 'max_new_tokens is 0'),
    ([[1]], dict(num_samples=0), 'num_samples is 0'),
    ([[1]], dict(eos_id=61), 'eos_id is 61'),
    ([[1]], dict(eos_id=[3, 61]), 'eos_id is 61'),
    ([[1]], dict(eos_id=np.int64(61)), 'eos_id is 61'),
    ([[1]], dict(eos_id=np.int32([3, 61])), 'eos_id is 61'),
    ([[1]], dict(temperature=-1), 'temperature is -1'),
    ([[1]], dict(top_p=2.0), 'top_p is 2.0'),
  ],
)
def test_errors_come_before_any_compute(prompts, options, message):
  # The parameters are invalid: the checks come before any computation.
  with pytest.raises(ValueError, match=message):
    _sample(None, prompts, **options)


def test_errors_of_a_stream_come_with_the_call():
  with pytest.raises(ValueError, match='Prompt 0 has no tokens'):
    sampling.stream(None, CONFIG, [], key=KEY, max_new_tokens=3)
