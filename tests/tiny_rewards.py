"""Rewards and preferences of a user, as pages name them."""

import numpy as np


def letter(prompts, completions, *, of='a'):
  """How often a letter is in the completion."""
  del prompts
  return [text.count(of) for text in completions]


def longer(prompts, first, second):
  """The longer completion is preferred in 0.9 of all comparisons."""
  del prompts
  lengths = np.array([[len(x), len(y)] for x, y in zip(first, second)])
  return 0.5 + 0.4 * np.sign(lengths[:, 0] - lengths[:, 1])


def characters(prompts, completions):
  """A number that tells random texts apart."""
  del prompts
  return [sum(map(ord, text)) % 97 for text in completions]


TIED = {1, 4, 5}  # Calls of `sometimes_ties` whose scores are all equal.
CALLS = []


def sometimes_ties(prompts, completions):
  """`characters`, but for some calls."""
  CALLS.append(completions)
  if len(CALLS) in TIED:
    return ties(prompts, completions)
  return characters(prompts, completions)


def nans(prompts, completions):
  return [float('nan') for _ in prompts]


def too_few(prompts, completions):
  return [0.0 for _ in prompts][1:]


def fails(prompts, completions):
  return 1 / 0


def ties(prompts, completions):
  return [0.0 for _ in prompts]
