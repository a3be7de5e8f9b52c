"""Filtered distributions by sorting in float64, and a test of samples."""

import numpy as np
import scipy.stats


def distribution(logits_V, *, temperature, top_k=None, top_p=None):
  """Probabilities under a rule, without regard to ties."""
  p = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
  order = np.argsort(-p)
  if top_k is not None:
    p[order[top_k:]] = 0
  p /= p.sum()
  if top_p is not None:
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
  return p / p.sum()


def assert_drawn_from(tokens, probs_V):
  """No token of probability 0, and a chi-squared test of the others."""
  counts = np.bincount(tokens, minlength=len(probs_V))
  assert not counts[probs_V == 0].any()
  means = probs_V * len(tokens)
  # Chi-squared needs some expected draws in every cell: pool the rare.
  rare = means < 10
  cells = np.append(counts[~rare], counts[rare].sum())
  means = np.append(means[~rare], means[rare].sum())
  cells, means = cells[means > 0], means[means > 0]
  if len(cells) > 1:
    assert scipy.stats.chisquare(cells, means).pvalue > 1e-3
