"""Every chat template that TRL has, on conversations of all kinds.

A row is text as `transformers` has it, with all that its messages say, or it is
refused with a reason. Never is a part of it left out.
"""

import collections
import json

import pytest

from dpo_jax.chat import errors, rendering
from dpo_jax.data import records
from tests.chat import conversations_test as talks

pair_of = talks.pair_of
NAMES = sorted(path.stem for path in talks.TEMPLATES.glob('*.jinja'))

ASK = {'role': 'user', 'content': 'Will it rain?'}
GOOD = {'role': 'assistant', 'content': 'It is dry.'}
TOOL = {
  'type': 'function',
  'function': {
    'name': 'get_rain',
    'description': 'Looks.',
    'parameters': {
      'type': 'object',
      'properties': {'town': {'type': 'string', 'description': 'Where.'}},
      'required': ['town'],
    },
  },
}


def call(content, arguments):
  function = {'name': 'get_rain', 'arguments': arguments}
  one = {'id': 'abcdefghi', 'type': 'function', 'function': function}
  return {'role': 'assistant', 'content': content, 'tool_calls': [one]}


ANSWERED = {
  'role': 'tool',
  'name': 'get_rain',
  'tool_call_id': 'abcdefghi',
  'content': 'Clear skies.',
}
OBJECT, TEXT = {'town': 'Oslo'}, '{"town": "Oslo"}'
TALKS = {
  'plain': [ASK, GOOD],
  'system': [{'role': 'system', 'content': 'Be brief.'}, ASK, GOOD],
  'developer': [{'role': 'developer', 'content': 'Be brief.'}, ASK, GOOD],
  'human': [{'role': 'human', 'content': 'Will it rain?'}, GOOD],
  'turns': [ASK, GOOD, {'role': 'user', 'content': 'And Bern?'}, GOOD],
  'late system': [ASK, GOOD, {'role': 'system', 'content': 'Hm.'}, ASK, GOOD],
  'called': [ASK, call('', OBJECT), ANSWERED, GOOD],
  'called, null': [ASK, call(None, OBJECT), ANSWERED, GOOD],
  'called in words': [ASK, call('Let me look.', OBJECT), ANSWERED, GOOD],
  'called with text': [ASK, call(None, TEXT), ANSWERED, GOOD],
  'calls': [ASK, call(None, OBJECT)],
  'calls with text': [ASK, call('', TEXT)],
  'calls in words': [ASK, call('Let me look.', OBJECT)],
  'no calls': [ASK, GOOD | {'tool_calls': []}],
  'thinks': [ASK, GOOD | {'reasoning': 'Carry nothing.'}],
}


def parse(tokenizer, talk, tools):
  row = {'messages': talk, 'tools': tools}
  render = rendering.Render(tokenizer)
  return records.parse(row, kind='sft', render=render)


def theirs(peer, talk, tools, **options):
  """The text of `transformers`; None where the template refuses."""
  talk = json.loads(
    json.dumps(talk).replace(json.dumps(TEXT), json.dumps(OBJECT))
  )
  try:
    return peer.apply_chat_template(
      talk, tools=tools, tokenize=False, **options
    )
  except Exception:  # Whatever a template raises.
    return None


@pytest.mark.parametrize('tools', [None, [TOOL]], ids=['', 'tools'])
@pytest.mark.parametrize('name', NAMES)
def test_a_conversation_is_whole_or_refused(pair_of, name, tools):
  ours, peer = pair_of(name)
  reasons = collections.Counter()
  for kind, talk in TALKS.items():
    try:
      record = parse(ours, talk, tools)
    except errors.RowError as error:
      reasons[error.reason] += 1
      # Templates for images take no plain text; some ask for thoughts.
      refused = 'message_left_out', 'thought_expected', 'chat_template'
      assert kind != 'plain' or error.reason in refused
      continue
    whole = record.prompt + record.completions[0]
    for message in talk:
      assert (message['content'] or '') in whole, kind
    for function in (
      c['function'] for m in talk for c in m.get('tool_calls') or []
    ):
      written = 'get_rain' in whole and 'Oslo' in whole
      # In a context it may be left out, and is then reported.
      unread = 'messages.tool_calls' in record.unread
      assert written or (unread and talk[-1] is GOOD), (kind, function)
    if 'reasoning' in talk[-1]:
      assert 'Carry nothing.' in record.completions[0]
    asked = theirs(peer, talk[:-1], tools, add_generation_prompt=True)
    # Where it refuses a message without content, ours tries null.
    if asked is not None:
      assert record.prompt == asked, kind
  if not any(word in name for word in ('idefics', 'llava', 'smolvlm')):
    assert sum(reasons.values()) < len(TALKS), reasons
