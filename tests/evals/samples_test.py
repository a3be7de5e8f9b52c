"""Rows of samples: drawing, statistics, files and display."""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest
import tokenizers as hf_tokenizers

from dpo_jax import models, rewards, sampling, tokenizers
from dpo_jax.evals import kl, samples
from dpo_jax.training import sharding
from tests import forests

SETTINGS = dict(temperature=1.0, top_k=None, top_p=None)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """A byte-level tokenizer without merges; id 0 is EOS."""
  folder = tmp_path_factory.mktemp('tokenizer')
  backend = hf_tokenizers.ByteLevelBPETokenizer()
  backend.train_from_iterator([], 257, special_tokens=['<eos>'])
  backend.save(str(folder / 'tokenizer.json'))
  settings = json.dumps({'eos_token': '<eos>'})
  (folder / 'tokenizer_config.json').write_text(settings)
  return tokenizers.load(folder)


def _row(text='', *, prompt='', ids=None, ended=True, **more):
  ids = list(text.encode()) if ids is None else ids
  length = len(ids) + ended
  row = dict(prompt=prompt, text=text, ids=[*ids, *[0] * ended])
  return {**row, 'length': length, 'ended': ended, 'logp': -1.0 * length} | {
    **SETTINGS,
    **more,
  }


def test_rows_are_what_was_drawn(tokenizer, monkeypatch):
  prompts = [tokenizer.encode('A'), tokenizer.encode('Été')]
  texts = [['yes', 'naïve'], ['no', 'nobody']]
  drawn = np.full((2, 2, 6), 99, np.int32)
  lengths = np.zeros((2, 2), np.int32)
  for b, s in np.ndindex(2, 2):
    ids = [*tokenizer.encode(texts[b][s]), tokenizer.eos_id][:6]
    drawn[b, s, : len(ids)], lengths[b, s] = ids, len(ids)
  given = {}

  def sample(params, config, prompts, **options):
    given.update(options, prompts=prompts)
    return types.SimpleNamespace(
      tokens_BxSxT=drawn,
      lengths_BxS=lengths,
      logps_BxSxT=np.full((2, 2, 6), -0.5, np.float32),
    )

  monkeypatch.setattr(sampling, 'sample', sample)
  settings = dict(temperature=0.7, top_k=5, top_p=0.9)
  rows = samples.generate(
    None,
    None,
    prompts,
    tokenizer,
    key='key',
    max_new_tokens=6,
    num_samples=2,
    batch_size=1,
    progress=print,
    compute=models.Compute(),
    **settings,
  )
  assert [row['prompt'] for row in rows] == ['A', 'A', 'Été', 'Été']
  # 'naïve' has six bytes and 'nobody' six letters: their EOS was cut off.
  assert [row['text'] for row in rows] == ['yes', 'naïve', 'no', 'nobody']
  assert [row['ended'] for row in rows] == [True, False, True, False]
  assert [row['length'] for row in rows] == [4, 6, 3, 6]
  assert [row['logp'] for row in rows] == [-2.0, -3.0, -1.5, -3.0]
  assert rows[2]['ids'] == [*tokenizer.encode('no'), tokenizer.eos_id]
  assert json.loads(json.dumps(rows)) == rows
  for row in rows:
    assert {k: row[k] for k in settings} == settings
  assert given == dict(
    prompts=prompts,
    key='key',
    max_new_tokens=6,
    num_samples=2,
    batch_size=1,
    progress=print,
    eos_id=tokenizer.stop_ids,
    compute=models.Compute(),
    **settings,
  )


def test_statistics_of_known_rows():
  rows = [
    _row('abcabcabc'),  # abca bcab cabc abca bcab cabc: 3 of 6 4-grams.
    _row('aaaaaa', ended=False),  # 1 of 3.
    _row('abc'),  # None.
    _row('abc', prompt='another'),
  ]
  assert samples.statistics(rows) == {
    'samples/length': (10 + 6 + 4 + 4) / 4,
    'samples/ended': 0.75,
    'samples/repetition': pytest.approx((1 / 2 + 2 / 3 + 0 + 0) / 4),
    'samples/distinct': 0.75,
    'samples/logp': -(10 + 6 + 4 + 4) / 4,
  }


def test_an_empty_text_repeats_nothing():
  found = samples.statistics([_row(''), _row('', ids=[], ended=False)])
  assert found['samples/repetition'] == 0 and found['samples/length'] == 0.5


@pytest.mark.parametrize(
  ('settings', 'suffix'),
  [
    (dict(), ''),
    (dict(top_p=1.0), ''),
    (dict(temperature=0.7), '_filtered'),
    (dict(temperature=0), '_filtered'),
    (dict(top_k=40), '_filtered'),
    (dict(top_p=0.9), '_filtered'),
  ],
)
def test_the_kl_of_a_filtered_policy_has_another_name(settings, suffix):
  rows = [
    _row('a', kl=k, log_ratio=r, **settings)
    for k, r in ((1.0, 2.0), (2.0, -1.0), (6.0, 5.0))
  ]
  found = samples.statistics(rows)
  half = 1.959964 * math.sqrt(7 / 3)
  for name, mean, low in (('kl', 3, 3 - half), ('kl_sampled', 2, 2 - 2 * 1.7)):
    name = f'samples/{name}{suffix}'
    assert found[name] == mean
    assert found[f'{name}_low'] == pytest.approx(low, abs=1e-2)
    assert found[f'{name}_high'] == pytest.approx(2 * mean - low, abs=1e-2)
  assert len([name for name in found if '/kl' in name]) == 6


def test_scores_are_of_the_text_alone():
  def cheer(prompts, completions):
    assert list(prompts) == ['!', '']
    return [text.count('!') for text in completions]

  reward = rewards.Reward('cheer', cheer, 0.5)
  rows = samples.score([_row('oh', prompt='!'), _row('oh!')], reward)
  assert [row['cheer'] for row in rows] == [0, 1]
  found = samples.statistics(rows, reward)
  assert found['samples/cheer'] == found['samples/cheer_positive'] == 0.5
  assert found['samples/cheer_positive_low'] == pytest.approx(0.0945, abs=1e-4)
  assert samples.score(rows, None) is rows


def test_statistics_count_what_reaches_the_threshold():
  reward = rewards.Reward('made_up', None, 0.05)
  scores = [0.05, 0.9, 0.049999, -0.3, 0.0]
  found = samples.reward_statistics(reward, scores)
  assert found['made_up'] == pytest.approx(np.mean(scores))
  assert found['made_up_positive'] == 2 / 5
  half = 1.959964 * np.std(scores, ddof=1) / np.sqrt(5)
  assert found['made_up_low'] == pytest.approx(np.mean(scores) - half)
  assert found['made_up_high'] == pytest.approx(np.mean(scores) + half)
  # Wilson's interval of 2 of 5: E.B. Wilson, J. Am. Stat. Assoc. 22, 1927.
  assert found['made_up_positive_low'] == pytest.approx(0.1176, abs=1e-4)
  assert found['made_up_positive_high'] == pytest.approx(0.7693, abs=1e-4)
  without = samples.reward_statistics(reward._replace(positive=None), scores)
  assert without.keys() == {'made_up', 'made_up_low', 'made_up_high'}


def test_prompts_are_the_first_distinct_ones():
  rows = [([i % 3, 7], [[1, 2], [3, 4]], [(0, 1)]) for i in range(9)]
  records = forests.make(rows)
  choose = samples.choose_prompts
  assert choose(records, num_prompts=2, num_samples=4) == ([[0, 7], [1, 7]], 4)
  # Three prompts where eight are asked for: the samples stay 32 or more.
  found, each = choose(records, num_prompts=8, num_samples=4)
  assert found == [[0, 7], [1, 7], [2, 7]] and each == 11


BAD = {
  'num_prompts': (0, 'samples.num_prompts is 0'),
  'num_samples': (0, 'samples.num_samples is 0'),
  'max_new_tokens': (0, 'samples.max_new_tokens is 0'),
  'batch_size': (0, 'samples.batch_size is 0'),
  'temperature': (-1.0, 'temperature is -1'),
  'top_k': (0, 'top_k is 0'),
  'top_p': (1.5, 'top_p is 1.5'),
  'reward': ('vadar', "Unknown reward 'vadar'. Did you mean 'vader'"),
}


@pytest.mark.parametrize('option', BAD)
def test_bad_settings_are_errors(option):
  value, message = BAD[option]
  options = dict(num_prompts=8, num_samples=4, max_new_tokens=48)
  with pytest.raises(ValueError, match=message):
    samples.build(**options | {option: value})


@pytest.mark.parametrize('batch_size', [None, 1])
def test_a_built_sampler_draws_scores_and_counts(tokenizer, batch_size):
  config = dataclasses.replace(forests.CONFIG, vocab_size=tokenizer.vocab_size)
  policy, reference = (forests.params(seed, config) for seed in (0, 1))
  records = forests.make([([5, 9], [[1, 2], [3, 4]], [(0, 1)])] * 3)
  sampler = samples.build(
    num_prompts=2,
    num_samples=32,
    max_new_tokens=3,
    reward='vader',
    batch_size=batch_size,
  )
  prompts, num_samples = sampler.choose(records)
  assert prompts == [[5, 9]] and num_samples == 64

  def draw(seed):
    return sampler.draw(
      policy,
      config,
      prompts,
      tokenizer,
      key=jax.random.key(seed),
      num_samples=num_samples,
      compute=models.Compute(),
    )

  rows = draw(0)
  assert rows == draw(0) != draw(1)
  sequence_kl = kl.make_sequence_kl(
    models.policy(config),
    sharding.make_mesh(devices=1),
    max_new_tokens=sampler.max_new_tokens,
  )
  rows = sequence_kl(policy, reference, prompts, rows)
  found = sampler.statistics(rows)
  # Two estimates of one number; their difference has mean 0.
  gap = np.array([row['kl'] - row['log_ratio'] for row in rows])
  assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))
  assert found['samples/kl'] > 0.1
  assert 'samples/vader_positive' in found


def test_files_are_whole_and_read_as_what_was_written(tmp_path):
  rows = [_row('naïve\n“text” 🎬', prompt='p'), _row('b', kl=0.5)]
  samples.write(tmp_path, 40, rows)
  path = samples.path_of(tmp_path, 40)
  assert path == tmp_path / 'samples' / '000040.jsonl'
  lines = path.read_text('utf-8').splitlines()
  assert [json.loads(line) for line in lines] == rows and '🎬' in lines[0]
  assert samples.read(path) == rows
  samples.write(tmp_path, 40, rows[:1])
  assert len(path.read_text().splitlines()) == 1
  assert [p.name for p in path.parent.iterdir()] == ['000040.jsonl']


def test_shown_side_by_side():
  before = [_row(f'old {i}', prompt=p) for i, p in enumerate('aabb')]
  after = [_row(f'new {i}', prompt=p) for i, p in enumerate('aabb')]
  after[1] = _row('cut', prompt='a', ended=False)
  assert samples.show(after, before=before, limit=3) == '\n'.join(
    [
      '  prompt  a',
      '  before  old 0',
      '   after  new 0',
      '  before  old 1',
      '   after  cut...',
      '',
      '  prompt  b',
      '  before  old 2',
      '   after  new 2',
    ]
  )
  # Fewer of each prompt rather than of fewer prompts.
  shown = samples.show(after, limit=2)
  assert shown.count('prompt') == 2 and 'new 2' in shown
  with pytest.raises(ValueError, match='different prompts'):
    samples.show(after, before=before[:3])


def test_shown_text_is_wrapped_and_keeps_its_lines():
  row = _row('\n one two three four\n\nfive', prompt='p')
  assert samples.show([row], width=20) == '\n'.join(
    [
      '  prompt  p',
      '  sample  one two',
      '          three four',
      '',
      '          five',
    ]
  )
