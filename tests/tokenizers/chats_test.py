"""Published chat templates against `transformers`, and where answers end.

The templates are those that TRL is installed with; none is kept here.
"""

import json
import pathlib

import pytest
import tokenizers as hf
import transformers
import trl
from tokenizers import decoders, models, pre_tokenizers

from dpo_jax import tokenizers
from dpo_jax.chat import errors, rendering
from dpo_jax.data import records, token_rules, tokenise
from dpo_jax.tokenizers import gguf_pre_tokenizers

TEMPLATES = pathlib.Path(trl.__file__).parent / 'chat_templates'
SPECIAL = [
  *('<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|eot_id|>', '<|end|>'),
  *('<|start_header_id|>', '<|end_header_id|>', '<start_of_turn>'),
  *('<end_of_turn>', '<|user|>', '<|assistant|>', '<|system|>', '<｜User｜>'),
  *(
    '<｜end▁of▁sentence｜>',
    '<｜Assistant｜>',
    '<|END_OF_TURN_TOKEN|>',
    '<|START_OF_TURN_TOKEN|>',
  ),
  *('<|CHATBOT_TOKEN|>', '<|USER_TOKEN|>', '<think>', '</think>'),
]
SYSTEM = {'role': 'system', 'content': 'Be brief & "kind".'}
TALK = [
  {'role': 'user', 'content': 'Hi, what is\n\n2 + 2?'},
  {'role': 'assistant', 'content': 'It is 4.'},
  {'role': 'user', 'content': '  And <b>é</b>? '},
  {'role': 'assistant', 'content': 'A letter,\nin bold.'},
  {'role': 'user', 'content': 'Bye'},
]
TOOLS = [
  {
    'type': 'function',
    'function': {
      'name': 'look',
      'description': 'Looks "it" up.',
      'parameters': {
        'type': 'object',
        'properties': {'what': {'type': 'string', 'description': 'é'}},
        'required': ['what'],
      },
    },
  }
]
# Template -> what ends a turn, of those that know it by one token.
ENDS = {
  'qwen2_5': '<|im_end|>',
  'qwen3': '<|im_end|>',
  'qwen3_instruct_2507': '<|im_end|>',
  'lfm2': '<|im_end|>',
  'llama3': '<|eot_id|>',
  'llama3_1': '<|eot_id|>',
  'llama3_2': '<|eot_id|>',
  'gemma': '<end_of_turn>',
  'gemma3': '<end_of_turn>',
  'phi3': '<|end|>',
  'cohere': '<|END_OF_TURN_TOKEN|>',
}
NO_SYSTEM = ('gemma',)


@pytest.fixture(scope='module')
def pair_of(tmp_path_factory):
  """Template's name -> (ours, that of `transformers`)."""
  found = {}

  def pair(name):
    if name not in found:
      folder = tmp_path_factory.mktemp('chat')
      alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
      vocab = {c: i for i, c in enumerate([*alphabet, 'Ċ' * 2, 'in'])}
      merges = [('Ċ', 'Ċ'), ('i', 'n')]
      backend = hf.Tokenizer(models.BPE(vocab=vocab, merges=merges))
      # GPT-2's rule cuts line breaks otherwise where an answer follows.
      backend.pre_tokenizer = gguf_pre_tokenizers.find('llama3').split()
      backend.decoder = decoders.ByteLevel()
      backend.add_special_tokens(SPECIAL)
      backend.save(str(folder / 'tokenizer.json'))
      config = {'bos_token': '<s>', 'eos_token': '</s>'}
      config['tokenizer_class'] = 'PreTrainedTokenizerFast'
      text = json.dumps(config)
      (folder / 'tokenizer_config.json').write_text(text)
      template = (TEMPLATES / f'{name}.jinja').read_text('utf-8')
      (folder / 'chat_template.jinja').write_text(template, 'utf-8')
      peer = transformers.AutoTokenizer.from_pretrained(folder)
      found[name] = tokenizers.load(folder), peer
    return found[name]

  return pair


@pytest.mark.parametrize('name', [*ENDS, 'deepseekv3'])
def test_renderings_are_those_of_transformers(pair_of, name):
  ours, peer = pair_of(name)
  talks = [TALK, TALK[:1], TALK[:4]]
  if name not in NO_SYSTEM:
    talks.append([SYSTEM, *TALK])
  for talk in talks:
    for prompt in (False, True):
      for tools in (None, TOOLS):
        text = ours.apply_chat(talk, add_generation_prompt=prompt, tools=tools)
        options = dict(add_generation_prompt=prompt, tools=tools)
        assert text == peer.apply_chat_template(talk, tokenize=False, **options)
        found = peer.apply_chat_template(talk, **options)
        assert ours.encode(text) == found['input_ids']


@pytest.mark.parametrize('name', ENDS)
def test_what_ends_a_turn(pair_of, name):
  """The end of a turn follows the content and is a record's last token."""
  ours, _ = pair_of(name)
  end = ours.vocabulary.token_to_id(ENDS[name])
  assert ours.end_of_turn.token_id == end
  assert ours.stop_ids == tuple(dict.fromkeys([ours.eos_id, end]))
  render = rendering.Render(ours)
  no = {'role': 'assistant', 'content': 'No.'}
  row = {'prompt': TALK[:3], 'chosen': TALK[3:4], 'rejected': [no]}
  record = records.parse(row, kind='pairs', render=render)
  prompt = ours.apply_chat(TALK[:3], add_generation_prompt=True)
  assert record.prompt == prompt
  rules = token_rules.resolve(ours, max_length=999, truncation='drop')
  tokens, report = tokenise.tokenise([record], ours, rules)
  assert not report.dropped
  chosen, _ = tokens.completions(0)
  whole = ours.apply_chat(TALK[:4])
  kept = ours.decode([*tokens.prompt(0), *chosen]).removeprefix('<s>')
  assert whole.removeprefix('<s>').startswith(kept)
  assert kept.endswith(f'in bold.{ENDS[name]}')
  assert chosen.tolist().count(end) == 1 and chosen[-1] == end
  # The ids are those of the whole text.
  ids = ours.encode(whole)
  begin = len(tokens.prompt(0)) - (tokens.prompt(0)[0] not in ids[:1])
  assert ids[begin : begin + len(chosen)] == chosen.tolist()


MASKED = ['qwen2_5', 'llama3', 'gemma', 'gemma3', 'phi3', 'lfm2', 'qwen3']
MASKED += ['cohere', 'qwen3_instruct_2507']


def _tokens(ours, talk):
  """(ids, mask of scored ids) of a conversation's record."""
  render = rendering.Render(ours, 'all')
  record = records.parse({'messages': talk}, kind='sft', render=render)
  rules = token_rules.resolve(
    ours, max_length=999, truncation='drop', bos='never'
  )
  tokens, report = tokenise.tokenise([record], ours, rules)
  assert not report.dropped, report.table()
  prompt, (answers,) = tokens.prompt(0), tokens.completions(0)
  places = tokens.scored_places(0, 0)
  mask = [0] * (len(prompt) + len(answers))
  for i in places:
    mask[len(prompt) + i] = 1
  return [*prompt.tolist(), *answers.tolist()], mask


@pytest.mark.parametrize('name', MASKED)
def test_masks_of_marked_templates_are_those_of_transformers(pair_of, name):
  ours, peer = pair_of(f'{name}_training')
  found = peer.apply_chat_template(
    TALK[:4], return_assistant_tokens_mask=True, return_dict=True
  )
  ids, mask = _tokens(ours, TALK[:4])
  assert ids == found['input_ids'][: len(ids)]
  assert mask == found['assistant_masks'][: len(ids)] and sum(mask) > 0
  # What is left out follows the end of the last turn.
  assert ids[-1] == ours.end_of_turn.token_id
  rest = found['input_ids'][len(ids) :]
  after = len(ours.end_of_turn.before + ours.end_of_turn.token)
  assert ours.decode(rest) == ours.end_of_turn.tail[after:]


@pytest.mark.parametrize(
  'name', ['qwen2_5', 'llama3', 'gemma', 'gemma3', 'phi3', 'lfm2', 'cohere']
)
def test_masks_of_other_templates_hold_answers_and_their_ends(pair_of, name):
  ours, peer = pair_of(name)
  ids, mask = _tokens(ours, TALK[:4])
  whole = peer.apply_chat_template(TALK[:4])['input_ids']
  assert ids == whole[: len(ids)]
  runs, last = [], 0
  for i, scored in zip(ids, mask):
    if scored and not last:
      runs.append([])
    if scored:
      runs[-1].append(i)
    last = scored
  end = ENDS[name]
  said = [f'{m["content"]}{end}' for m in TALK[1:4:2]]
  assert [ours.decode(run) for run in runs] == said


def test_a_template_that_rewrites_answers_is_refused_by_name(pair_of):
  """Qwen3's template removes thoughts from all but the last answer."""
  ours, _ = pair_of('qwen3')
  render = rendering.Render(ours, 'all')
  with pytest.raises(errors.RowError, match=r'message 2, .*two ways') as e:
    records.parse({'messages': TALK[:4]}, kind='sft', render=render)
  assert e.value.reason == 'chat_template'
  row = {'messages': TALK[:2]}
  record = records.parse(row, kind='sft', render=render)
  assert record.completions == ('<think>\n\n</think>\n\nIt is 4.',)


def test_a_template_that_prompts_for_other_words_is_refused(pair_of):
  """DeepSeek's template opens a thought that a plain answer does not close."""
  ours, _ = pair_of('deepseekv3')
  assert ours.end_of_turn.token == '<｜end▁of▁sentence｜>'
  render = rendering.Render(ours)
  with pytest.raises(errors.RowError, match="the prompt ends with '<think>"):
    records.parse({'messages': TALK[:2]}, kind='sft', render=render)


def test_a_refusal_is_reported_with_its_row(pair_of):
  ours, _ = pair_of('gemma')
  with pytest.raises(errors.RowError, match='must alternate user/assistant'):
    row = {'prompt': [TALK[1], TALK[0]], 'completion': 'x'}
    records.parse(row, kind='sft', render=rendering.Render(ours))


def test_named_templates(tmp_path, pair_of):
  ours, _ = pair_of('llama3')
  ours.save(tmp_path)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  folder = tmp_path / 'additional_chat_templates'
  folder.mkdir()
  (folder / 'tool_use.jinja').write_text('{{ tools | length }} tools')
  t = tokenizers.load(tmp_path)
  assert t.apply_chat(TALK, tools=TOOLS) == '1 tools'
  assert t.apply_chat(TALK) == ours.apply_chat(TALK)
  assert t.fingerprint != ours.fingerprint
  t.save(tmp_path / 'again')
  assert tokenizers.load(tmp_path / 'again').fingerprint == t.fingerprint
  del config['chat_template']
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='but those named tool_use'):
    tokenizers.load(tmp_path).apply_chat(TALK)
