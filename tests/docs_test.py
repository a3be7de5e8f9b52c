"""docs/objectives.md says what the code does: tables, equations, snippets."""

import json
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import objectives
from dpo_jax import losses, methods, models, registry, types
from dpo_jax.chat import errors, rendering
from dpo_jax.data import batches, records
from dpo_jax.losses import coupled, unpaired
from dpo_jax.methods import completions, dpo, scoring
from tests import forests, page, templates
from tests.losses import battery_test, closed_forms
from tests.losses.pairs import random_pairs

BETA = 0.3
TABLES = page.tables()
# Second column -> functions.
LOSSES = {
  'loss of a pair': losses.PREFERENCE_LOSSES,
  'loss of a completion': losses.UNPAIRED_LOSSES,
  'loss of a ranking': losses.RANKING_LOSSES,
}
ROWS = [(table, row) for table in LOSSES for row in TABLES[table]]
each_row = pytest.mark.parametrize(
  ('table', 'row'), ROWS, ids=[f'{t[10:]}-{r["name"]}' for t, r in ROWS]
)
each_divergence = pytest.mark.parametrize(
  'row', TABLES['f(u)'], ids=[r['divergence'] for r in TABLES['f(u)']]
)


def _real_options(fn):
  return {n: p.default for n, p in registry.options_of(fn).items()}


# Tables against registries.


@pytest.mark.parametrize('table', LOSSES)
def test_every_loss_has_one_row_and_every_row_a_loss(table):
  rows = sorted(row['name'] for row in TABLES[table])
  assert rows == sorted(LOSSES[table])


def test_every_divergence_has_one_row():
  rows = sorted(row['divergence'] for row in TABLES['f(u)'])
  assert rows == sorted(losses.DIVERGENCES)


@each_row
def test_options_and_defaults(table, row):
  fn = LOSSES[table][row['name']]
  assert page.options(row['options']) == _real_options(fn)


@each_divergence
def test_options_of_divergences(row):
  fn = losses.DIVERGENCES[row['divergence']]
  assert page.options(row['options']) == _real_options(fn)


def test_options_of_sft():
  (row,) = TABLES['loss of a batch']
  assert page.options(row['options']) == _real_options(methods.METHODS['sft'])


@each_row
def test_properties(table, row):
  fn = LOSSES[table][row['name']]
  properties = fn.properties
  assert row['reference'] == ('yes' if properties.reference else 'no')
  if 'normalise' in registry.options_of(fn):
    assert row['normalisation'] == 'sums or per token'
  else:
    assert row['normalisation'] == ('sums' if properties.sums else 'per token')
  if table == 'loss of a pair':
    fits = {
      'divergence': properties.ratios,
      'length': properties.sums,
      'wpo': not properties.coupled,
    }
    expected = [name for name, fit in fits.items() if fit]
    assert row['composes with'].split(', ') == expected


# Equations, in float64.


def _pair_values(pairs):
  exact = closed_forms.pairs_of(pairs)
  return {
    **dict(a=exact.a, b=exact.b, h=exact.h, m=BETA * exact.h),
    **dict(s_w=exact.w, s_l=exact.l, n_w=exact.n_w, n_l=exact.n_l),
    **dict(u=exact.w - exact.l, v=exact.ref_w - exact.ref_l),
    's_target': exact.target,
  }


def _given(fn):
  """Options: each default, but numbers that show."""
  given = _real_options(fn) | {'beta': BETA}
  more = dict(label_smoothing=0.2, shift=0.7, penalty=2.0)
  more |= dict(desirable_weight=1.3, undesirable_weight=0.6)
  given |= {name: more[name] for name in more if name in given}
  return {n: given[n] for n in registry.options_of(fn)}


@pytest.mark.parametrize(
  'row', TABLES['loss of a pair'], ids=lambda row: row['name']
)
def test_equations_of_pairs(row):
  fn = losses.PREFERENCE_LOSSES[row['name']]
  pairs = random_pairs(seed=2)
  variants = page.variants(row['loss of a pair'])
  for variant, equation in variants:
    options = _given(fn) | variant
    expected = page.evaluate(
      equation, _pair_values(pairs) | page.names(options)
    )
    loss = fn(pairs, **options)
    if 'sort' in equation:  # In another order.
      loss, expected = loss.mean(), expected.mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=equation)
  choices = [n for n, x in _real_options(fn).items() if isinstance(x, str)]
  assert len(variants) == 1 + len(choices)


def test_equation_of_bcos_shift():
  pairs = random_pairs(seed=2)
  (equation,) = (x for x in page.spans(page.TEXT) if x.startswith('mean('))
  expected = page.evaluate(equation, _pair_values(pairs) | {'β': BETA})
  shift = coupled.bco_shift(pairs, beta=BETA)
  np.testing.assert_allclose(shift, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'row', TABLES['loss of a completion'], ids=lambda row: row['name']
)
def test_equations_of_completions(row):
  fn = losses.UNPAIRED_LOSSES[row['name']]
  pairs, options = random_pairs(shape=(6,)), _given(fn)
  data = types.UnpairedLogps(
    policy=pairs.policy[:, 0],
    reference=pairs.reference[:, 0],
    label=jnp.float32([1, 0, 1, 0, 0, 1]),
    length=pairs.length[:, 0],
    mismatched=jnp.full(6, 1.5),
  )
  r = np.float64(data.policy) - np.float64(data.reference)
  values = dict(r=r, z0=1.5) | page.names(options)
  desirable, undesirable = (
    page.evaluate(equation, values)
    for equation in page.spans(row['loss of a completion'])
  )
  expected = np.where(data.label == 1, desirable, undesirable)
  np.testing.assert_allclose(fn(data, **options), expected, rtol=1e-5)


def test_equation_of_rankings():
  """Sums over k are not parsed: the text is what is computed here."""
  (row,) = TABLES['loss of a ranking']
  (equation,) = page.spans(row['loss of a ranking'])
  assert equation == '-Σ_k (r_k - log Σ_{j ≥ k} exp(r_j))'
  policy = np.random.default_rng(0).normal(size=(3, 4))
  expected = [closed_forms.plackett_luce(BETA * x) for x in policy]
  ranked = types.RankedLogps(
    jnp.float32(policy), jnp.zeros((3, 4)), jnp.ones((3, 4), jnp.int32)
  )
  loss = losses.RANKING_LOSSES[row['name']](ranked, beta=BETA)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_equations_of_sft():
  (row,) = TABLES['loss of a batch']
  rows = [([1, 2], [[3] * n], [(0,)]) for n in (2, 5, 3)]
  options = dict(num_batches=1, rows=1, seed=None, batch_size=3)
  batch = forests.pack(forests.make(rows), **options)[0]
  logps = -jax.random.uniform(jax.random.key(0), batch.score_index_RxN.shape)
  total = np.sum(np.float64(logps) * batch.score_weight_RxN)
  given = page.variants(row['loss of a batch'])
  assert len(given) == 2
  for options, equation in given:
    text = equation.replace('Σ s', 's').replace('Σ n', 'n')
    expected = page.evaluate(text, dict(s=total, n=10, completions=3))
    method = methods.METHODS['sft'](**options)(models.policy(forests.CONFIG))
    loss, count, _ = method.objective({'logps': logps}, batch, None)
    np.testing.assert_allclose(loss / count, expected, rtol=1e-5)


@each_divergence
def test_equations_of_divergences(row):
  """The score is f' less f'(1), by central differences, and is computed."""
  fn = losses.DIVERGENCES[row['divergence']]
  options = page.options(row['options'])
  (f,), (score,) = page.spans(row['f(u)']), page.spans(row['score'])
  u = np.array([0.2, 0.7, 1.0, 1.9])

  def slope(u):
    up, down = (page.evaluate(f, {'u': u + d} | options) for d in (1e-5, -1e-5))
    return (up - down) / 2e-5

  expected = page.evaluate(score, {'u': u} | options)
  np.testing.assert_allclose(slope(u) - slope(1.0), expected, atol=1e-8)
  np.testing.assert_allclose(fn(jnp.log(u)), expected, rtol=1e-5, atol=1e-7)


# Axes and data.


def _axes():
  """{option: values in the table of axes}, each with its row."""
  out = {}
  for row in TABLES['what it does']:
    for part in re.split(r', (?=\w+=)', page.spans(row['option'])[0]):
      name, _, value = part.partition('=')
      out.setdefault(name, {})[value.strip("'")] = row
  return out


def test_axes_are_options_with_real_values():
  axes = _axes()
  smoothed = axes.pop('label_smoothing')['0.1']['defined with']
  assert set(smoothed.split(', ')) == {
    name
    for name, fn in losses.PREFERENCE_LOSSES.items()
    if 'label_smoothing' in registry.options_of(fn)
  }
  options = set(registry.options_of(dpo.make))
  known = axes.keys() | {'divergence_options', 'reference_options'}
  assert known == options - {'loss', 'logprob_chunk'}
  assert set(axes['reference']) == set(scoring.REFERENCES)
  assert {'sum', *axes['length']} == set(completions.LENGTHS)
  given = page.spans(axes['reference']['drifting']['what it does'])[-1]
  name, _, defaults = given.partition('=')
  assert name == 'reference_options'
  assert eval(defaults) == _real_options(scoring.REFERENCES['drifting'])


def test_the_refusal_that_is_shown():
  with pytest.raises(ValueError, match='nca') as error:
    methods.METHODS['dpo'](loss='nca', beta=0.1, divergence='forward_kl')
  assert str(error.value) in ' '.join(page.TEXT.split())


def test_configs_and_numbers_that_are_named():
  listed = re.search(r'quickstart with one of: ([\w, \n]+)\.', page.TEXT)
  assert listed[1].replace('\n', ' ').split(', ') == sorted(
    objectives.OBJECTIVES
  )
  bounds = 'outside the {:.3g} to {:.3g} that'
  assert bounds.format(*unpaired.CLASS_WEIGHT_RANGE) in page.TEXT
  shown = re.search(r'objectives.py:(\w+) --config.method.(\w+)=', page.TEXT)
  assert shown[2] in objectives.get_config(shown[1]).method


@pytest.mark.parametrize('row', TABLES['kinds'], ids=lambda row: row['row'])
def test_kinds_of_rows(row):
  (line,) = page.spans(row['row'])
  render, fit = rendering.Render(templates.Plain()), set()
  for kind in records.KINDS:
    try:
      records.parse(json.loads(line), kind=kind, render=render)
      fit.add(kind)
    except errors.RowError:
      pass
  assert {*row['kinds'].split(', '), 'prompts'} == fit


# Snippets.


def _block(part):
  (found,) = [block for block in page.BLOCKS if part in block]
  return found


class Page:
  """A config page that builds each method that it is given."""

  def __init__(self):
    self.built = []

  def __setattr__(self, name, value):
    if name == 'method':
      make = registry.build(methods.METHODS, value, 'method')()
      self.built.append(make(models.policy(forests.CONFIG)))
    else:
      super().__setattr__(name, value)


@pytest.fixture
def tables():
  """Registries that are what they were, afterwards."""
  with (
    mock.patch.dict(losses.PREFERENCE_LOSSES),
    mock.patch.dict(closed_forms.PREFERENCE),
  ):
    yield


def test_methods_that_are_shown(tables):
  configs = []
  for block in [_block("loss='ipo'"), _block('@preference_loss')]:
    configs.append(Page())
    exec(block, {'c': configs[-1]})
  exec(_block("loss='squared_hinge'"), {'c': configs[1]})
  shown = [block.count('c.method =') for block in page.BLOCKS]
  assert [len(config.built) for config in configs] == [max(shown), 1]
  assert sum(shown) == max(shown) + 1


def test_the_loss_that_is_shown_is_its_closed_form(tables):
  """By the battery, as the page says."""
  exec(_block('@preference_loss'), {})
  space = {'np': np}
  exec(_block('pairs.h'), space)
  name = 'squared_hinge'
  closed_forms.PREFERENCE[name] = space[name]
  battery_test.test_tables_have_the_same_names()
  battery_test.test_options_and_defaults_are_the_documented_ones(name)
  check = battery_test.test_values_and_gradients_are_the_closed_form
  check(name, dict(beta=BETA))
  for check in (
    battery_test.test_lengths_are_read_unless_it_is_of_sums,
    battery_test.test_constants_of_scores_cancel_where_divergences_apply,
    battery_test.test_a_reference_is_demanded_or_not_looked_at,
    battery_test.test_padding_is_not_seen_and_has_finite_gradients,
  ):
    check(name)


def test_the_sweep_that_is_shown():
  packed = batches.train_batches(
    forests.random_records(5, num=6), 2, 1, 0, batch_size=4, max_shapes=1
  )
  space = dict(
    policy=models.policy(forests.CONFIG),
    params=forests.params(0),
    batches=[packed[i] for i in range(2)],
  )
  exec(_block('sweep.make_train_step'), space)
  found = np.divide(*space['metrics']['loss'])
  assert found.shape == (3,) and np.isfinite(found).all()
  assert len(set(found.round(4))) == 3
