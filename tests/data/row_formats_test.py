"""Rows in the formats of other projects, and the files that hold them."""

import gzip
import json

import pytest

from dpo_jax.chat import errors, rendering, row_texts
from dpo_jax.data import preferences, prompts, records
from dpo_jax.data.sources import files, row_formats, rows
from tests import templates

RENDER = rendering.Render(templates.Plain())


def parse(form, row, kind='sft'):
  _, rule = row_formats.FORMS[form]
  return records.parse(rule(row), kind=kind, render=RENDER)


# Forms.


@pytest.mark.parametrize(
  ('row', 'prompt'),
  [
    ({'instruction': 'Add.'}, 'Add.'),
    ({'instruction': 'Add.', 'input': ''}, 'Add.'),
    ({'instruction': 'Add.', 'input': None}, 'Add.'),
    ({'instruction': 'Add.', 'input': '1, 2'}, 'Add.\n1, 2'),
    ({'instruction': '', 'input': '1, 2'}, '1, 2'),
    ({'input': '1, 2'}, '1, 2'),
    (
      {'instruction': 'Add.', 'history': [['Hi', 'Yes?']]},
      '<user>Hi<assistant>Yes?<user>Add.<assistant>',
    ),
    (
      {'instruction': 'Add.', 'system': 'S', 'history': [['Hi', 'Yes?']]},
      '<system>S<user>Hi<assistant>Yes?<user>Add.<assistant>',
    ),
  ],
)
def test_alpaca(row, prompt):
  record = parse('alpaca', row | {'output': '3'})
  assert (record.prompt, record.completions) == (prompt, ('3',))
  pair = parse('alpaca', row | {'chosen': '3', 'rejected': '4'}, 'pairs')
  assert (pair.prompt, pair.completions) == (prompt, ('3', '4'))


@pytest.mark.parametrize(
  'change',
  [
    {'instruction': None},
    {'instruction': ''},
    {'instruction': 3},
    {'input': ['a']},
    {'history': 'Hi'},
    {'history': [['Hi']]},
    {'history': [['Hi', 3]]},
    {'system': 'S'},
  ],
)
def test_alpaca_that_is_unusable(change):
  row = {'instruction': 'Add.', 'output': '3'}
  with pytest.raises(errors.RowError):
    parse('alpaca', row | change)


def turn(who, text):
  return {'from': who, 'value': text}


CALL = '{"name": "rain", "arguments": {"city": "Oslo"}}'


def test_sharegpt():
  talk = [turn('system', 'S'), turn('human', 'Hi'), turn('gpt', 'Yes?')]
  record = parse('sharegpt', {'conversations': talk})
  assert record.prompt == '<system>S<user>Hi<assistant>'
  assert record.completions == ('Yes?',)
  row = {'conversations': talk[:2], 'chosen': talk[2]}
  for rejected in (turn('gpt', 'No.'), 'No.'):
    chosen = talk[2] if isinstance(rejected, dict) else 'Yes?'
    given = row | {'chosen': chosen, 'rejected': rejected}
    pair = parse('sharegpt', given, 'pairs')
    assert pair.prompt == record.prompt
    assert pair.completions == ('Yes?', 'No.')
  assert parse('sharegpt', {'conversations': json.dumps(talk)}) == record
  labelled = parse(
    'sharegpt', {'conversations': talk, 'label': False}, 'unpaired'
  )
  assert labelled.labels == (False,)


def test_sharegpt_calls_and_tools():
  tool = {'name': 'rain', 'parameters': {'type': 'object'}}
  talk = [
    turn('human', 'Rain?'),
    turn('function_call', CALL),
    turn('observation', '{"rain": true}'),
    turn('gpt', 'Yes.'),
  ]
  row = {'conversations': talk, 'tools': json.dumps([tool])}
  _, rule = row_formats.FORMS['sharegpt']
  found = rule(row)
  roles = [message['role'] for message in found['messages']]
  assert roles == ['user', 'assistant', 'tool', 'assistant']
  assert found['messages'][1]['tool_calls'] == [
    {'type': 'function', 'function': json.loads(CALL)}
  ]
  assert found['tools'] == [{'type': 'function', 'function': tool}]
  two = rule({'conversations': [turn('function_call', f'[{CALL}, {CALL}]')]})
  assert len(two['messages'][0]['tool_calls']) == 2


@pytest.mark.parametrize(
  'turns',
  [
    'Hi',
    None,
    [],
    [turn('narrator', 'Hi')],
    [turn(['human'], 'Hi')],
    [turn('human', None)],
    [{'role': 'user', 'content': 'Hi'}],
    [turn('human', 'Hi'), turn('function_call', 'rain()')],
  ],
)
def test_sharegpt_that_is_unusable(turns):
  with pytest.raises(errors.RowError):
    parse('sharegpt', {'conversations': turns})


def test_fields_that_a_form_does_not_know():
  row = {'instruction': 'Add.', 'output': '3', 'level': 2}
  assert parse('alpaca', row).unread == ('level',)
  row = {'conversations': [turn('human', 'a'), turn('gpt', 'b')], 'id': 'x'}
  assert parse('sharegpt', row).unread == ('id',)


@pytest.mark.parametrize(
  ('row', 'form'),
  [
    ({'instruction': 'a', 'output': 'b'}, 'alpaca'),
    ({'conversations': [turn('human', 'a')]}, 'sharegpt'),
  ],
)
def test_a_row_of_another_form_names_it(row, form):
  with pytest.raises(errors.RowError, match=f"form='{form}'"):
    preferences.of_row(row)


def test_fields_of_records_are_not_a_forms(tmp_path):
  values = [
    ('alpaca', {'instruction': 'I', 'output': 'O', 'prompt': 'P'}, 'prompt'),
    (
      'sharegpt',
      {
        'conversations': [turn('human', 'a'), turn('gpt', 'b')],
        'messages': [{'role': 'user', 'content': 'x'}],
      },
      'messages',
    ),
  ]
  for form, row, other in values:
    path = tmp_path / f'{form}.jsonl'
    path.write_text(json.dumps(row))
    source = row_formats.jsonl(path=str(path), kind='sft', form=form)
    (record,) = source.rows(RENDER)
    assert record.unread == (other,)
    assert record.prompt in ('I', '<user>a<assistant>')


def test_columns_of_a_form():
  rule, _ = row_formats.rule_of('alpaca', {'instruction': 'q', 'output': 'a'})
  assert rule({'q': 'Add.', 'a': '3'}) == {'completion': '3', 'prompt': 'Add.'}
  with pytest.raises(ValueError, match=r'chosne.*chosen'):
    row_formats.rule_of('alpaca', {'chosne': 'q'})
  with pytest.raises(ValueError, match='form of rows'):
    row_formats.rule_of('alpacca', None)


# Files.

VALUES = [{'prompt': f'p{i}', 'completion': ' c'} for i in range(3)]


def read(path):
  found = list(files.reader([(path.name, path)])())
  assert all(isinstance(row, rows.Row) for row in found)
  return [row.value for row in found], [row.line for row in found]


@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('lead', ['', '\ufeff', ' \n'])
@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'a.json.gz'])
def test_an_array_is_its_elements(tmp_path, indent, lead, name):
  text = lead + json.dumps(VALUES, indent=indent) + '\n'
  opener = gzip.open if name.endswith('.gz') else open
  with opener(tmp_path / name, 'wt', encoding='utf-8') as file:
    file.write(text)
  assert read(tmp_path / name) == (VALUES, [1, 2, 3])


def test_lines_of_which_the_first_is_no_object(tmp_path):
  path = tmp_path / 'a.jsonl'
  lines = ['[1, 2', *map(json.dumps, VALUES)]
  path.write_text('\n'.join(lines))
  first, *others = files.reader([('a', path)])()
  assert first.reason == 'malformed_json' and first.row == 1
  assert [row.value for row in others] == VALUES


@pytest.mark.parametrize('indent', [None, 2])
def test_an_array_that_is_cut_off(tmp_path, indent):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(VALUES, indent=indent)[:-4])
  with pytest.raises(ValueError, match='damaged or incomplete'):
    read(path)


def test_nulls_of_lines_are_absent(tmp_path):
  path = tmp_path / 'a.jsonl'
  row = {'prompt': 'p', 'completion': ' c', 'messages': None, 'label': None}
  path.write_text(json.dumps(row))
  source = row_formats.jsonl(path=str(path), kind='sft')
  (record,) = source.rows(None)
  assert record == records.parse(
    VALUES[0] | {'prompt': 'p'}, kind='sft', render=None, file=str(path), line=1
  )


# Prompts to sample from.


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.json.gz'])
def test_prompts_are_read_as_training_reads_rows(tmp_path, name):
  asked = [{'role': 'user', 'content': 'Hi', 'name': None}]
  tools = [{'name': 'rain'}]
  values = [
    {'prompt': 'a', 'completion': None},
    {'prompt': asked, 'tools': json.dumps(tools), 'system': 'S'},
    {'messages': [*asked, {'role': 'assistant', 'content': 'Yes?'}]},
    {'messages': asked},
    {'prompt': json.dumps(asked), 'chosen': 'x', 'score': 3},
  ]
  text = '\ufeff' + (
    '\n'.join(map(json.dumps, values))
    if name == 'a.jsonl'
    else json.dumps(values)
  )
  opener = gzip.open if name.endswith('.gz') else open
  with opener(tmp_path / name, 'wt', encoding='utf-8') as file:
    file.write(text)
  found = prompts.read(str(tmp_path / name))
  texts = [
    row_texts.read_prompt(p.content, p.answers, RENDER, p.around).prompt
    for p in found
  ]
  assert texts == ['a', '<system>S<user>Hi<assistant>'] + (
    ['<user>Hi<assistant>'] * 3
  )
  assert found[1].around == {'tools': json.dumps(tools), 'system': 'S'}
  assert [p.where for p in found] == [
    f'{tmp_path / name}:{i + 1}' for i in range(5)
  ]


GOOD = {'role': 'assistant', 'content': 'Yes.'}
BAD = {'role': 'assistant', 'content': 'No.'}
U = {'role': 'user', 'content': 'What?'}
S = {'role': 'system', 'content': 'S'}


@pytest.mark.parametrize(
  ('row', 'kind'),
  [
    ({'prompt': 'What?', 'chosen': [U, GOOD], 'rejected': [U, BAD]}, 'pairs'),
    ({'prompt': 'What?', 'completion': [GOOD]}, 'sft'),
    (
      {'prompt': 'What?', 'chosen': [S, U, GOOD], 'rejected': [S, U, BAD]},
      'pairs',
    ),
    ({'prompt': [U], 'messages': [GOOD, U, BAD]}, 'sft'),
    ({'prompt': '', 'messages': [U, GOOD]}, 'sft'),
    ({'chosen': [U, GOOD], 'rejected': [U, BAD]}, 'pairs'),
    (
      {
        'prompt': [U],
        'completions': [[GOOD], [BAD]],
        'preferences': [[0, 1]],
      },
      'pairs',
    ),
    ({'prompt': 'What?', 'completion': ' Yes.'}, 'sft'),
  ],
)
def test_a_prompt_is_that_of_training(row, kind):
  expected = records.parse(row, kind=kind, render=RENDER).prompt
  asked = preferences.prompt_of_row(row)
  found = row_texts.read_prompt(
    asked.prompt, asked.answers, RENDER, asked.around
  )
  assert found.prompt == expected


def test_a_prompt_is_on_one_side_whatever_its_form():
  forms = [
    {'prompt': 'What?', 'chosen': 'a', 'rejected': 'b'},
    {'prompt': [U], 'chosen': [GOOD], 'rejected': [BAD]},
    {'prompt': '', 'chosen': [U, GOOD], 'rejected': [U, BAD]},
    {'prompt': None, 'chosen': [U, BAD], 'rejected': [U, GOOD]},
    {'messages': [U, GOOD]},
    {'messages': json.dumps([U, GOOD])},
  ]
  assert {rows.prompt_of(row, 'pairs') for row in forms} == {'What?'}


def test_one_object_is_no_file_of_rows(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps({'data': VALUES}, indent=2))
  with pytest.raises(ValueError, match='is one JSON object; expected an array'):
    read(path)
  path.write_text(json.dumps(VALUES[0]))
  assert read(path) == (VALUES[:1], [1])


def test_lines_of_text_with_a_byte_order_mark(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\xef\xbb\xbfThe film\r\n\n is')
  found = prompts.read(str(path))
  assert [(p.content, p.where) for p in found] == [
    ('The film', f'{path}:1'),
    (' is', f'{path}:3'),
  ]
