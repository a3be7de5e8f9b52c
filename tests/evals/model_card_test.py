"""The objective in a run's model card."""

import pytest

from dpo_jax.evals import model_card

_RUN = dict(
  model=dict(uri='base'),
  train_batches=dict(batch_size=8),
  steps=4,
  optimizer=dict(name='adamw'),
  schedule=dict(name='constant'),
)


@pytest.mark.parametrize(
  ('method', 'loss', 'reference'),
  [
    (dict(name='dpo', loss='dpo', beta=0.1), 'dpo', True),
    (dict(name='dpo', beta=0.1), 'dpo', True),
    (dict(name='dpo', loss='ipo', beta=0.1), 'ipo', True),
    (dict(name='dpo', loss='simpo', beta=2.0, gamma=1.0), 'simpo', False),
    (dict(name='dpo', loss='orpo', beta=0.1), 'orpo', False),
    (dict(name='kto', beta=0.1), 'kto', True),
    (dict(name='sft'), 'sft', False),
  ],
)
def test_the_loss_is_named_and_a_reference_where_there_is_one(
  method, loss, reference
):
  text = model_card.of_run(
    _RUN | {'method': method}, [], data={}, name='x', shape='', step=4
  )
  assert f'`base`, trained with {loss}.' in text
  assert f'| Objective | {loss}' in text and f'\n- {loss}\n---' in text
  assert ('| Reference | `base` |' in text) == reference
