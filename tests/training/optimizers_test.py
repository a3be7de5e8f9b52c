"""Optimizers and schedules against torch.optim, papers and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from dpo_jax import registry
from dpo_jax.training import optimizers

SHAPES = {
  'embed/tokens': (6, 4),
  'final_norm/scale': (4,),
  'layers/attention_norm/scale': (2, 4),
  'layers/mlp/up/kernel': (2, 4, 6),
  'layers/mlp/up/bias': (2, 6),
}
# Large enough for Adafactor to factor, inside and outside of layers.
WIDE = SHAPES | {
  'embed/tokens': (130, 128),
  'layers/mlp/up/kernel': (2, 128, 136),
}
# Written out, not derived from a pattern.
NOT_DECAYED = (
  'final_norm/scale',
  'layers/attention_norm/scale',
  'layers/mlp/up/bias',
)
STEPS = 20


def _learning_rate(count):
  """Different in every step."""
  return 1e-2 * (count + 1) / 8 * (24 - count) / 24


def _trajectory(shapes, steps=STEPS):
  """(start, gradients of each step), float64; layers differ in scale."""
  rng = np.random.default_rng(0)

  def scaled(shape):
    layer = 10.0 ** -np.arange(shape[0]) if shape[0] == 2 else np.ones(1)
    return rng.normal(size=shape) * layer.reshape(-1, *[1] * (len(shape) - 1))

  start = {path: scaled(shape) for path, shape in shapes.items()}
  start['layers/mlp/up/bias'] *= 0  # As initialised.
  gradients = [
    {path: 10.0 ** (-t % 3) * scaled(s) for path, s in shapes.items()}
    for t in range(steps)
  ]
  return start, gradients


def _tree(flat):
  tree = traverse_util.unflatten_dict(flat, sep='/')
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _ours(section, shapes, learning_rate=_learning_rate, steps=STEPS):
  """Parameters after each step, as the config's section builds them."""
  make = registry.build(optimizers.OPTIMIZERS, section, 'optimizer')
  tx = make(learning_rate)
  start, gradients = _trajectory(shapes, steps)
  params = _tree(start)
  state = tx.init(params)

  @jax.jit
  def update(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for grads in gradients:
    params, state = update(_tree(grads), state, params)
    yield traverse_util.flatten_dict(params, sep='/')


def _torch(make, shapes, weight_decay, *, per_layer=False):
  """Parameters after each step of a torch.optim optimizer, in float64."""
  start, gradients = _trajectory(shapes)

  def parts(path, value):
    split = per_layer and path.startswith('layers/')
    return [v.copy() for v in value] if split else [value.copy()]

  tensors = {
    path: [torch.nn.Parameter(torch.from_numpy(v)) for v in parts(path, value)]
    for path, value in start.items()
  }
  groups = [
    {'params': v, 'weight_decay': 0.0 if path in NOT_DECAYED else weight_decay}
    for path, v in tensors.items()
  ]
  optimizer = make(groups)
  for t, grads in enumerate(gradients):
    for path, values in tensors.items():
      for tensor, grad in zip(values, parts(path, grads[path])):
        tensor.grad = torch.from_numpy(grad)
    for group in optimizer.param_groups:
      group['lr'] = _learning_rate(t)
    optimizer.step()
    yield {
      path: np.stack([v.detach().numpy() for v in values]).reshape(shapes[path])
      for path, values in tensors.items()
    }


def _assert_same(ours, theirs, rtol=2e-5, atol=2e-6):
  steps = list(zip(ours, theirs, strict=True))
  assert len(steps) == STEPS
  for step, (a, b) in enumerate(steps):
    assert a.keys() == b.keys()
    for path in a:
      np.testing.assert_allclose(
        a[path], b[path], rtol, atol, err_msg=f'{path}, step {step}'
      )


TORCH = {
  'adamw': (
    dict(name='adamw', b1=0.8, b2=0.95, eps=1e-3),
    functools.partial(torch.optim.AdamW, betas=(0.8, 0.95), eps=1e-3),
    0.0,
  ),
  'adamw defaults, decay': (
    dict(name='adamw', weight_decay=0.5),
    torch.optim.AdamW,
    0.5,
  ),
  'rmsprop': (dict(name='rmsprop'), torch.optim.RMSprop, 0.0),
  'rmsprop options': (
    dict(name='rmsprop', decay=0.9, eps=1e-2, weight_decay=0.5),
    functools.partial(torch.optim.RMSprop, alpha=0.9, eps=1e-2),
    0.5,
  ),
  'rmsprop momentum': (
    dict(name='rmsprop', momentum=0.7),
    functools.partial(torch.optim.RMSprop, momentum=0.7),
    0.0,
  ),
  'rmsprop centered': (
    dict(name='rmsprop', centered=True, weight_decay=0.5),
    functools.partial(torch.optim.RMSprop, centered=True),
    0.5,
  ),
  'rmsprop centered momentum': (
    dict(name='rmsprop', centered=True, momentum=0.7),
    functools.partial(torch.optim.RMSprop, centered=True, momentum=0.7),
    0.0,
  ),
  'sgd': (dict(name='sgd', weight_decay=0.5), torch.optim.SGD, 0.5),
  'sgd momentum': (
    dict(name='sgd', momentum=0.9, weight_decay=0.5),
    functools.partial(torch.optim.SGD, momentum=0.9),
    0.5,
  ),
  'sgd nesterov': (
    dict(name='sgd', momentum=0.9, nesterov=True),
    functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    0.0,
  ),
}


@pytest.mark.parametrize('case', TORCH)
def test_is_torch(case):
  section, make, weight_decay = TORCH[case]
  theirs = _torch(functools.partial(make, lr=1.0), SHAPES, weight_decay)
  _assert_same(_ours(section, SHAPES), theirs)


def test_adafactor_is_torch_with_the_parameter_scale():
  # torch has no absolute step size, and factors every matrix.
  section = dict(
    name='adafactor', multiply_by_parameter_scale=True, weight_decay=0.5
  )
  theirs = _torch(
    functools.partial(torch.optim.Adafactor, lr=1.0),
    WIDE,
    weight_decay=0.5,
    per_layer=True,
  )
  _assert_same(_ours(section, WIDE), theirs)


def _adafactor(shapes, decay_rate, threshold, scale_by_parameter):
  """Algorithms 4 and 5 of arXiv:1804.04235; step size rho, b1 = 0.

  The estimate is factored for layer matrices of at least 128 by 128.
  """
  start, gradients = _trajectory(shapes)
  split = {}
  for path, value in start.items():
    split[path] = list(value) if path.startswith('layers/') else [value]
  second = {path: [0.0] * len(v) for path, v in split.items()}
  for t, grads in enumerate(gradients, start=1):
    decay = 1 - t**-decay_rate
    for path, values in split.items():
      stacked = path.startswith('layers/')
      for i, g in enumerate(grads[path] if stacked else [grads[path]]):
        square = g * g + 1e-30
        if g.ndim == 2 and min(g.shape) >= 128:
          old_r, old_c = second[path][i] or (0.0, 0.0)
          r = decay * old_r + (1 - decay) * square.sum(1)
          c = decay * old_c + (1 - decay) * square.sum(0)
          second[path][i] = (r, c)
          v = np.outer(r, c) / r.sum()
        else:
          v = decay * second[path][i] + (1 - decay) * square
          second[path][i] = v
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u * u)) / threshold)
        alpha = _learning_rate(t - 1)
        if scale_by_parameter:
          alpha *= max(1e-3, np.sqrt(np.mean(values[i] ** 2)))
        values[i] = values[i] - alpha * u
    yield {path: np.reshape(v, shapes[path]) for path, v in split.items()}


@pytest.mark.parametrize('scale', [False, True])
@pytest.mark.parametrize('shapes', [SHAPES, WIDE], ids=['small', 'wide'])
def test_adafactor_is_the_paper(shapes, scale):
  section = dict(
    name='adafactor',
    decay_rate=0.7,
    clipping_threshold=0.9,
    multiply_by_parameter_scale=scale,
  )
  theirs = _adafactor(shapes, 0.7, 0.9, scale)
  _assert_same(_ours(section, shapes), theirs)


def _lion(shapes, b1, b2, weight_decay):
  """Algorithm 2 of arXiv:2302.06675."""
  start, gradients = _trajectory(shapes)
  params = {path: v.copy() for path, v in start.items()}
  momentum = {path: np.zeros_like(v) for path, v in start.items()}
  for t, grads in enumerate(gradients):
    for path, g in grads.items():
      decay = 0.0 if path in NOT_DECAYED else weight_decay
      update = np.sign(b1 * momentum[path] + (1 - b1) * g)
      momentum[path] = b2 * momentum[path] + (1 - b2) * g
      step = update + decay * params[path]
      params[path] = params[path] - _learning_rate(t) * step
    yield dict(params)


def test_lion_is_the_paper():
  section = dict(name='lion', b1=0.8, b2=0.95, weight_decay=0.5)
  _assert_same(_ours(section, SHAPES), _lion(SHAPES, 0.8, 0.95, 0.5))


def test_rmsprop_starts_with_ten_signs():
  (first,) = _ours(dict(name='rmsprop'), SHAPES, 3e-3, steps=1)
  start, (grads,) = _trajectory(SHAPES, steps=1)
  for path, value in first.items():
    expected = start[path] - 3e-2 * np.sign(grads[path])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sgd', 'rmsprop'])
def test_patterns_choose_what_is_not_decayed(name):
  section = dict(name=name, weight_decay=0.5, no_decay=[r'^embed/', 'kernel$'])
  params = jax.tree.map(jnp.ones_like, _tree(_trajectory(SHAPES)[0]))
  tx = registry.build(optimizers.OPTIMIZERS, section, 'optimizer')(0.1)
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  flat = traverse_util.flatten_dict(updates, sep='/')
  still = {path for path, value in flat.items() if not np.any(value)}
  assert still == {'embed/tokens', 'layers/mlp/up/kernel'}


@pytest.mark.parametrize(
  'section, message',
  [
    (dict(name='adam'), "Unknown optimizer 'adam'. Did you mean 'adamw'"),
    (dict(name='adamw', beta1=0.9), "'beta1'.*b1"),
    (dict(name='rmsprop', alpha=0.9), "'alpha'"),
    (dict(name='sgd', momentun=0.9), "Did you mean 'momentum'"),
    (dict(name='lion', eps=1e-8), "'eps'"),
    (dict(name='adafactor', b1=0.9), "'b1'"),
    (dict(name='adamw', learning_rate=1e-3), "'learning_rate'"),
    (dict(weight_decay=0.1), 'no name'),
  ],
)
def test_unknown_options_are_errors(section, message):
  with pytest.raises(ValueError, match=message):
    registry.build(optimizers.OPTIMIZERS, section, 'optimizer')


def _schedule(total, **section):
  make = registry.build(optimizers.SCHEDULES, section, 'schedule')
  return lambda count: float(make(total)(jnp.asarray(count)))


@pytest.mark.parametrize('name', optimizers.SCHEDULES)
def test_warmup_is_the_authors(name):
  # lr * min(1, (step + 1) / (warmup + 1)), in their code.
  rate = _schedule(40, name=name, peak=2e-3, warmup_steps=9)
  values = [rate(i) for i in range(10)]
  expected = [2e-3 * (i + 1) / 10 for i in range(10)]
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize('name', optimizers.SCHEDULES)
@pytest.mark.parametrize('warmup', [0, 1, 40])
def test_first_step_is_never_zero_and_peak_never_passed(name, warmup):
  rate = _schedule(40, name=name, peak=1.0, warmup_steps=warmup)
  values = np.array([rate(i) for i in range(40)])
  assert values[0] == pytest.approx(1 / (warmup + 1))
  assert (values > 0).all() and (values <= 1).all()
  assert (np.diff(values[: warmup + 1]) > 0).all()
  assert (np.diff(values[warmup:]) <= 0).all()


def test_decays_are_closed_forms():
  kwargs = dict(peak=3.0, warmup_steps=8, final=0.1)
  linear = _schedule(40, name='linear', **kwargs)
  cosine = _schedule(40, name='cosine', **kwargs)
  constant = _schedule(40, name='constant', peak=3.0, warmup_steps=8)
  for count in range(8, 41):
    done = (count - 8) / 32
    assert constant(count) == pytest.approx(3.0)
    assert linear(count) == pytest.approx(3.0 + (0.3 - 3.0) * done, rel=1e-5)
    half = np.cos(np.pi * done / 2) ** 2  # (1 + cos 2x) / 2 = cos^2 x.
    assert cosine(count) == pytest.approx(0.3 + 2.7 * half, rel=1e-5)
  for rate in (linear, cosine):
    assert rate(40) == rate(1000) == pytest.approx(0.3)


@pytest.mark.parametrize(
  'section, message',
  [
    (dict(name='cosin', peak=1.0), "Did you mean 'cosine'"),
    (dict(name='constant', peak=1.0, final=0.1), "'final'"),
    (dict(name='linear'), 'needs peak'),
    (dict(name='linear', peak=1.0, warmup_steps=41), '41.*40 steps'),
    (dict(name='linear', peak=1.0, warmup_steps=-1), '-1'),
  ],
)
def test_bad_schedules_are_errors(section, message):
  with pytest.raises(ValueError, match=message):
    _schedule(40, **section)(0)
