"""Options are bound once, and none is silently ignored."""

import pytest

from dpo_jax import registry


def _make(positional, *, beta, gamma=1.0):
  return positional, beta, gamma


def _open(*, name_of=None, **rest):
  return name_of, rest


def test_bound_options_are_used():
  assert registry.bind(_make, {'beta': 2}, 'x')(1) == (1, 2, 1.0)
  section = {'name': 'make', 'beta': 2, 'gamma': 3}
  assert registry.build({'make': _make}, section, 'thing')(1) == (1, 2, 3)
  assert section['name'] == 'make'
  assert registry.bind(_open, {'other': 1}, 'x')() == (None, {'other': 1})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'beta': 1, 'gama': 2}, "option of x 'gama'. Did you mean 'gamma'"),
    ({'gamma': 1}, 'x needs beta'),
    ({'beta': 1, 'positional': 2}, "option of x 'positional'"),
  ],
)
def test_wrong_options_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    registry.bind(_make, options, 'x')


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({'name': 'mke', 'beta': 1}, "Unknown thing 'mke'. Did you mean 'make'"),
    ({'beta': 1}, 'no name. Known: make'),
  ],
)
def test_unknown_names_are_errors(section, message):
  with pytest.raises(ValueError, match=message):
    registry.build({'make': _make}, section, 'thing')
