"""Conversations of which every answer counts, from rows to log-probabilities.

What is scored is compared with a plain forward pass over the conversation as
its template writes it.
"""

import datetime
import json

import jax
import numpy as np
import pytest
import tokenizers as hf

from dpo_jax import data, models, tokenizers
from dpo_jax.chat import rendering
from dpo_jax.data import preview
from dpo_jax.losses import logprobs
from tests import forests

WORDS = ['the', 'film', 'is', 'dull', 'why', 'so', 'it', 'was', 'long', 'no']
TEMPLATE = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }} <end>\n{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)
MARKED = (
  '{% for m in messages %}<{{ m.role }}>'
  "{% if m.role == 'assistant' %}"
  '{% generation %}{{ m.content }} <end>\n{% endgeneration %}'
  '{% else %}{{ m.content }} <end>\n{% endif %}{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)

TEMPLATES = {
  'plain': TEMPLATE,
  'marked': MARKED,
  # The space before the end of a turn is not in the block.
  'narrow': MARKED.replace(
    ' <end>\n{% endgeneration %}', '{% endgeneration %} <end>\n'
  ),
  'unmarked': MARKED.replace(
    "m.role == 'assistant'", "m.role == 'assistant' and not loop.last"
  ),
  'formal': "{% if messages[0].role != 'system' %}"
  "{{ raise_exception('No system message.') }}{% endif %}" + TEMPLATE,
  'dated': '{{ strftime_now("%d %b %Y") }} ' + TEMPLATE,
}


def _tokenizer(folder, template):
  folder.mkdir()
  vocab = {w: i for i, w in enumerate([*WORDS, '?', '\n', ' '])}
  backend = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token='?'))
  backend.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r'\s'), 'isolated')
  backend.decoder = hf.decoders.Fuse()
  backend.add_special_tokens(
    ['<s>', '</s>', '<end>', '<user>', '<assistant>', '<system>']
  )
  backend.save(str(folder / 'tokenizer.json'))
  config = {'eos_token': '</s>', 'chat_template': template}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return tokenizers.load(folder)


def _talks(seed, num):
  rng = np.random.default_rng(seed)

  def said(role):
    words = rng.choice(WORDS, rng.integers(1, 5))
    return {'role': role, 'content': ' '.join(words)}

  talks = []
  for _ in range(num):
    turns = ['user', 'assistant'] * int(rng.integers(1, 4))
    system = ['system'] * int(rng.integers(0, 2))
    talks.append([said(role) for role in system + turns])
  return talks


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """(talks, options) -> (records, tokenizer)."""
  cache = pytest.MonkeyPatch()
  folder = tmp_path_factory.mktemp('turns')
  cache.setenv('DPO_JAX_CACHE', str(folder / 'cache'))
  made = {
    name: _tokenizer(folder / name, template)
    for name, template in TEMPLATES.items()
  }

  def load(talks, name='plain', **options):
    rows = [json.dumps({'messages': talk}) for talk in talks]
    (folder / 'talks.jsonl').write_text('\n'.join(rows))
    section = dict(source='jsonl', path=str(folder / 'talks.jsonl'))
    section |= dict(kind='sft', turns='all', max_length=99, truncation='drop')
    return data.load(section | options, tokenizer=made[name]), made[name]

  yield load
  cache.undo()


def _by_hand(tokenizer, talk):
  """[(id, whether it is scored)] of a talk, message by message."""
  out = []
  for i, m in enumerate(talk):
    (mark,) = tokenizer.encode(f'<{m["role"]}>')
    said = tokenizer.encode(m['content'] + ' <end>')
    mine = m['role'] == 'assistant'
    out += [(mark, False), *((i, mine) for i in said)]
    if i + 1 < len(talk):
      out.append((tokenizer.encode('\n')[0], False))
  return out


@jax.jit
def _plain_logps(params, ids_1xL):
  compute = models.Compute(attention='dense')
  hidden = models.forward(params, forests.CONFIG, ids_1xL, compute=compute)
  logits = models.logits(params, forests.CONFIG, hidden)[0]
  return jax.nn.log_softmax(logits, axis=-1)


@jax.jit
def _packed_logps(params, batch):
  policy = models.policy(forests.CONFIG)
  hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
  head = policy.head(params)
  return logprobs.token_logps(head, hidden, batch, chunk_size=32)


@pytest.mark.parametrize('truncation', ['drop', 'keep_end'])
def test_scores_are_those_of_the_answers_in_the_whole_talk(load, truncation):
  talks, params = _talks(0, 12), forests.params(3)
  cut = dict(max_length=30, max_prompt_length=12, truncation=truncation)
  records, tokenizer = load(talks, **(cut if truncation != 'drop' else {}))
  batch = forests.pack(records, rows=2, batch_size=12, num_batches=1, seed=0)[0]
  logps = np.asarray(_packed_logps(params, batch))
  seen = set()
  for r, s in zip(*np.nonzero(batch.slot_record_RxS >= 0)):
    record = int(batch.slot_record_RxS[r, s])
    seen.add(record)
    pairs = _by_hand(tokenizer, talks[record])
    first = next(i for i, (_, mine) in enumerate(pairs) if mine)
    kept = len(records.prompt(record)) + len(records.completions(record)[0])
    begin = 0 if truncation == 'drop' else first - len(records.prompt(record))
    pairs = pairs[begin : begin + kept]
    ids = np.zeros((1, 99), np.int32)
    ids[0, : len(pairs)] = [i for i, _ in pairs]
    plain = np.asarray(_plain_logps(params, ids))
    wanted = [plain[i - 1, t] for i, (t, mine) in enumerate(pairs) if mine]
    mine = (batch.score_slot_RxN[r] == s) & (batch.score_weight_RxN[r] > 0)
    np.testing.assert_allclose(logps[r, mine].sum(), sum(wanted), atol=1e-4)
    assert mine.sum() == batch.slot_length_RxS[r, s] == len(wanted)
  assert seen == set(range(12))


def test_blocks_of_a_template_say_the_same(load):
  """They hold the line break after a turn too; the last one's is left out."""
  talks = _talks(1, 9)
  (plain, _), (marked, t) = load(talks), load(talks, 'marked')
  for i in range(len(talks)):
    assert plain.prompt(i).tolist() == marked.prompt(i).tolist()
    (a,), (b,) = plain.completions(i), marked.completions(i)
    assert a.tolist() == b.tolist()
    extra = set(marked.scored_places(i, 0)) - set(plain.scored_places(i, 0))
    assert {t.decode([b[place]]) for place in extra} <= {'\n'}
  # The tokens are the same, what is scored is not.
  assert plain.fingerprint() != marked.fingerprint()


def test_the_last_answer_alone_is_the_default(load):
  talks = _talks(2, 9)
  (every, t), (last, _) = load(talks), load(talks, turns='last')
  answers = [len(x.tokens) - x.prompt_lengths.sum() for x in (last, every)]
  assert last.scored.sum() == answers[0] and every.scored.sum() < answers[1]
  assert last.fingerprint() != every.fingerprint()
  end = t.end_of_turn.token_id
  for i in range(len(talks)):
    whole = [
      [*x.prompt(i).tolist(), *x.completions(i)[0].tolist()]
      for x in (every, last)
    ]
    assert whole[0] == whole[1]
    (answer,) = last.completions(i)
    assert answer.tolist().count(end) == 1 and answer[-1] == end
    places = every.scored_places(i, 0)[-len(answer) :]
    assert every.completions(i)[0][places].tolist() == answer.tolist()


def test_the_preview_shows_what_counts(load):
  said = [
    ('user', 'why'),
    ('assistant', 'no'),
    ('user', 'so'),
    ('assistant', 'it'),
  ]
  talk = [{'role': role, 'content': content} for role, content in said]
  records, tokenizer = load([talk])
  batch = forests.pack(records, rows=1, batch_size=1, num_batches=1, seed=0)[0]
  text = preview.preview(batch, records, tokenizer)
  assert '⟦no <end>⟧⏎' in text and '<user>so <end>⏎' in text
  assert '<assistant>⟦it <end>⟧' in text and 'WRONG' not in text
  assert '6 of 13 tokens scored' in text


def test_only_sft_takes_it(load):
  with pytest.raises(ValueError, match="turns='all' belongs to kind='sft'"):
    load(_talks(0, 1), kind='pairs')
  with pytest.raises(ValueError, match="Did you mean 'last'"):
    load(_talks(0, 1), turns='lasst')


SAID = [{'role': 'user', 'content': 'why'}]
SAID += [{'role': 'assistant', 'content': 'no'}]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('narrow', "the last answer must go up to .* it lacks ' '"),
    ('unmarked', r'no \{% generation %\} block holds the last answer'),
  ],
)
def test_what_is_wrong_with_blocks_is_said(load, name, message):
  talk = [*SAID, *SAID]
  with pytest.raises(ValueError, match=message):
    load([talk], name)


@pytest.mark.parametrize('turns', ['last', 'all'])
def test_templates_that_need_a_system_message(load, turns):
  system = {'role': 'system', 'content': 'so'}
  records, tokenizer = load([[system, *SAID]], 'formal', turns=turns)
  (answer,) = records.completions(0)
  assert tokenizer.decode(answer) == 'no <end>'
  assert tokenizer.end_of_turn.token == '<end>'
  with pytest.raises(ValueError, match='No system message'):
    load([SAID], 'formal', turns=turns)


@pytest.mark.parametrize('turns', ['last', 'all'])
def test_data_are_the_same_on_every_day(load, turns, monkeypatch):
  class Clock(datetime.datetime):
    def strftime(self, form):
      return 'so' if self.year == 2024 else 'no'

    @classmethod
    def now(cls, tz=None):
      return cls(2031, 5, 6)

  monkeypatch.setattr(rendering, 'DATE', Clock(2024, 7, 26))
  monkeypatch.setattr(datetime, 'datetime', Clock)
  found, tokenizer = load([SAID], 'dated', turns=turns)
  assert tokenizer.decode(found.prompt(0).tolist()).startswith('so ')
  asked = rendering.Render(tokenizer, turns).last(SAID[:1], [], {})
  assert asked.prompt.startswith('no ')
