"""Calibration of a reward model: its probabilities beside what was preferred.

A reward model gives the preferred of two completions the probability
sigma(r_w - r_l) (Eq. 1 of arXiv:2305.18290), a classifier gives the label of
one completion sigma(r), or sigma(-r) for an undesirable one. The larger of this
and its complement is the model's confidence in what it prefers, 0.5 to 1. It is
calibrated where, of the examples of a confidence, that share is right.
"""

from typing import Any

import numpy as np

from dpo_jax.evals import likelihood

# Bins of equal width of the confidence.
NUM_BINS = 5


def statistics(
  margins_P: np.ndarray, num_bins: int = NUM_BINS
) -> dict[str, Any]:
  """Expected calibration error, ties and the bins of a reliability diagram.

  margins_P: log-odds of what is right: r_w - r_l, or r of a desirable
  completion and -r of an undesirable one. A tie, 0, counts as half right.

  'ece': the mean over examples of |share that is right - mean confidence| of
  their bin (arXiv:1706.04599). 'ties': share of margins 0. 'bins', without the
  empty ones: 'from' and 'to' of the confidence, 'examples', their mean
  'confidence', and 'accuracy', the share that is right.
  """
  margins = np.asarray(margins_P, np.float64)
  confidence = 1 / (1 + np.exp(-np.abs(margins)))
  right = np.where(margins == 0, 0.5, margins > 0)
  edges = np.linspace(0.5, 1, num_bins + 1)
  index = np.searchsorted(edges[1:-1], confidence, side='right')
  bins, error = [], 0.0
  for k in np.unique(index):
    inside = index == k
    gap = abs(right[inside].mean() - confidence[inside].mean())
    error += gap * inside.mean()
    bins.append(
      {
        'from': float(edges[k]),
        'to': float(edges[k + 1]),
        'examples': int(inside.sum()),
        'confidence': float(confidence[inside].mean()),
        'accuracy': likelihood.share(right[inside]),
      }
    )
  ties = likelihood.share(margins == 0)
  return {'ece': float(error), 'ties': ties, 'bins': bins}
