"""A language model that NumPy can read off: a token tells the next."""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from tests import forests

VOCAB = forests.VOCAB
POLICY = types.Policy(
  hidden=lambda params, tokens, layout: jax.nn.one_hot(tokens, VOCAB),
  head=lambda params: types.Head.whole(lambda h: h @ params['table']),
)


def params(seed: int, scale: float = 1.0):
  """A random table of logits, previous token x next token."""
  table = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)) * scale
  return {'table': jnp.asarray(table, jnp.float32)}


def token_logps(tree, prompt, answer):
  """float64: log p of each token of the answer, log sum_v p(v)^2 there."""
  table = np.asarray(tree['table'], np.float64)
  logps = table - np.log(np.exp(table).sum(-1, keepdims=True))
  ids = [*prompt, *answer]
  before = ids[len(prompt) - 1 : -1]
  return logps[before, list(answer)], np.log(np.exp(2 * logps[before]).sum(-1))


def logp(tree, prompt, answer) -> float:
  """float64 sum of the answer's log-probs, its first token after the prompt."""
  return token_logps(tree, prompt, answer)[0].sum()
