"""The command line: every option can be set, and a mistake is one line."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pytest
from absl import app, flags
from ml_collections import config_dict

from dpo_jax import (
  cli,
  method_options,
  option_types,
  option_values,
  options,
  overrides,
  pages,
  pairs,
  registry,
  sample,
  settings,
)

# Modules of entry points are imported here, and run.
pytestmark = pytest.mark.filterwarnings('ignore:.*found in sys.modules after')
ROOT = pathlib.Path(__file__).parent.parent
ASKED = {'model.uri': 'm.gguf', 'data.path': 'd.jsonl'}
PATHS = str | os.PathLike | Sequence[str]
DOORS = {
  'train': options.TRAINING,
  'sample': sample.OPTIONS,
  'pairs': pairs.OPTIONS,
}


def _apply(name, given, door='train'):
  return overrides.apply(pages.load(name).config, given, DOORS[door])


def _check(config):
  return registry.bind(settings.check, config, 'the config')()


def _at(config, path):
  for name in path:
    config = config[name]
  return config


# Texts as values.


@pytest.mark.parametrize(
  ('text', 'annotation', 'value'),
  [
    ('3', int, 3),
    ('1_000', int, 1000),
    ('-1', int, -1),
    ('1e-3', float, 1e-3),
    ('2', float, 2.0),
    ('1_000', float, 1000.0),
    ('True', bool, True),
    ('false', bool, False),
    ('0', bool, False),
    ('3', int | None, 3),
    ('None', int | None, None),
    ('None', typing.Optional[str], None),  # noqa: UP045
    ('None', str, 'None'),
    ('3', str, '3'),
    ("('a',)", str, "('a',)"),
    ('a.jsonl', PATHS, 'a.jsonl'),
    ('2024', PATHS, '2024'),
    ("('a', 'b')", PATHS, ('a', 'b')),
    ('["a", "b"]', PATHS, ('a', 'b')),
    ('a,b', Sequence[str] | None, ('a', 'b')),
    ("('a',)", Sequence[str], ('a',)),
    ('', Sequence[str], ()),
    ('vader', str | Mapping[str, Any], 'vader'),
    ("{'a': 1}", Mapping[str, Any], {'a': 1}),
    ('0.5', jax.Array | None, 0.5),
    ('0.5', Any, 0.5),
    ('diff', Any, 'diff'),
    ('a=b', str, 'a=b'),
    ('', str, ''),
  ],
)
def test_texts_are_values_of_the_annotated_type(text, annotation, value):
  found = option_values.parse(text, annotation)
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ('text', 'annotation', 'expected'),
  [
    ('x', int, 'an integer'),
    ('1.5', int | None, 'an integer or None'),
    ('None', int, 'an integer'),
    ('', float, 'a number'),
    ('2', bool, 'True or False'),
    ('x', Mapping[str, Any], r"values such as \{'a': 1\}"),
  ],
)
def test_texts_of_another_type_are_errors(text, annotation, expected):
  with pytest.raises(ValueError, match=f'expected {expected}'):
    option_values.parse(text, annotation)


@pytest.mark.parametrize(
  'words',
  [
    ['--config.data.path=a b', '-config.mesh.data=-1'],
    ['--config.data.path', 'a b', '-config.mesh.data', '-1'],
  ],
)
def test_both_forms_of_an_override(words):
  argv = ['train', '--config', 'x.py', 'word', *words]
  rest, given = cli.split([*argv, '--', '--config.no=1'])
  assert given == {'data.path': 'a b', 'mesh.data': '-1'}
  assert rest == ['train', '--config', 'x.py', 'word', '--', '--config.no=1']


def test_values_that_look_like_flags_need_an_equals_sign():
  assert cli.split(['p', '--config.a=--b'])[1] == {'a': '--b'}
  for argv in (['p', '--config.a', '--b'], ['p', '--config.a']):
    with pytest.raises(ValueError, match=r'--config\.a has no value'):
      cli.split(argv)


# Every option, of whatever the sections can be.


def _choices():
  """(page, door, what is given) for every choice that decides about options."""
  yield 'sample', 'sample', {}
  yield 'imdb_pairs', 'pairs', {}
  yield 'imdb_pairs', 'pairs', {'reward.name': 'vader'}
  for page, table in (('dpo', 'dpo'), ('kto', 'kto')):
    for loss in method_options.LOSSES[table]:
      yield page, 'train', {**ASKED, 'method.loss': loss}
  ranking = {'method.name': 'ranking', 'method.num_answers': '3'}
  yield 'dpo', 'train', {**ASKED, **ranking}
  yield 'sft', 'train', ASKED
  yield 'quickstart', 'train', {}
  for option in ('reference=drifting', 'divergence=alpha'):
    name, value = option.split('=')
    yield 'dpo', 'train', {**ASKED, f'method.{name}': value}
  for section, table in (
    ('optimizer', options.optimizers.OPTIMIZERS),
    ('schedule', options.optimizers.SCHEDULES),
    ('samples.reward', {'vader': None}),
  ):
    for name in table:
      yield 'dpo', 'train', {**ASKED, f'{section}.name': name}
  for name, make in options.sources.SOURCES.items():
    needed = [
      n
      for n, o in option_types.of(make).items()
      if o.default is option_types.REQUIRED
    ]
    texts = {f'data.{n}': 'x' for n in needed if n != 'split'}
    splits = {'train_data.split': 'train', 'eval_data.split': 'test'}
    splits = splits if 'split' in needed else {}
    given = {'model.uri': 'm', 'data.source': name, **texts, **splits}
    yield 'dpo', 'train', given


def _text(value):
  return value if isinstance(value, str) else repr(value)


CHOICES = list(_choices())


@pytest.mark.parametrize(
  ('name', 'door', 'given'),
  CHOICES,
  ids=[f'{n}-{"-".join([*g.values()][2:])}' for n, _, g in CHOICES],
)
def test_every_option_can_be_set(name, door, given):
  """To what it is anyway, alone and all together; and all of them are read."""
  before, _ = _apply(name, given, door)
  every = {
    path: value
    for path, value in options.every(DOORS[door], before)
    if value is not option_types.REQUIRED and not isinstance(value, dict)
    # Where a page has no `data`, that is given for both of its sections.
    if path[0] in before or path[0] != 'data'
  }
  assert len(every) > 10
  # Of a choice in one section, only that section is tried again.
  sections = {n.split('.')[0] for n in given.keys() - ASKED.keys()}
  alone = {p: x for p, x in every.items() if p[0] in sections or not sections}
  for path, value in alone.items():
    text = _text(value)
    config, dropped = _apply(name, given | {'.'.join(path): text}, door)
    assert _at(config, path) == value
    assert type(_at(config, path)) is type(value)
    assert not [x for x in dropped if x.startswith(('train_', 'eval_'))]
  # Splits of `data` would be those of both sections.
  together = {
    '.'.join(path): _text(value)
    for path, value in every.items()
    if path[0] not in ('train_data', 'eval_data')
    and path != ('data', 'split')
    # A section, which is None as a whole.
    and not any(path == other[: len(path)] != other for other in every)
  }
  config, _ = _apply(name, together | given, door)
  check = {'sample': sample.check, 'pairs': pairs.check}
  registry.bind(check.get(door, settings.check), config, 'the config')()


def test_signatures_are_what_a_page_can_have():
  """Options that no page has, of each section."""
  given = {
    'step.max_grad_norm': '1',
    'optimizer.b1': '0.5',
    'optimizer.no_decay': "('norm',)",
    'optimizer.name': 'adamw',
    'mesh.devices': '1',
    'train_batches.share_prompt': 'False',
    'method.plus.preferred_ft.weight': '1',
    'data.columns.prompt': '1',
    'eval_data.held_out_fraction': '0.5',
    'train_data.held_out_fraction': '0.5',
    'samples.reward': 'vader',
    'distributed.timeout': '4',
    'data.chat': 'True',
  }
  config, dropped = _apply('dpo', ASKED | given)
  assert not dropped
  for name, text in given.items():
    assert str(_at(config, name.split('.'))) == text or text == '1'
  assert config['method']['plus'] == {'preferred_ft': {'weight': 1}}
  assert config['data']['columns']['prompt'] == '1'
  assert config['step']['max_grad_norm'] == 1.0
  assert _check(config).train_data['held_out_fraction'] == 0.5


# Other choices.


@pytest.mark.parametrize(
  ('page', 'given', 'dropped', 'kept'),
  [
    (
      'dpo',
      {'method.loss': 'ipo'},
      ['method.label_smoothing'],
      {'method.beta': 0.1, 'method.reference': 'cached'},
    ),
    (
      'dpo',
      {'method.loss': 'hinge'},
      ['method.label_smoothing'],
      {'method.beta': 0.1},
    ),
    (
      'dpo',
      {'method.loss': 'simpo'},
      ['method.label_smoothing', 'method.reference'],
      {'method.beta': 0.1},
    ),
    (
      'dpo',
      {'method.loss': 'orpo', 'method.beta': '0.2'},
      ['method.label_smoothing', 'method.reference'],
      {'method.beta': 0.2},
    ),
    # 0.0 is the plain loss; EXO's is 0.001.
    (
      'dpo',
      {'method.loss': 'exo'},
      ['method.label_smoothing'],
      {'method.reference': 'cached'},
    ),
    (
      'dpo',
      {'method.loss': 'exo', 'method.label_smoothing': '0.1'},
      [],
      {'method.label_smoothing': 0.1},
    ),
    (
      'dpo',
      {'method.name': 'kto', 'data.kind': 'kto'},
      ['method.label_smoothing', 'method.loss'],
      {'method.beta': 0.1, 'method.reference': 'cached'},
    ),
    (
      'dpo',
      {'method.name': 'sft', 'data.kind': 'sft'},
      [
        'method.beta',
        'method.label_smoothing',
        'method.loss',
        'method.reference',
      ],
      {'method.name': 'sft'},
    ),
    ('dpo', {'optimizer.name': 'adamw'}, [], {'optimizer.name': 'adamw'}),
    (
      'sft',
      {'optimizer.name': 'lion', 'schedule.name': 'constant'},
      ['schedule.final'],
      {'optimizer.weight_decay': 0.0, 'schedule.peak': 1e-5},
    ),
    (
      'objectives:tr_dpo',
      {'method.reference': 'cached'},
      ['method.reference_options.every', 'method.reference_options.mix'],
      {'method.beta': 0.1},
    ),
    (
      'objectives:alpha_divergence',
      {'method.divergence': 'forward_kl'},
      ['method.divergence_options.alpha'],
      {'method.beta': 0.1},
    ),
    # The page's path is where the old source's data are.
    (
      'hh_dpo',
      {'data.source': 'shp'},
      ['data.path'],
      {'data.max_length': 512, 'train_data.split': 'train'},
    ),
    ('dpo', {'data.source': 'parquet'}, [], {'data.kind': 'pairs'}),
    ('dpo', {'samples': 'None'}, [], {'samples': None}),
    (
      'dpo',
      {'samples.reward': 'vader', 'seed': '3'},
      [],
      {'samples.reward': 'vader', 'seed': 3},
    ),
  ],
)
def test_another_choice_keeps_what_it_takes(page, given, dropped, kept):
  asked = ASKED if page in ('dpo', 'sft') else {'model.uri': 'm'}
  config, found = _apply(page, asked | given)
  assert sorted(found) == dropped
  for name in dropped:
    *path, last = name.split('.')
    assert last not in _at(config, path)
  for name, value in kept.items():
    assert _at(config, name.split('.')) == value
  _check(config)


@pytest.mark.parametrize(
  ('section', 'given'),
  [
    (dict(optimizer=dict(name='adamw', b2=0.95)), {'optimizer.name': 'lion'}),
    (
      dict(method=dict(name='dpo', beta=0.1, label_smoothing=0.2)),
      {'method.loss': 'robust'},
    ),
    (
      dict(eval_data=dict(held_out_fraction=0.2)),
      {'data.source': 'stack_exchange'},
    ),
  ],
)
def test_a_value_that_was_no_default_is_kept(section, given):
  """Also where the default of the option is another one now."""
  page = pages.load('dpo').config.to_dict() | section
  config, dropped = overrides.apply(page, ASKED | given, options.TRAINING)
  ((name, values),) = section.items()
  for option in values:
    if option != 'name':
      assert config[name][option] == values[option]
      assert f'{name}.{option}' not in dropped


def test_a_reference_without_use_is_refused_with_its_reason():
  config, _ = _apply('dpo', ASKED | {'method.reference': 'none'})
  with pytest.raises(
    ValueError, match=r"compares with a reference, but .* 'none'"
  ):
    _check(config)


def test_what_is_dropped_is_said_in_one_line(door, caplog):
  door('train', *PAGE, '--config.method.loss=simpo')
  (line,) = [x for x in caplog.messages if 'of the page' in x]
  assert line.endswith(': method.reference, method.label_smoothing.')
  caplog.clear()
  door('train', *PAGE, '--config.method.beta=2')
  assert not [x for x in caplog.messages if 'of the page' in x]


def test_another_source_leaves_no_options_of_the_old_one():
  given = {'data.source': 'jsonl', 'data.path': 'd.jsonl'}
  config, dropped = _apply('quickstart', {'model.uri': 'm', **given})
  assert {x.rpartition('.')[2] for x in dropped} >= {'min_gap', 'num_groups'}
  run = _check(config)
  assert run.train_data['split'] == 'train' and 'min_gap' not in run.train_data


def test_data_is_what_both_sections_are_given():
  config, _ = _apply('quickstart', {'data.max_words': '9'})
  run = _check(config)
  assert run.train_data['max_words'] == run.eval_data['max_words'] == 9


def test_mixtures_have_parts_with_options_of_their_own():
  page = config_dict.ConfigDict(
    dict(
      data=dict(
        source='mixture',
        max_length=48,
        parts=dict(hh=dict(source='hh', split='train', weight=1.0)),
      )
    )
  )
  given = {
    'data.parts.hh.subsets': 'a,b',
    'data.parts.own.source': 'jsonl',
    'data.parts.own.path': 'x.jsonl',
    'data.parts.own.weight': '2',
  }
  config, _ = overrides.apply(page, given, options.TRAINING)
  assert config['data']['parts'] == {
    'hh': dict(source='hh', split='train', weight=1.0, subsets=('a', 'b')),
    'own': dict(source='jsonl', path='x.jsonl', weight=2.0),
  }
  with pytest.raises(
    ValueError, match=r"'data\.parts\.hh\.pat'.*parts\.hh\.path"
  ):
    overrides.apply(page, {'data.parts.hh.pat': 'x'}, options.TRAINING)


def test_the_page_stays_as_it_is():
  page = pages.load('dpo').config
  before = page.to_dict()
  given = {'data.columns.prompt': 'x', 'method.loss': 'simpo', 'steps': '3'}
  overrides.apply(page, given, options.TRAINING)
  assert page.to_dict() == before


def test_a_value_that_two_options_share_is_set_for_both():
  ref = config_dict.FieldReference(3)
  page = config_dict.ConfigDict(dict(seed=ref, log_every=ref, steps=None))
  config, _ = overrides.apply(page, {'seed': '5'}, options.TRAINING)
  assert config == dict(seed=5, log_every=5, steps=None)


# Mistakes.

PAGE = [
  '--config=configs/dpo.py',
  '--config.model.uri=nowhere',
  '--config.data.path=d.jsonl',
]


@pytest.fixture
def door(monkeypatch, capsys, tmp_path):
  """door(module, *arguments) -> (exit code or message, stdout)."""
  defined = set(flags.FLAGS)

  def call(module, *arguments):
    monkeypatch.setattr(sys, 'argv', [module, *arguments])
    try:
      with pytest.raises(SystemExit) as ended:
        runpy.run_module(
          f'dpo_jax.{module}', run_name='__main__', alter_sys=True
        )
    finally:
      for name in set(flags.FLAGS) - defined - set(HELP):
        delattr(flags.FLAGS, name)
    return ended.value.code, capsys.readouterr().out

  return call


HELP = ('help', 'helpshort', 'helpfull', 'helpxml', '?', 'only_check_args')
assert app  # Its own flags are defined before those of an entry point.


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('train', 'Which page? Give --config'),
    ('train --config=dop', "No page 'dop'. Did you mean 'dpo'?"),
    ('train --config=configs/nope.py', "No page 'configs/nope.py'."),
    ('train --config=dpo:tinny', "Unknown variant 'tinny'; known: 'tiny'"),
    ('train --config=sample', "Unknown option of the config 'batch_size'"),
    ('train PAGE --workdr=x', "flag --workdr. Did you mean '--workdir'"),
    ('train PAGE --lr=1', "--lr. Did you mean '--config.schedule.peak'"),
    ('train PAGE --steps=1', "--steps. Did you mean '--config.steps'"),
    ('train PAGE word', 'Flags alone are expected; given: word'),
    ('train PAGE --config.lr=1', "Did you mean 'schedule.peak'?"),
    (
      'train PAGE --config.batch_size=8',
      "'batch_size'. Did you mean 'train_batches.batch_size'?",
    ),
    (
      'train PAGE --config.schedule.warmup_ratio=0.1',
      "Did you mean 'schedule.warmup_steps'? Known in schedule: name, peak",
    ),
    (
      'train PAGE --config.method.gamma=1',
      'It is an option with method.loss=simpo.',
    ),
    ('train PAGE --config.metod.beta=1', "Did you mean 'method.beta'?"),
    ('train PAGE --config.samplez=1', "Unknown option 'samplez'."),
    (
      'train PAGE --config.method.loss=ippo',
      "Unknown method.loss 'ippo'. Did you mean 'ipo'?",
    ),
    (
      'train PAGE --config.optimizer.name=adam',
      "Unknown optimizer.name 'adam'. Did you mean 'adamw'?",
    ),
    (
      'train PAGE --config.method.reference_options.every=3',
      'method.reference_options takes none beside the other values.',
    ),
    ('train PAGE --config.seed.x=3', "Unknown option 'seed.x'."),
    ('train PAGE --config.steps=x', '--config.steps=x: expected an integer'),
    ('train PAGE --config.method.beta=x', 'expected a number'),
    ('train PAGE --config.mesh=3', '--config.mesh=3: mesh is a section'),
    ('train PAGE --config.steps', '--config.steps has no value'),
    (
      'train PAGE --config.data=x --config.data.chat=True',
      '--config.data and --config.data.path are both given',
    ),
    ('train PAGE', "No file or directory 'nowhere'"),
    (
      'train PAGE --config.model.uri Qwen/Qwen2.5-0.5B',
      'A repository of the Hugging Face hub is hf://Qwen/Qwen2.5-0.5B.',
    ),
    ('evaluate', "Give a run's directory, or --config and --model"),
    ('evaluate --config.seed=3', '--config.seed is an option of a page'),
    ('evaluate PAGE --config.lr=1', "Did you mean 'schedule.peak'?"),
    ('evaluate --modl=x', "Did you mean '--model'?"),
    ('evaluate PAGE --model=Qwen/Q', 'hub is hf://Qwen/Q.'),
    ('sample --config.temprature=1 x', "Did you mean 'temperature'?"),
    ('sample --promts=x', "Did you mean '--prompts'?"),
    ('sample --config.model.uri=Qwen/Q x', 'hub is hf://Qwen/Q.'),
    ('sample x', 'Which model? Set --config.model.uri to'),
    ('sample MODEL --best_of=2 x', '--best_of needs a reward to choose by'),
    ('sample BEST --best_of=0 x', '--best_of is 0; expected 1'),
    ('sample BEST --config.num_samples=2 x', 'but num_samples is 2'),
    ('sample BEST --config.temperature=0 x', 'but temperature is 0'),
    ('sample BEST --curve=x.json x', '--curve needs two prompts'),
    ('sample BEST --curve=x.png x y', 'expected a name that ends in .json'),
    ('sample BEST --curve=. x y', "--curve '.' is a directory"),
    ('sample MODEL --curve=x.json x y', '--curve needs --best_of'),
    ('sample BEST --chat', '--chat takes no --out, --best_of'),
    ('sample MODEL --config.reward=vader --chat', '--chat takes no --out'),
    ('sample MODEL --config.reward=vadr x', "Did you mean 'vader'?"),
    (
      'sample MODEL --config.reward.name=function '
      '--config.reward.path=nowhere:f x',
      "No module named 'nowhere'",
    ),
    (
      'pairs --config=imdb_pairs --config.reward.name=vader '
      '--config.reward.label=x',
      "'reward.label'. It is an option with reward.name=classifier.",
    ),
    ('pairs --config=imdb_pairs --config.num_prompt=2', "'num_prompts'"),
    ('pairs --wrkdir=x', "Did you mean '--workdir'?"),
    (
      'pairs --config=imdb_pairs --config.reward=vader '
      '--config.model.uri=Qwen/Q',
      'hub is hf://Qwen/Q.',
    ),
    ('plan --config=dpo', '--topology'),
    ('plan --topolgy=cpu:1', "Did you mean '--topology'?"),
    ('plan PAGE --topology=cpu:1 --config.lr=1', "'schedule.peak'?"),
    ('export x --ot=y', "Did you mean '--out'?"),
    ('export Qwen/Q --out=y', 'hub is hf://Qwen/Q.'),
  ],
)
def test_a_mistake_is_one_line(arguments, message, door, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'd.jsonl').write_text('')
  best = 'MODEL --config.reward=vader --best_of=4'
  arguments = arguments.replace('BEST', best)
  arguments = arguments.replace('MODEL', '--config.model.uri=m')
  words = arguments.replace('PAGE', ' '.join(PAGE)).split()
  said, out = door(*words)
  assert message in said and '\n' not in said and not out


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config():\n  return 1 / 0\n', 'line 2: ZeroDivisionError: '),
    ('x = (\n', 'line 1: SyntaxError: '),
    ('import nothing_like_it\n', 'line 1: ModuleNotFoundError: '),
    ('x = 1\n', 'it has no function get_config'),
    ('def get_config():\n  return 3\n', 'returned 3, which is no config'),
  ],
)
def test_a_page_that_fails_is_one_line(text, message, door, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  said, _ = door('train', f'--config={path}')
  assert said.startswith(f'--config {path}') and message in said
  assert '\n' not in said
  if text.endswith('3\n'):
    assert 'no variants' in door('train', f'--config={path}:x')[0]


def test_only_errors_that_explain_themselves_are_one_line():
  with (
    pytest.raises(SystemExit, match=r'^Unknown thing'),
    cli.one_line_errors(),
  ):
    registry.lookup({'a': 1}, 'b', 'thing')
  with pytest.raises(SystemExit, match='nowhere'), cli.one_line_errors():
    pathlib.Path('nowhere/at/all').read_text()
  for fail, kind in (
    (lambda: int('x'), ValueError),
    (lambda: {}['x'], KeyError),
  ):
    with pytest.raises(kind), cli.one_line_errors():
      fail()


def test_help_shows_the_values_of_the_run(door):
  """Also of a page whose data sections share no `data`."""
  code, out = door('train', '--config=quickstart', '--help')
  assert not code
  shown = dict(x.strip().split(' = ') for x in out.splitlines() if ' = ' in x)
  page = pages.load('quickstart').config.to_dict()
  for part in ('train_data', 'eval_data'):
    for name, value in page[part].items():
      assert shown[f'{part}.{name}'] == repr(value)
  assert shown['samples.reward'] == "'vader'"
  assert not [x for x in shown if x.startswith(('data.', 'samples.reward.'))]


def test_help_lists_the_options_of_a_page(door):
  code, out = door('train', *PAGE, '--help', '--config.optimizer.name=adamw')
  assert not code
  lines = [line.strip() for line in out.splitlines()]
  assert {'method.beta = 0.1', 'optimizer.b1 = 0.9', 'steps = None'} <= {*lines}
  for module in ('train', 'evaluate', 'sample', 'pairs', 'plan', 'export'):
    _, out = door(module, '--help')
    assert f'python -m dpo_jax.{module}' in out
    assert ('--config' in out) == (module != 'export')


def _command(folder, *arguments, **env):
  kept = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
    [sys.executable, '-m', 'dpo_jax.train', *arguments],
    cwd=folder,
    env=kept | {'PYTHONPATH': str(ROOT)} | env,
    capture_output=True,
    text=True,
  )


def test_pages_are_found_from_anywhere(tmp_path):
  """Those of dpo_jax, and copies; the error that ends it is the user's."""
  text = (ROOT / 'configs' / 'sft.py').read_text()
  (tmp_path / 'mine.py').write_text(text)
  for page in ('configs/sft.py', 'mine.py'):
    done = _command(
      tmp_path, f'--config={page}', '--config.model.uri=no', *PAGE[2:]
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("No file or directory 'no'")
    assert 'Traceback' not in done.stderr
    assert (
      tmp_path / 'runs' / page.split('/')[-1].removesuffix('.py')
    ).is_dir()


def test_a_file_in_the_way_of_a_name_is_the_page(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert pages.find('dpo') == ROOT / 'configs' / 'dpo.py'
  (tmp_path / 'configs').mkdir()
  own = tmp_path / 'configs' / 'dpo.py'
  own.write_text('def get_config():\n  return dict(seed=1)\n')
  assert pages.load('configs/dpo.py') == pages.Page('dpo', {'seed': 1})
  assert pages.find('dpo') == ROOT / 'configs' / 'dpo.py'
  assert json.dumps(sorted(pages.shipped())).count('"dpo"') == 1
