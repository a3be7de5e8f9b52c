"""experiments/tldr: rows, articles, commands, and a judge on loopback."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import (
  data,
  tokenizers,
)
from dpo_jax.data.sources import movie_reviews
from dpo_jax.judges import templates
from experiments import scheduler
from experiments.tldr import news, pages, rows, run
from tests import study_commands, tiny


def _sentences(count: int):
  return [
    movie_reviews.Sentence(
      text=f'word{i:02d}', rating=(-1) ** i * (1.0 + i % 3), line=i, id=f'{i}'
    )
    for i in range(count)
  ]


def test_a_post_is_of_one_mood_and_the_worse_summary_of_the_other():
  sentences = _sentences(41)
  ratings = {s.text: s.rating for s in sentences}
  found = list(rows.rows(sentences))
  assert len(found) == 10
  seen = []
  for row in found:
    post = row['prompt'].partition('POST: ')[2].removesuffix('\nTL;DR:')
    words = post.split()
    assert len(words) == rows.SENTENCES
    seen += words
    mood = ratings[words[0]] > 0
    assert all((ratings[word] > 0) == mood for word in words)
    best = row['label'].strip()
    assert best in words
    assert abs(ratings[best]) == max(abs(ratings[word]) for word in words)
    assert row['chosen'] == f'TL;DR:{row["label"]}'
    worse = row['rejected'].removeprefix('TL;DR: ')
    assert (ratings[worse] > 0) != mood
  assert len(seen) == len(set(seen)) == 40


@pytest.fixture
def made(tmp_path, monkeypatch):
  """A folder of runs with data."""
  runs = tmp_path / 'runs'
  monkeypatch.setattr(pages, 'RUNS', str(runs))
  paths = tuple(f'{runs}/data/{x}' for x in ('sft', 'comparisons'))
  monkeypatch.setattr(pages, 'DATA', {'tiny': paths, 'paper': paths})
  monkeypatch.setattr(pages, 'NEWS', f'{runs}/news.jsonl')
  monkeypatch.setattr(movie_reviews, 'read_split', lambda *_: _sentences(80))
  monkeypatch.setattr(rows.assets, 'resolve', pathlib.Path)
  monkeypatch.setattr('sys.argv', ['rows', f'--out={runs}/data'])
  rows.main()
  articles = tmp_path / 'cnn' / '3.0.0' / 'test-00000-of-00001.parquet'
  articles.parent.mkdir(parents=True)
  table = {'article': ['long story'] * 3, 'highlights': ['one .\ntwo .'] * 3}
  pyarrow.parquet.write_table(pyarrow.table(table), articles)
  flags = [f'--articles={tmp_path}/cnn', f'--out={pages.NEWS}']
  monkeypatch.setattr('sys.argv', ['news', *flags])
  news.main()
  return tmp_path


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tldr')
  tiny.write(folder)
  return tokenizers.load(str(folder / 'model'))


@pytest.mark.parametrize('scale', pages.SCALES)
def test_the_commands_are_of_pages_that_are_checked(made, scale, tokenizer):
  asked = run.Judge('a-model', 'http://127.0.0.1:1/v1')
  jobs = run.jobs(scale, asked, 'articles')
  assert all(name in jobs for job in jobs.values() for name in job.needs)
  for job in jobs.values():
    module = job.command[1]
    if module.startswith('dpo_jax.'):
      page = study_commands.page_of(job.command, pages.get_config)
      study_commands.check(module, page)
      for section in study_commands.data_sections(page):
        assert len(data.load(section, tokenizer=tokenizer)), (job.name, section)


def test_articles_are_posts_that_ask_for_a_summary(made):
  (row, *_) = map(json.loads, pathlib.Path(pages.NEWS).read_text().splitlines())
  assert row == {
    'prompt': 'POST: long story\nTL;DR:',
    'completion': ' one . two .',
  }
  question = templates.load(pages.NEWS_TEMPLATE)
  assert 'news article' in question and 'forum' not in question
  with pytest.raises(ValueError, match=r'no 3\.0\.0/test-\*\.parquet'):
    news.read(made)


def test_ppo_comes_after_its_reward_and_news_only_with_articles():
  jobs = run.jobs('tiny', run.Judge())
  left = scheduler.to_run(jobs, ['tiny/judged/ppo/simple'])
  assert {'tiny/reward_model', 'tiny/sft'} <= {*left}
  assert not [name for name in jobs if 'news' in name]
