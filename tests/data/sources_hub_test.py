"""Data sets of the hub: rows of their schemas, good and bad, as records."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.chat import errors, rendering
from dpo_jax.data import records, sources
from dpo_jax.data.sources import hub_files, stack_exchange
from tests import templates

HH_SUBSETS = [
  'harmless-base',
  'helpful-base',
  'helpful-online',
  'helpful-rejection-sampled',
]
ASK = '\n\nHuman: Why?\n\nAssistant:'
RENDER = rendering.Render(templates.Plain())
MORE = '\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:'


def render_last(messages):
  return templates.Plain().apply_chat(messages)


def read(name, **options):
  """(records, {line: reason of a dropped row}) of a source."""
  items = list(sources.SOURCES[name](**options).rows(RENDER))
  bad = {i.row: i.reason for i in items if isinstance(i, errors.RowError)}
  return [i for i in items if isinstance(i, records.Record)], bad


def shown(record):
  """(prompt, completions, examples) of a record."""
  return record.prompt, record.completions, record.examples


def write_jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'wt') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)


def write_parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path)


def write_hh(folder, rows, split='train'):
  for subset in HH_SUBSETS:
    path = folder / subset / f'{split}.jsonl.gz'
    write_jsonl(path, rows if subset == 'helpful-base' else [])
  # Not preferences; never to be read.
  write_jsonl(folder / 'red-team-attempts' / f'{split}.jsonl.gz', ['junk'])


def transcripts(prompt, chosen, rejected):
  return {'chosen': prompt + chosen, 'rejected': prompt + rejected}


def test_hh(tmp_path):
  write_hh(
    tmp_path,
    [
      transcripts(ASK, ' Because.', ' No.'),
      transcripts(MORE, ' Since.', ' No.'),
      # Rows of the first prompt again; two answers are known already.
      transcripts(ASK, ' Well.', ' Because.'),
      transcripts(ASK, ' Because.', ' Hm.'),
    ],
  )
  found, bad = read('hh', split='train', path=str(tmp_path))
  assert not bad
  assert [shown(r) for r in found] == [
    (ASK, (' Because.', ' No.', ' Well.', ' Hm.'), ((0, 1), (2, 0), (0, 3))),
    (MORE, (' Since.', ' No.'), ((0, 1),)),
  ]
  assert found[0].row == 1 and found[1].row == 2
  assert found[0].file == f'{tmp_path}/helpful-base/train.jsonl.gz'


def test_hh_as_messages_and_for_tuning(tmp_path):
  write_hh(tmp_path, [transcripts(MORE, ' Since.', ' No.')], split='test')
  options = dict(split='test', path=str(tmp_path))
  ((record,), _) = read('hh', form='messages', **options)
  assert record.prompt == '<user>Hi.<assistant>Hello.<user>Why?<assistant>'
  assert record.completions == ('Since.', 'No.') and record.rendered
  ((record,), _) = read('hh', kind='sft', **options)
  assert shown(record) == (MORE, (' Since.',), ((0,),))


@pytest.mark.parametrize(
  ('row', 'reason'),
  [
    (
      {'chosen': ASK + ' Yes.', 'rejected': ASK.replace('?', '!') + ' No.'},
      'prompt_mismatch',
    ),
    ({'chosen': ASK + ' Yes.', 'rejected': ASK[:-3]}, 'prompt_mismatch'),
    # The chosen transcript is one exchange longer than the rejected one.
    ({'chosen': MORE + ' Yes.', 'rejected': MORE[:35]}, 'prompt_mismatch'),
    (
      transcripts(ASK, ' Yes.', ' No.\n\nHuman: Eh?\n\nAssistant: Oh.'),
      'further_turns',
    ),
    (transcripts(ASK, ' Yes.\n\nHuman: Eh?', ' No.'), 'further_turns'),
    (transcripts(ASK, ' ', ' No.'), 'empty_completion'),
    (transcripts(ASK, ' No.', ' No.'), 'identical_completions'),
    ({'chosen': 'Yes.', 'rejected': 'No.'}, 'bad_transcript'),
    ({'chosen': '\n\nHuman: Why?', 'rejected': 'No.'}, 'bad_transcript'),
    ({'chosen': ASK + ' Yes.'}, 'missing_field'),
    ({'chosen': ASK + ' Yes.', 'rejected': None}, 'missing_field'),
    (['chosen'], 'not_an_object'),
  ],
)
def test_hh_unusable(tmp_path, row, reason):
  write_hh(tmp_path, [transcripts(ASK, ' Because.', ' No.'), row])
  found, bad = read('hh', split='train', path=str(tmp_path))
  assert bad == {2: reason} and len(found) == 1


def test_hh_layouts(tmp_path):
  rows = [transcripts(ASK, ' Because.', ' No.')]
  write_parquet(tmp_path / 'a' / 'default' / 'train' / '0000.parquet', rows)
  ((record,), _) = read('hh', split='train', path=f'{tmp_path}/a')
  assert record.file == f'{tmp_path}/a/default/train/0000.parquet'
  # A copy of one subset must be asked for as such.
  write_jsonl(tmp_path / 'b' / 'helpful-base' / 'train.jsonl.gz', rows)
  options = dict(split='train', path=f'{tmp_path}/b')
  with pytest.raises(FileNotFoundError, match='no harmless-base/train'):
    read('hh', **options)
  assert len(read('hh', subsets=['helpful-base'], **options)[0]) == 1


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'split': 'valid'}, ValueError, "split 'valid'.*Known: test, train"),
    ({'form': 'chat'}, ValueError, 'Known: messages, text'),
    ({'subsets': ['helpful']}, ValueError, "Did you mean 'helpful-base'"),
    ({'subsets': 'helpful-base'}, ValueError, 'expected a list'),
    ({'kind': 'pair'}, ValueError, "Did you mean 'pairs'"),
    ({'path': 'nowhere'}, FileNotFoundError, 'Offline, `path` names a dir'),
  ],
)
def test_wrong_options(tmp_path, options, error, message):
  write_hh(tmp_path, [transcripts(ASK, ' Because.', ' No.')])
  with pytest.raises(error, match=message):
    read('hh', **{'split': 'train', 'path': str(tmp_path)} | options)


def test_a_hub_out_of_reach_says_what_to_set(monkeypatch):
  import huggingface_hub

  def offline(*args, **options):
    raise huggingface_hub.errors.LocalEntryNotFoundError('no network')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  with pytest.raises(FileNotFoundError) as e:
    read('hh', split='train')
  for said in ('HF_HUB_OFFLINE=1', 'a directory', '{subset}/{split}.jsonl.gz'):
    assert said in str(e.value)


def test_a_missing_shard_is_an_error(tmp_path):
  for shard in (0, 2):
    write_parquet(
      tmp_path / 'data' / f'train-0000{shard}-of-00003-4f2.parquet',
      [{'prompt': 'p', 'label': 'c'}],
    )
  with pytest.raises(ValueError, match=r'2 of 3 shards.*missing: 00001'):
    hub_files.find(str(tmp_path), [('data/{split}-*.parquet',)], split='train')


POST = {
  'post_id': 'a1',
  'domain': 'askbaking_train',
  'upvote_ratio': 0.98,
  'history': 'How long?',
  'c_root_id_A': 'x',
  'c_root_id_B': 'y',
  'created_at_utc_A': 1,
  'created_at_utc_B': 2,
  'score_A': 8,
  'score_B': 4,
  'human_ref_A': 'An hour.',
  'human_ref_B': 'A week.',
  'labels': 1,
  'seconds_difference': 1.0,
  'score_ratio': 2.0,
}


def test_shp(tmp_path):
  write_jsonl(
    tmp_path / 'askbaking' / 'train.json',
    [
      POST,
      POST | {'human_ref_A': 'Two.', 'labels': 0, 'score_B': 90},
      # Below the ratio: left out, and no fault of the row.
      POST | {'human_ref_A': 'Ten.', 'score_A': 7},
      POST | {'history': 'Which flour?'},
    ],
  )
  write_jsonl(
    tmp_path / 'askvet' / 'train.json',
    [POST | {'labels': 2}, POST | {'score_A': 0}, {'history': 'Why?'}],
  )
  found, bad = read('shp', split='train', path=str(tmp_path))
  ask = '\n\nHuman: How long?\n\nAssistant:'
  assert [shown(r) for r in found] == [
    (ask, (' An hour.', ' A week.', ' Two.'), ((0, 1), (1, 2))),
    (
      ask.replace('How long', 'Which flour'),
      (' An hour.', ' A week.'),
      ((0, 1),),
    ),
  ]
  assert bad == {1: 'wrong_type', 2: 'wrong_type', 3: 'missing_field'}
  options = dict(split='train', path=str(tmp_path), subsets=['askbaking'])
  found, bad = read('shp', min_ratio=1.75, form='messages', **options)
  assert not bad and len(found[0].examples) == 3
  assert found[0].prompt == '<user>How long?<assistant>'


def test_tldr(tmp_path):
  post = 'SUBREDDIT: r/tifu\nTITLE: Soup\nPOST: I spilled it.'
  write_parquet(
    tmp_path / 'sft' / 'data' / 'valid-00000-of-00001-ab.parquet',
    [
      {'prompt': f'{post}\nTL;DR:', 'label': 'I spilled soup.'},
      {'prompt': post, 'label': ''},
    ],
  )
  write_parquet(
    tmp_path / 'pairs' / 'data' / 'train-00000-of-00001-cd.parquet',
    [
      {'prompt': post, 'chosen': f'TL;DR: {c}', 'rejected': f'TL;DR:  {r}'}
      for c, r in [('Soup.', 'Me.'), ('Soup!', 'Me.'), ('Eh.', 'Eh.')]
    ],
  )
  found, bad = read('tldr_sft', split='valid', path=f'{tmp_path}/sft')
  prompt = f'{post}\nTL;DR:'
  assert [shown(r) for r in found] == [(prompt, (' I spilled soup.',), ((0,),))]
  assert bad == {2: 'empty_completion'}
  options = dict(split='valid', path=f'{tmp_path}/sft', kind='prompts')
  (alone,), _ = read('tldr_sft', **options)
  assert alone.alone and alone.prompt == prompt
  found, bad = read('tldr_comparisons', split='train', path=f'{tmp_path}/pairs')
  # The prompts are those of the other.
  assert [shown(r) for r in found] == [
    (prompt, (' Soup.', ' Me.', ' Soup!'), ((0, 1), (2, 1)))
  ]
  assert bad == {3: 'identical_completions'}


@pytest.mark.parametrize('name', ['tldr_sft', 'tldr_comparisons'])
def test_another_schema_is_an_error_that_names_it(tmp_path, name):
  rows = [{'prompts': 'p', 'text': 'c'}]
  write_parquet(tmp_path / 'data' / 'train-00000-of-00001.parquet', rows)
  with pytest.raises(
    ValueError,
    match=r"no column prompt, .*Did you mean 'prompts'\? It has: prompts, text",
  ):
    sources.SOURCES[name](split='train', path=str(tmp_path))


def answer(text, score, **fields):
  author = dict(answer_id=1, author='a', author_id=2, author_profile='p')
  return dict(text=text, pm_score=score, selected=False, **author) | fields


def test_stack_exchange(tmp_path):
  rows = [
    {
      'qid': 5,
      'question': '<p>What is <b>1</b> &lt; <code>x</code>?</p>',
      'answers': [
        answer('<p>A number.</p>', 1),
        answer('<p>Nothing.</p>', 3),
        answer('<p>All.</p>', 1),
        answer('<img src="x.png">', 9),
      ],
      'date': '2020/01/01',
      'metadata': ['https://ai.stackexchange.com'],
    },
    {
      'qid': 6,
      'question': '<p>Tie?</p>',
      'answers': [answer('a', 1), answer('b', 1)],
    },
    {
      'qid': 7,
      'question': '<img>',
      'answers': [answer('a', 1), answer('b', 2)],
    },
  ]
  site = tmp_path / 'data' / 'ai.stackexchange.com'
  write_parquet(site / 'train-00000-of-00001.parquet', rows)
  options = dict(split='all', path=str(tmp_path))
  found, bad = read('stack_exchange', **options)
  prompt = '\n\nHuman: What is 1 < <code>x</code>?\n\nAssistant:'
  assert [shown(r) for r in found] == [
    (prompt, (' A number.', ' Nothing.', ' All.'), ((1, 0), (1, 2)))
  ]
  # Ties are left out, and no fault of the row.
  assert bad == {3: 'no_text'}
  found, bad = read('stack_exchange', kind='sft', **options)
  assert [r.completions for r in found] == [(' Nothing.',), (' a',)]
  with pytest.raises(FileNotFoundError, match=r'data/pets/\*\.parquet'):
    read('stack_exchange', subsets=['pets'], **options)


@pytest.mark.parametrize(
  ('page', 'text'),
  [
    ('<p>One\n two.</p>\n\n<p>Three.</p>', 'One two.\n\nThree.'),
    ('<ul>\n<li>a</li>\n<li>b</li>\n</ul>', 'a\n\nb'),
    ('<p>Say <em>it</em> <a href="x">so</a>.<br>Now</p>', 'Say it so.\n\nNow'),
    (
      '<p>Do</p>\n<pre><code>if x &lt; 2:\n  y()\n</code></pre>\n<p>!</p>',
      'Do\n\n<code>if x < 2:\n  y()\n</code>\n\n!',
    ),
    # Tags within code are part of it only where they are escaped.
    ('<code>a<b>c</b>\n &lt;p&gt;</code>', '<code>ac\n <p></code>'),
    ('<p>x <code>a<br>b</code> y</p>', 'x <code>ab</code> y'),
    ('no tags &amp; &#39;all&#39;', "no tags & 'all'"),
    ('<p>open <code>x = 1', 'open x = 1'),
    ('<p> </p>', ''),
    ('', ''),
  ],
)
def test_html(page, text):
  assert stack_exchange.plain(page) == text


def chat(*contents):
  roles = ['user', 'assistant'] * len(contents)
  return [{'role': r, 'content': c} for r, c in zip(roles, contents)]


def test_ultrafeedback(tmp_path):
  def row(chosen, rejected):
    return {
      'prompt': 'Why?',
      'prompt_id': '1',
      'chosen': chosen,
      'rejected': rejected,
      'messages': chosen,
      'score_chosen': 8.0,
      'score_rejected': 7.0,
    }

  write_parquet(
    tmp_path / 'data' / 'test_prefs-00000-of-00001.parquet',
    [
      row(chat('Why?', 'So.'), chat('Why?', 'No.')),
      row(chat('Why?', 'Thus.'), chat('Why?', 'So.')),
      row(chat('Why?', 'So.'), chat('What?', 'No.')),
      row(chat('Why?', 'So.', 'Eh?'), chat('Why?', 'So.', 'Oh?')),
      row(chat('Why?'), chat('Why?')),
      row(chat('Hi', 'Yo', 'Why?', 'So.'), chat('Hi', 'Yo', 'Why?', 'No.')),
      row(chat('Why?') * 2, [*chat('Why?'), *chat('What?')]),
    ],
  )
  found, bad = read('ultrafeedback', split='test', path=str(tmp_path))
  assert [shown(r) for r in found] == [
    ('<user>Why?<assistant>', ('So.', 'No.', 'Thus.'), ((0, 1), (2, 0))),
    ('<user>Hi<assistant>Yo<user>Why?<assistant>', ('So.', 'No.'), ((0, 1),)),
  ]
  assert bad.pop(3) == 'different_context'
  assert bad == dict.fromkeys((4, 5, 7), 'bad_messages')


def test_ultrafeedback_ratings(tmp_path):
  def row(*scores):
    return {
      'source': 'flan',
      'instruction': 'Why?',
      'models': ['m'],
      'completions': [
        {'model': 'm', 'response': f'a{i}', 'overall_score': s}
        for i, s in enumerate(scores)
      ],
      'correct_answers': ['None'],
    }

  rows = [row(7.5, 3.0, 7.5, 9.0), row(5.0, 5.0), row(1.0, None), {}]
  write_jsonl(tmp_path / 'flan.jsonl', rows)
  found, bad = read('ultrafeedback_ratings', path=str(tmp_path))
  (record,) = found
  assert record.completions == ('a0', 'a1', 'a2', 'a3')
  assert set(record.examples) == {(3, 0), (3, 1), (3, 2), (0, 1), (2, 1)}
  assert bad == {3: 'missing_field', 4: 'missing_field'}
