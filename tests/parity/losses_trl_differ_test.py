"""Where TRL 1.16 means something else than its sources or than we do."""

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import trl

from dpo_jax import losses
from tests.losses.pairs import gradient
from tests.parity.trl_losses import (
  TOKENS,
  CPOConfig,
  CPOTrainer,
  ORPOTrainer,
  P,
  Space,
  Tokens,
  answers,
  assert_agree,
  dpo_loss,
  ours,
  unbuilt,
)


def test_the_facts_here_are_of_this_trl():
  assert trl.__version__.startswith('1.16.')


def test_their_sigmoid_ignores_label_smoothing():
  tokens = Tokens()
  theirs = dpo_loss(tokens, 'sigmoid', label_smoothing=0.2)
  assert_agree(tokens, ours('dpo'), theirs)
  smoothed = ours('dpo', label_smoothing=0.2)(tokens.pairs()).mean()
  assert abs(smoothed - theirs[0]) > 0.01


def test_their_ipo_is_per_token():
  tokens = Tokens()
  sums = ours('ipo')(tokens.pairs()).mean()
  assert abs(sums - dpo_loss(tokens, 'ipo')[0]) > 0.1


def test_their_bco_has_no_shift():
  tokens = Tokens()
  shifted = ours('bco')(tokens.pairs()).mean()
  assert abs(shifted - dpo_loss(tokens, 'bco_pair')[0]) > 1e-3


def test_their_exo_diverges_without_label_smoothing():
  assert not np.isfinite(dpo_loss(Tokens(), 'exo_pair')[0])
  with pytest.raises(ValueError, match='label_smoothing'):
    ours('exo', label_smoothing=0.0)(Tokens().pairs())


def test_their_aot_sorts_what_one_call_sees():
  """TRL's loss of a batch changes with its split into micro-batches."""
  tokens = Tokens(seed=3)

  def part(rows):
    both = np.concatenate([rows, rows + P])
    out = Tokens(seed=3)
    for name in ('length', 'mask', 'policy', 'reference'):
      setattr(out, name, getattr(tokens, name)[both])
    return out

  halves = [part(np.arange(0, P // 2)), part(np.arange(P // 2, P))]
  theirs = np.mean([dpo_loss(half, 'aot')[0] for half in halves])
  whole = ours('aot')(tokens.pairs()).mean()
  assert abs(theirs - whole) > 1e-3
  np.testing.assert_allclose(whole, dpo_loss(tokens, 'aot')[0], rtol=1e-5)


def test_their_aot_takes_label_smoothing_and_ours_does_not():
  tokens = Tokens()
  smoothed = dpo_loss(tokens, 'aot', label_smoothing=0.2)[0]
  assert abs(smoothed - dpo_loss(tokens, 'aot')[0]) > 0.01


def _far(ratio):
  """One pair whose log-ratio difference is `ratio`, all of it in y_w."""
  tokens = Tokens(rows=2)
  tokens.policy, tokens.reference = tokens.policy * 0, tokens.reference * 0
  side = tokens.policy if ratio < 0 else tokens.reference
  side[0, 0] = -abs(ratio)
  return tokens


def test_their_discopop_is_nan_at_extremes():
  tokens = _far(-100.0)
  assert np.isnan(dpo_loss(tokens, 'discopop', beta=1.0)[0])
  loss = ours('discopop', beta=1.0)(tokens.pairs())
  np.testing.assert_allclose(loss, 100.0, rtol=1e-6)


def test_their_forward_kl_overflows_and_their_alpha_stops_learning():
  score = losses.DIVERGENCES['forward_kl']
  tokens = _far(-100.0)
  loss, grads = dpo_loss(tokens, 'sigmoid', divergence='forward_kl')
  assert np.isinf(loss) and not np.isfinite(grads).all()
  assert np.isfinite(score(jnp.float32(-100.0)))

  tokens = _far(-200.0)
  _, grads = dpo_loss(
    tokens, 'sigmoid', divergence='alpha_divergence', coef=0.5
  )
  assert grads[0, 0] == 0.0
  assert jax.grad(losses.DIVERGENCES['alpha'])(-200.0) > 0


def test_their_fine_tuning_is_a_mean_over_the_tokens_of_a_batch():
  tokens = Tokens()
  loss, _ = dpo_loss(tokens, 'sft')
  s_w, n_w = tokens.policy[:P].sum(1), tokens.length[:P]
  np.testing.assert_allclose(loss, -s_w.sum() / n_w.sum(), rtol=1e-5)
  per_answer = ours('preferred_ft', normalise='tokens')(tokens.pairs())
  np.testing.assert_allclose(per_answer, -s_w / n_w, rtol=1e-5)
  assert abs(per_answer.mean() - loss) > 1e-3


VOCAB, PROMPT = 5, 3


def _likelihood_terms(cls, **attributes):
  """(TRL's likelihood term, log-probs of y_w's row, prompt included, |y_w|).

  From random logits for a prompt of three tokens and answers.
  """
  rng = np.random.default_rng(0)
  length, width = rng.integers(2, TOKENS + 1, 2 * P), PROMPT + TOKENS
  ids = rng.integers(0, VOCAB, (2 * P, width))
  logits = torch.tensor(rng.normal(size=(2 * P, width, VOCAB)))
  real = np.arange(width) < PROMPT + length[:, None]
  answer = real & (np.arange(width) >= PROMPT)
  batch = {}
  for name, rows in (('chosen', slice(0, P)), ('rejected', slice(P, None))):
    batch[f'{name}_input_ids'] = torch.tensor(ids[rows])
    batch[f'{name}_attention_mask'] = torch.tensor(real[rows]).long()
    labels = np.where(answer, ids, -100)[rows]
    batch[f'{name}_labels'] = torch.tensor(labels)
  trainer = unbuilt(
    cls,
    **dict(is_encoder_decoder=False, padding_value=0, pad_token_id=0),
    **attributes,
  )
  _, metrics = trainer.get_batch_loss_metrics(
    lambda *args, **kwargs: Space(logits=logits), batch
  )
  logps = torch.log_softmax(logits, -1).numpy()[:, :-1]
  logps = np.take_along_axis(logps, ids[:, 1:, None], -1)[..., 0]
  return metrics['nll_loss'], (logps * real[:, 1:])[:P], length[:P]


def test_their_orpo_has_the_prompt_in_its_likelihood():
  nll, logps, length = _likelihood_terms(ORPOTrainer, beta=0.1)
  with_prompt = length + PROMPT - 1
  np.testing.assert_allclose(nll, -logps.sum() / with_prompt.sum(), rtol=1e-5)
  of_answers = -(logps[:, PROMPT - 1 :].sum(1) / length).mean()
  assert abs(nll - of_answers) > 1e-3


def test_their_cpo_has_a_likelihood_per_token_of_the_batch():
  nll, logps, length = _likelihood_terms(
    CPOTrainer,
    **dict(beta=0.1, cpo_alpha=1.0, alpha=0.0, label_smoothing=0.0),
    loss_type='sigmoid',
  )
  s_w = logps[:, PROMPT - 1 :].sum(1)
  np.testing.assert_allclose(nll, -s_w.sum() / length.sum(), rtol=1e-5)
  pairs = answers(jnp.float32(s_w), jnp.zeros(P))
  term = ours('cpo')(pairs) - ours('cpo', likelihood_weight=0.0)(pairs)
  np.testing.assert_allclose(term, -s_w, rtol=1e-4)


def test_their_orpo_has_no_gradient_for_a_certain_answer():
  theirs = unbuilt(ORPOTrainer, beta=0.7)
  w = torch.zeros(1, requires_grad=True)
  loss = theirs.odds_ratio_loss(w, torch.tensor([-1.0]))[0].sum()
  loss.backward()
  assert not torch.isfinite(w.grad).all()
  fn = ours('orpo', beta=0.7)
  grads = gradient(fn, answers(jnp.zeros(1), -jnp.ones(1)))
  assert np.isfinite(grads).all()


def test_their_kto_rolls_completions_within_consecutive_rows():
  """The data's order decides which completion a prompt is mismatched with."""
  letters = dict(zip('abcdefgh', range(8)))

  def tokenizer(text, **_):
    return {'input_ids': [letters[c] for c in text if c in letters]}

  data = datasets.Dataset.from_dict(
    dict(prompt=['a'] * 6, completion=list('bcdefg'), label=[True, False] * 3)
  )
  trainer = unbuilt(
    trl.KTOTrainer, calculate_KL=True, _tokenizer=Space(eos_token='h')
  )
  args = Space(
    dataset_num_proc=None, max_length=None, per_device_train_batch_size=3
  )
  rolled = trainer._prepare_dataset(data, tokenizer, args, 'eval')
  first = [ids[0] for ids in rolled['KL_completion_ids']]
  assert first == [letters[c] for c in 'dbcgef']


def test_their_defaults_that_differ():
  def default(config, name):
    return config.__dataclass_fields__[name].default

  assert default(trl.DPOConfig, 'label_smoothing') == 0.0
  assert default(trl.DPOConfig, 'discopop_tau') == 0.05
  assert default(CPOConfig, 'simpo_gamma') == 0.5
  # SimPO there comes with a likelihood term, unless this is set to 0.
  assert default(CPOConfig, 'cpo_alpha') == 1.0
