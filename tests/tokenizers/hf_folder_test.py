"""Tokenizers in Hugging Face layout against `transformers`."""

import json

import hypothesis
import pytest
import tokenizers as hf
import transformers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from dpo_jax import tokenizers

_TEMPLATE = (
  '{% if tools is defined %}{{ tools | tojson }}{{ documents }}\n{% endif %}'
  '{%- for message in messages %}\n'
  '  {% if message.role == "refused" %}{{ raise_exception("no such role") }}'
  '  {% endif %}\n'
  '  {% if loop.index > 3 %}{% break %}{% endif %}\n'
  '{{ bos_token }}{{ message["role"] }}: '
  '{% generation %}{{ message["content"] }}{% endgeneration %}'
  '{{ eos_token }}\n'
  '{% endfor %}'
  '{% if add_generation_prompt %}assistant: {% endif %}'
)

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _backend(*, adds_bos=False):
  vocab = {c: i for i, c in enumerate(_ALPHABET)}
  vocab |= {'Ġt': 256, 'he': 257, 'Ġthe': 258}
  merges = [('Ġ', 't'), ('h', 'e'), ('Ġt', 'he')]
  backend = hf.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<s>', '</s>', '<turn>'])
  if adds_bos:
    backend.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', backend.token_to_id('<s>'))]
    )
  return backend


def _save(folder, *, adds_bos=False, config=None, **files):
  folder.mkdir(exist_ok=True)
  _backend(adds_bos=adds_bos).save(str(folder / 'tokenizer.json'))
  if config is None:
    config = {'bos_token': '<s>', 'eos_token': '</s>'}
  files['tokenizer_config'] = config
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return folder


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Ours and that of `transformers`, from a folder that the latter wrote."""
  folder = tmp_path_factory.mktemp('tokenizer')
  peer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=_backend(), bos_token='<s>', eos_token='</s>'
  )
  peer.chat_template = _TEMPLATE
  peer.save_pretrained(folder)
  return tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(
    folder
  )


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  st.lists(st.one_of(st.text(), st.sampled_from(['<s>', ' the'])))
)
def test_ids_equal_transformers_and_decode(pair, parts):
  ours, peer = pair
  text = ''.join(parts)
  ids = ours.encode(text)
  assert ids == peer(text, add_special_tokens=False)['input_ids']
  assert ours.encode_batch([text, '']) == [ids, []]
  assert ours.decode(ids) == text


@pytest.mark.parametrize('prompt', [False, True])
def test_chat_equals_transformers(pair, prompt):
  ours, peer = pair
  messages = [
    {'role': role, 'content': f' <{role}> & "é"\n'}
    for role in ('system', 'user', 'assistant', 'user')
  ]
  assert ours.chat_template == _TEMPLATE
  rendered = ours.apply_chat(messages, add_generation_prompt=prompt)
  assert rendered == peer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=prompt, tools=None
  )
  tools = [{'type': 'function', 'function': {'name': '<é>'}}]
  assert ours.apply_chat(messages, tools=tools) == peer.apply_chat_template(
    messages, tokenize=False, tools=tools
  )


def test_chat_refusals_are_value_errors(pair, tmp_path):
  ours, _ = pair
  with pytest.raises(ValueError, match='no such role'):
    ours.apply_chat([{'role': 'refused', 'content': ''}])
  plain = tokenizers.load(_save(tmp_path))
  with pytest.raises(ValueError, match='no chat template'):
    plain.apply_chat([])


def test_templates_are_sandboxed(tmp_path):
  config = {'eos_token': '</s>', 'bos_token': '<s>'}
  config['chat_template'] = '{{ messages.append(1) }}'
  t = tokenizers.load(_save(tmp_path / 'a', config=config))
  with pytest.raises(ValueError, match='append'):
    t.apply_chat([])
  config['chat_template'] = "{{ ''.__class__.__mro__ }}"
  t = tokenizers.load(_save(tmp_path / 'b', config=config))
  with pytest.raises(ValueError, match='unsafe'):
    t.apply_chat([])


def test_chat_template_sources(tmp_path):
  several = [
    {'name': 'tool_use', 'template': 'tools'},
    {'name': 'default', 'template': 'plain {{ strftime_now("%%") }}'},
  ]
  config = {'eos_token': '</s>', 'chat_template': several}
  folder = _save(tmp_path, config=config)
  assert tokenizers.load(folder).apply_chat([]) == 'plain %'
  (folder / 'chat_template.jinja').write_text('from the file')
  assert tokenizers.load(folder).apply_chat([]) == 'from the file'


@pytest.mark.parametrize('adds_bos', [False, True])
@pytest.mark.parametrize('flag', [None, False, True])
def test_add_bos_equals_transformers(tmp_path, adds_bos, flag):
  """tokenizer.json decides; the flag in tokenizer_config.json does not."""
  config = {'bos_token': '<s>', 'eos_token': '</s>'}
  config['tokenizer_class'] = 'PreTrainedTokenizerFast'
  if flag is not None:
    config['add_bos_token'] = flag
  folder = _save(tmp_path, adds_bos=adds_bos, config=config)
  ours = tokenizers.load(folder)
  peer = transformers.AutoTokenizer.from_pretrained(folder)
  assert ours.add_bos == (peer('a')['input_ids'][0] == ours.bos_id)
  assert len(ours.encode('a')) == 1


def test_where_eos_and_bos_are_found(tmp_path):
  plain, turn = {'eos_token': '</s>'}, {'eos_token': {'content': '<turn>'}}

  def eos(name, **files):
    t = tokenizers.load(_save(tmp_path / name, **files))
    return t.vocabulary.id_to_token(t.eos_id), t.bos_id

  assert eos('a', config=turn) == ('<turn>', None)
  assert eos('b', config={}, special_tokens_map=turn) == ('<turn>', None)
  assert eos('c', config=plain, special_tokens_map=turn)[0] == '</s>'
  ids = {'eos_token_id': [261, 260]}
  assert eos('d', config={}, generation_config=ids)[0] == '<turn>'
  (_save(tmp_path / 'e', config={}) / 'config.json').write_text(json.dumps(ids))
  assert tokenizers.load(tmp_path / 'e').eos_id == 261
  with pytest.raises(ValueError, match='which token ends a sequence'):
    eos('f', config={})
  with pytest.raises(ValueError, match=r"'<S>'.*mean '<s>'"):
    eos('g', config={'eos_token': '<S>'})


def test_tokens_that_only_the_config_has(tmp_path):
  config = {'eos_token': '</s>', 'added_tokens_decoder': {}}
  config['added_tokens_decoder']['262'] = {'content': '<new>', 'special': True}
  t = tokenizers.load(_save(tmp_path / 'a', config=config))
  assert t.encode('a<new>')[1:] == [262] and t.vocab_size == 263
  config['added_tokens_decoder']['300'] = {'content': '<far>'}
  with pytest.raises(ValueError, match=r"'<far>' the id 300.* 263"):
    tokenizers.load(_save(tmp_path / 'b', config=config))


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
  backend = _backend()
  backend.enable_truncation(2)
  backend.enable_padding(length=8)
  _save(tmp_path)
  backend.save(str(tmp_path / 'tokenizer.json'))
  assert len(tokenizers.load(tmp_path).encode('abcde')) == 5


def test_a_tokenizer_json_is_read_like_its_folder(tmp_path):
  folder = _save(tmp_path)
  of_file = tokenizers.load(folder / 'tokenizer.json')
  assert of_file.fingerprint == tokenizers.load(str(folder)).fingerprint


def test_fingerprint_changes_with_what_decides_ids(tmp_path):
  base = {'bos_token': '<s>', 'eos_token': '</s>'}
  configs = [
    base,
    base | {'eos_token': '<turn>'},
    base | {'chat_template': 'x'},
    base | {'added_tokens_decoder': {'262': {'content': 'new'}}},
  ]
  prints = [
    tokenizers.load(_save(tmp_path / str(i), config=c)).fingerprint
    for i, c in enumerate(configs)
  ]
  adds_bos = _save(tmp_path / 'bos', config=base, adds_bos=True)
  prints.append(tokenizers.load(adds_bos).fingerprint)
  assert len(set(prints)) == len(configs) + 1
  assert tokenizers.load(tmp_path / '0').fingerprint == prints[0]


def test_text_that_is_none(pair):
  with pytest.raises(ValueError, match='ud800'):
    pair[0].encode('half a pair: \ud800')


def test_errors_say_what_there_is(tmp_path):
  (tmp_path / 'vocab.json').write_text('{}')
  with pytest.raises(ValueError, match=r'no tokenizer\.json.*vocab\.json'):
    tokenizers.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'is no tokenizer\.json'):
    tokenizers.load(tmp_path)
  (tmp_path / 'tokenizer.model').write_text('')
  (tmp_path / 'vocab.txt').write_text('')
  with pytest.raises(ValueError, match=r'is no sentencepiece model'):
    tokenizers.load(tmp_path / 'tokenizer.model')
  with pytest.raises(ValueError, match=r'expected a folder'):
    tokenizers.load(tmp_path / 'vocab.txt')
