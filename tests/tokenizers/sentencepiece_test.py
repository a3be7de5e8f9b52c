"""Sentencepiece models against the library, and against `transformers`."""

import io
import json
import os

import gguf
import hypothesis
import pytest
import sentencepiece
import transformers
from hypothesis import strategies as st

from dpo_jax import assets, tokenizers
from dpo_jax.data import records, token_rules, tokenise

_CORPUS = [
  'The plot is thin but the acting is great; 12 of 123 walked out.',
  'I did not like this film at all: it was dull, loud and far too long.',
  'What a wonderful, warm and funny story! Touché - go and see it.',
  'the the the   the film, film film\tand the story (the plot)',
] * 8
_IDENTITY = dict(
  normalization_rule_name='identity', remove_extra_whitespaces=False
)
# Those that other programs trained: Llama 2 and Mistral, Gemma, T5.
MODELS = {
  'llama': dict(model_type='bpe', byte_fallback=True, **_IDENTITY),
  'gemma': dict(
    model_type='bpe',
    byte_fallback=True,
    add_dummy_prefix=False,
    user_defined_symbols=['<start_of_turn>', '▁▁', '\n\n', 'two▁words'],
    **_IDENTITY,
  ),
  't5': dict(model_type='unigram', user_defined_symbols=['<x>']),
  'unigram bytes': dict(model_type='unigram', byte_fallback=True, **_IDENTITY),
  'no bos': dict(model_type='bpe', bos_id=-1, **_IDENTITY),
}
# Those that keep every text as it is.
EXACT = ('llama', 'gemma', 'unigram bytes')


def train(*, vocab_size=420, **options):
  """A model's bytes; few pieces, so that white space and bytes matter."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_CORPUS),
    model_writer=model,
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    control_symbols=['[INST]'],
    minloglevel=2,
    **options,
  )
  return model.getvalue()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """name -> a folder with nothing but a tokenizer.model."""
  found = {}
  for name, options in MODELS.items():
    found[name] = tmp_path_factory.mktemp('model')
    size = 420 if 'byte_fallback' in options else 120
    data = train(vocab_size=size, **options)
    (found[name] / 'tokenizer.model').write_bytes(data)
  return found


@pytest.fixture(scope='module')
def pairs(folders):
  """name -> (ours, the library's)."""
  return {
    name: (
      tokenizers.load(folder),
      sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model')),
    )
    for name, folder in folders.items()
  }


_pieces = [' ', '  ', '\n\n', 'the', ' the film', 'é', '漢', '🎬', 'two words']
_pieces += ['<start_of_turn>', '<x>', 'ﬁ', '\t', '\x00', '½', '<0x41>', '12']
texts = st.lists(
  st.sampled_from(_pieces) | st.text(max_size=4), max_size=8
).map(''.join)
_relaxed = hypothesis.settings(max_examples=150, deadline=None)


@pytest.mark.parametrize('name', MODELS)
@_relaxed
@hypothesis.given(text=texts)
@hypothesis.example(text=' the  film\n\n the ')
def test_ids_of_whole_texts_are_the_librarys(pairs, name, text):
  ours, library = pairs[name]
  ids = library.encode(text)
  hypothesis.assume(not any(map(text.__contains__, ('<s>', '</s>', '<unk>'))))
  assert ours.encode(text) == ids
  assert ours.encode_batch(['', text]) == [[], ids]
  if name in EXACT:
    assert ours.encode_parts([text], start=True) == [ids]
    # Of bytes that are no UTF-8 the library makes more marks.
    assert ours.decode(ids) == library.decode(ids)
  assert ours.vocab_size == library.vocab_size()


@pytest.mark.parametrize('name', EXACT)
@_relaxed
@hypothesis.given(
  parts=st.lists(
    (texts | st.sampled_from(['<s>', '</s>', '[INST]'])).filter(
      lambda text: '▁' not in text  # It is a space to all of them.
    ),
    max_size=4,
  ),
)
@hypothesis.example(parts=['the', ' the', '', '  ', 'film '])
@hypothesis.example(parts=['', ' a', '</s><s>', ' b'])
def test_joined_ids_stand_for_the_joined_text(pairs, name, parts):
  ours, _ = pairs[name]
  text = ''.join(parts)
  for cuts in ([text], parts):
    ids = []
    for piece in cuts:
      ids += ours.encode_parts([piece], start=ours.starts_after(ids))[0]
    assert ours.decode(ids) == text
    assert ours.decode([ours.bos_id, *ids]) == '<s>' + text


@pytest.mark.parametrize('name', ['t5', 'no bos'])
@_relaxed
@hypothesis.given(
  words=st.lists(
    st.sampled_from(['the', 'film', 'plot', ' ', 'story,']), max_size=6
  ),
  cut=st.integers(0, 20),
)
def test_white_space_where_texts_meet_is_kept(pairs, name, words, cut):
  """The library would remove white space from the ends of both parts."""
  ours, _ = pairs[name]
  text = ''.join(words)
  (ids,) = ours.encode_parts([text[:cut]], start=True)
  (more,) = ours.encode_parts([text[cut:]], start=ours.starts_after(ids))
  assert ours.decode(ids + more) == text


def test_the_prefix_is_at_the_start_and_after_bos_alone(pairs):
  ours, library = pairs['llama']
  word = library.encode('film')
  assert library.id_to_piece(word[0]).startswith('▁')
  (bare,) = ours.encode_parts(['film'], start=False)
  assert bare != word and ours.decode(bare) == 'film'
  bos, inst = ours.bos_id, library.piece_to_id('[INST]')
  assert ours.encode('<s>film[INST]film') == [bos, *word, inst, *bare]
  assert ours.encode_parts(['</s><s>film'], start=False) == [
    [ours.eos_id, bos, *word]
  ]
  # A model without one has the same ids anywhere.
  ours, library = pairs['gemma']
  assert ours.encode_parts(['film'], start=False) == [library.encode('film')]


@pytest.mark.parametrize('name', [*EXACT, 't5'])
def test_prompt_and_completions_of_a_record_join(pairs, name):
  ours, library = pairs[name]
  answers = (' the film ', 'story', '  plot')
  rows = [(prompt, answers) for prompt in ('', 'the film', 'film ', ' the')]
  items = [records.Record(p, a, ((0, 1), (1, 2))) for p, a in rows]
  rules = token_rules.resolve(ours, max_length=99, truncation='drop')
  tokens, report = tokenise.tokenise(items, ours, rules)
  assert not report.dropped
  for i, (prompt, _) in enumerate(rows):
    for answer, ids in zip(answers, tokens.completions(i)):
      joined = [*tokens.prompt(i), *ids]
      assert ours.decode(joined) == f'<s>{prompt}{answer}</s>'
      # Where words are not cut, the ids are those of the whole text.
      if answer.startswith(' ') and name == 'llama' and prompt == 'the film':
        assert joined[1:-1] == library.encode(prompt + answer)


def test_control_symbols_are_recognised_and_normal_text_is_not(pairs):
  for ours, library in pairs.values():
    # '<' and what follows as the library has it, and the symbol as one token.
    inst = library.piece_to_id('[INST]')
    assert inst not in library.encode('[INST]')
    assert ours.encode('[INST]') == [inst] == ours.encode('[INST]')
    assert inst not in ours.encode('[INST')
    assert ours.vocabulary.id_to_token(inst) == '[INST]'


def test_special_tokens_of_a_bare_model(pairs):
  ours, _ = pairs['llama']
  assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)
  assert ours.special_tokens['bos_token'] == '<s>'
  bare, _ = pairs['no bos']
  assert (bare.bos_id, bare.add_bos) == (None, False)


def _more(folders, tmp_path, name='llama', **config):
  model = (folders[name] / 'tokenizer.model').read_bytes()
  (tmp_path / 'tokenizer.model').write_bytes(model)
  size = tokenizers.load(tmp_path / 'tokenizer.model').vocab_size
  added = {str(size): {'content': '<|im_end|>', 'special': True}}
  config = {'added_tokens_decoder': added} | config
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  (tmp_path / 'added_tokens.json').write_text(json.dumps({'<x>': size + 1}))
  return size, tokenizers.load(tmp_path)


def test_a_folder_adds_tokens_and_says_which_are_special(folders, tmp_path):
  size, t = _more(
    folders, tmp_path, eos_token='<|im_end|>', add_bos_token=False
  )
  assert (t.eos_id, t.add_bos, t.vocab_size) == (size, False, size + 2)
  text = 'the film<|im_end|>\n<x> a'
  ids = t.encode(text)
  assert [i for i in ids if i >= size] == [size, size + 1]
  assert t.decode(ids) == text
  assert t.fingerprint != tokenizers.load(folders['llama']).fingerprint


@pytest.mark.parametrize('name', ['llama', 'gemma'])
def test_saved_models_are_read_as_they_were(folders, tmp_path, name):
  template = '{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}'
  (tmp_path / 'a').mkdir()
  size, t = _more(folders, tmp_path / 'a', name, chat_template=template)
  t.save(tmp_path / 'b')
  again = tokenizers.load(tmp_path / 'b')
  assert again.fingerprint == t.fingerprint
  assert again.end_of_turn == ('<|im_end|>\n', '', '<|im_end|>', size)
  with pytest.raises(FileExistsError, match=r'tokenizer\.model'):
    t.save(tmp_path / 'b')
  peer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'b')
  for text in ('the film', ' Touché 漢 12 of  123\n', 'a<|im_end|>'):
    ids = t.encode(text)
    # Its Metaspace takes ' a' for 'a'.
    if text[0] != ' ' or name == 'gemma':
      assert peer(text, add_special_tokens=False)['input_ids'] == ids
    assert peer(text)['input_ids'][0] == t.bos_id
  _check_what_peers_read(t, peer, prefix=name == 'llama')


def _check_what_peers_read(t, peer, *, prefix):
  """BOS, EOS and <unk> in a text, as documented in `config`."""

  def read(text):
    ids = peer(text, add_special_tokens=False)['input_ids']
    return t.encode(text), ids

  for text in ('a film</s> b', 'a[INST]b [INST]', '[INST] a'):
    ours, theirs = read(text)
    assert ours == theirs == peer(text)['input_ids'][1:]
  ours, theirs = read('<s>the film')
  assert (ours == theirs) != prefix
  assert theirs == [t.bos_id, *t.encode_parts(['the film'], start=False)[0]]
  ours, theirs = read('a<unk>b')
  assert ours != theirs and theirs.count(t.vocabulary.token_to_id('<unk>')) == 1


@pytest.mark.parametrize('share', [0, 0.2, 0.5, 0.9])
def test_models_cut_short_are_named(folders, tmp_path, share):
  data = (folders['llama'] / 'tokenizer.model').read_bytes()
  (tmp_path / 'tokenizer.model').write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match=r'tokenizer\.model.*sentencepiece'):
    tokenizers.load(tmp_path)


def test_white_space_at_the_end_of_pieces_is_refused(tmp_path):
  data = train(model_type='bpe', treat_whitespace_as_suffix=True, vocab_size=99)
  (tmp_path / 'x.model').write_bytes(data)
  with pytest.raises(ValueError, match='treat_whitespace_as_suffix'):
    tokenizers.load(tmp_path / 'x.model')


# The same vocabularies inside GGUF files.


def _gguf(path, data, *, prefix):
  model = sentencepiece.SentencePieceProcessor(model_proto=data)
  ids = range(model.vocab_size())
  kinds = [
    2 if model.is_unknown(i)
    else 3 if model.is_control(i)
    else 6 if model.is_byte(i)
    else 4 if model.id_to_piece(i) in MODELS['gemma']['user_defined_symbols']
    else 1
    for i in ids
  ]  # fmt: skip
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('llama')
  pieces = map(model.id_to_piece, ids)
  # As converters write user-defined symbols.
  writer.add_token_list(
    [p.replace('▁', ' ') if k == 4 else p for p, k in zip(pieces, kinds)]
  )
  writer.add_token_scores([model.get_score(i) for i in ids])
  writer.add_token_types(kinds)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_unk_token_id(0)
  writer.add_eot_token_id(3)
  writer.add_add_space_prefix(prefix)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope='module')
def of_gguf(folders, tmp_path_factory):
  """name -> (that of the GGUF file, that of the model)."""
  found = {}
  for name in ('llama', 'gemma'):
    path = tmp_path_factory.mktemp('gguf') / 'x.gguf'
    data = (folders[name] / 'tokenizer.model').read_bytes()
    _gguf(path, data, prefix=name == 'llama')
    found[name] = tokenizers.load(path), tokenizers.load(folders[name])
  return found


@pytest.mark.parametrize('name', ['llama', 'gemma'])
@_relaxed
@hypothesis.given(text=texts | st.just(' <s>the [INST]\n\n  </s> two words'))
def test_gguf_files_hold_the_same_vocabulary(of_gguf, name, text):
  ours, model = of_gguf[name]
  assert ours.encode(text) == model.encode(text)
  for start in (False, True):
    (ids,) = ours.encode_parts([text], start=start)
    assert [ids] == model.encode_parts([text], start=start)
    assert ours.decode(ids, start=start) == model.decode(ids, start=start)
  assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)
  assert ours.stop_ids == (2, 3)


# Gemma 3's own file.


@pytest.mark.gemma
@pytest.mark.slow
@pytest.mark.skipif(
  os.environ.get('DPO_JAX_GEMMA') != '1',
  reason='DPO_JAX_GEMMA=1 agrees to the terms of Gemma and fetches 240 MB',
)
def test_gemma_equals_transformers(movie_file):
  path = assets.resolve(assets.GEMMA3_270M)
  ours = tokenizers.load(path)
  peer = transformers.AutoTokenizer.from_pretrained(
    path.parent, gguf_file=path.name
  )
  lines = movie_file.read_text('utf-8', errors='replace').split('\n')
  lines = [line.split('\t')[-1].strip() for line in lines][:2000]
  lines += ['  x', 'a\n\n\tb   c', '<start_of_turn>user\nhi<end_of_turn>\n']
  lines += [
    '<table><td>12</td> \n',
    '漢字 é e\u0301 🎬👍🏽',
    '\x00\x01\u200b½ﬁ',
  ]
  ids = ours.encode_batch(lines)
  assert ids == peer(lines, add_special_tokens=False)['input_ids']
  assert list(map(ours.decode, ids)) == lines
  assert (ours.add_bos, ours.bos_id, ours.eos_id) == (True, 2, 1)
  assert ours.vocab_size == len(peer)
