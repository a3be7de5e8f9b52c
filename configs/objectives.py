"""The quickstart with any objective: configs/objectives.py:NAME.

  python -m dpo_jax.train --config configs/objectives.py:kto

Model, data, optimizer and sizes are the quickstart's, so that what differs is
the objective. Its numbers are those of its paper or of the tables in docs/;
none is tuned. Without a name it is DPO.
"""

from dpo_jax import defaults, registry


def _dpo(loss: str = 'dpo', **options):
  return dict(name='dpo', loss=loss, **options)


def _diverged(name: str, **options):
  return _dpo(beta=0.1, divergence=name, divergence_options=options or None)


OBJECTIVES = {
  'alpha_divergence': _diverged('alpha', alpha=0.5),
  'aot': _dpo('aot', beta=0.1),
  'aot_unpaired': _dpo('aot_unpaired', beta=0.1),
  'apo_down': _dpo('apo_down', beta=0.1),
  'apo_zero': _dpo('apo_zero', beta=0.1),
  'bco': dict(name='kto', loss='bco', beta=0.1),
  'bco_pairs': _dpo('bco', beta=0.1),
  'cdpo': _dpo(beta=0.1, label_smoothing=0.1),
  'cpo': _dpo('cpo', beta=0.1, likelihood_weight=1.0),
  'discopop': _dpo('discopop', beta=0.05),
  'dpo': _dpo(beta=0.1),
  'dpo_norm': _dpo('dpo_norm', beta=5.0),
  'dpop': _dpo('dpop', beta=0.3, penalty=50.0),
  'exo': _dpo('exo', beta=0.1),
  'forward_kl': _diverged('forward_kl'),
  'hinge': _dpo('hinge', beta=0.1),
  'ipo': _dpo('ipo', beta=0.1, normalise='sums'),
  'ipo_tokens': _dpo('ipo', beta=0.1, normalise='tokens'),
  'jensen_shannon': _diverged('jensen_shannon'),
  'kto': dict(name='kto', loss='kto', beta=0.1),
  'ld_dpo': _dpo(beta=0.1, length='ld', ld_alpha=0.5),
  'nca': _dpo('nca', beta=0.1),
  'orpo': _dpo('orpo', beta=0.1),
  'plackett_luce': dict(
    name='ranking', loss='plackett_luce', beta=0.1, num_answers=4
  ),
  'preferred_ft': _dpo('preferred_ft'),
  'rlhf_v': _dpo(beta=0.5, length='mean', correction_weight=5.0),
  'robust': _dpo('robust', beta=0.1, label_smoothing=0.1),
  'rpo': _dpo(
    beta=0.1, plus=dict(preferred_ft=dict(weight=1.0, normalise='tokens'))
  ),
  'simpo': _dpo('simpo', beta=2.0, gamma=1.0),
  'slic': _dpo('slic', delta=1.0),
  'sppo': _dpo('sppo', beta=0.1),
  'tr_dpo': _dpo(
    beta=0.1,
    reference='drifting',
    reference_options=dict(every=5, mix=0.6),
  ),
  'unlikelihood': _dpo('unlikelihood', alpha=0.5),
  'wpo': _dpo(beta=0.1, weighting='wpo'),
}


def get_config(objective: str = 'dpo'):
  """The page of an objective, a key of `OBJECTIVES`."""
  c = defaults.movies()
  c.method = registry.lookup(OBJECTIVES, objective, 'objective')
  if c.method.name == 'kto':
    kind = 'kto' if objective == 'kto' else 'unpaired'
    _set_data(c, kind=kind)
    # As many sentences as in 96 pairs of groups of eight.
    c.train_batches.batch_size = 48
  elif objective == 'plackett_luce':
    _set_data(c, kind='ranking', group_size=c.method.num_answers)
    c.train_batches.batch_size = 12
  elif objective == 'rlhf_v':
    # A sentence is in one pair, or its corrected tokens would not be known.
    _set_data(c, corrections='diff', group_size=2)
    c.train_batches.batch_size = 24
  return c


def _set_data(c, **options):
  for data in (c.train_data, c.eval_data):
    for name, value in options.items():
      data[name] = value
