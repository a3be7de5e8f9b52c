"""`Tokenizer`: a vocabulary, its special tokens and its chat templates."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dpo_jax import assets
from dpo_jax.tokenizers import chat_template
from dpo_jax.tokenizers import vocabulary as vocabulary_lib

Ids = list[int]
# `save` refuses a folder with any of these: a stale one would be read too.
_FILES = (
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
)
# A placeholder answer, which shows what a template writes after one.
PROBE = 'Quartz glyph'
_CONVERSATION = [
  {'role': 'system', 'content': 'Be kind.'},
  {'role': 'user', 'content': 'Hello'},
  {'role': 'assistant', 'content': PROBE},
]


class EndOfTurn(NamedTuple):
  """The text that a template writes after the last answer.

  tail: all of it. token, token_id: its first control token; '' and None if
  there
  is none. before: the text before that token.
  """

  tail: str
  before: str
  token: str
  token_id: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
  """Text <-> ids.

  bos_id: None if the vocabulary has none.
  add_bos: whether the checkpoint's own tokenizer starts every text with BOS;
  `encode` never does.
  special_tokens: 'bos_token' etc. -> text, as chat templates refer to them.
  stops: other tokens than `eos_id` with which the checkpoint ends a text.
  named_templates: chat templates for other purposes ('tool_use', ...), by name.
  """

  vocabulary: vocabulary_lib.Vocabulary = dataclasses.field(repr=False)
  eos_id: int
  bos_id: int | None
  add_bos: bool
  chat_template: str | None
  special_tokens: dict[str, str]
  stops: tuple[int, ...] = ()
  named_templates: dict[str, str] = dataclasses.field(default_factory=dict)

  def encode(self, text: str) -> Ids:
    """The checkpoint's own ids of a whole text, without BOS or EOS.

    Special tokens in the text are recognised. A vocabulary with a dummy prefix
    (Llama 2) adds it. A byte that the vocabulary lacks is dropped, as by the
    checkpoint's tokenizer (SmolLM2's lacks six of the control characters).
    ValueError for half a surrogate pair, which is not valid UTF-8.
    """
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
    """`encode` of each text, on all cores."""
    return self.vocabulary.encode_whole(texts)

  def encode_parts(
    self, texts: Sequence[str], *, start: bool, literal: bool = False
  ) -> list[Ids]:
    """Ids of texts that are parts of longer texts.

    However a text is cut, the joined ids of its parts decode to it, up to the
    vocabulary's normalisation. The ids of an uncut text are those of `encode`,
    except that no white space is removed and that no two texts have the same
    ids (with a dummy prefix, 'a' and ' a').

    start: whether each text is a start (after nothing or BOS) or continues
    another text.
    literal: control tokens (`control`) spelled in a text are not recognised, so
    that user text cannot end or forge a turn: no id is one of theirs. Other
    added tokens, such as Qwen's <think>, are still recognised.
    """
    vocabulary = self.vocabulary
    encode = vocabulary.encode_text if literal else vocabulary.encode
    return encode(texts, start=start)

  def encode_written(
    self, text: str, spans: Sequence[tuple[int, int]], *, start: bool
  ) -> Ids:
    """Ids of a text in which the tokens at `spans` are plain characters.

    spans: [begin, end) of matches of `control_pattern`, in order. Each is
    encoded by itself, as `transformers` does with sanitize_control_tokens.
    ValueError for a token that cannot be distinguished from its characters.
    """
    ids, at = [], 0
    for begin, end in (*spans, (len(text), len(text))):
      for part, literal in ((text[at:begin], False), (text[begin:end], True)):
        begins = self.starts_after(ids) if ids else start
        more = self.encode_parts([part], start=begins, literal=literal)[0]
        if literal and self.vocabulary.token_to_id(part) in more:
          # Added tokens that are not special are recognised in any text.
          (more,) = self.encode_parts([part[:1]], start=begins)
          more += self.encode_parts([part[1:]], start=False, literal=True)[0]
        ids += more
      at = end
    return ids

  @functools.cached_property
  def control_pattern(self) -> re.Pattern:
    """Matches the tokens that could end or begin a turn, longest first.

    Special tokens, and other added tokens that the template writes around
    messages of the system and the user, or after an answer.
    """
    text = self.end_of_turn.tail if self.end_of_turn else ''
    parts = (_CONVERSATION[:2], _CONVERSATION[1:2])
    for messages in parts if self.chat_template else ():
      with contextlib.suppress(ValueError):
        text += self.apply_chat(messages, add_generation_prompt=True)
    added = self.vocabulary.added.values()
    tokens = {t for t in added if t.strip() and t in text}
    longest = sorted(tokens | self.vocabulary.control, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest)) or '(?!)')

  def template_variables(self, *, tools: bool = False) -> frozenset[str]:
    """The names of the variables that the template (for tools) reads.

    ValueError without a template.
    """
    return chat_template.variables(self._template({'tools': tools}))

  def starts_after(self, ids: Ids) -> bool:
    """Whether the text after `ids` is encoded like the start of a text."""
    return self.vocabulary.starts_after(ids)

  def decode(self, ids: Sequence[int], *, start: bool = True) -> str:
    """The text of `ids`, special tokens included.

    start: whether they are the start of a text, whose dummy prefix is removed.
    Inverts `encode` up to the vocabulary's normalisation (NFC for Qwen2, none
    for GPT-2, SmolLM2 and Llama 3). Bytes that are not valid UTF-8, such as
    half a character, become U+FFFD.
    """
    return self.vocabulary.decode(list(ids), start=start)

  @property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return self.vocabulary.vocab_size

  @property
  def control(self) -> frozenset[str]:
    """The texts of the vocabulary's control tokens and special tokens."""
    return self.vocabulary.control

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of everything that determines the ids of a record."""
    parts = [self.vocabulary.description()]
    parts += [self.eos_id, self.bos_id, self.add_bos]
    parts += [self.chat_template, sorted(self.named_templates.items())]
    parts += [sorted(self.special_tokens.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def apply_chat(
    self,
    messages: list[dict[str, Any]],
    /,
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
  ) -> str:
    """The text of a conversation in the checkpoint's chat template.

    messages: {'role', 'content'} dicts. variables: of the template (tools,
    date_string, ...; strftime_now, by default the present time); they may
    override its special tokens. With tools the template named 'tool_use' is
    used, if there is one. ValueError without a template, and if it rejects the
    conversation.
    """
    values = self._template_values(messages, variables, add_generation_prompt)
    return chat_template.render(self._template(variables), values)

  def mark_answers(
    self, messages: list[dict[str, Any]], /, **variables: Any
  ) -> tuple[str, list[tuple[int, int]]] | None:
    """The text of `apply_chat`, and the spans of the assistant's text in it.

    Spans are [begin, end) in characters, from the template's {% generation %}
    blocks; None for a template without these.
    """
    values = self._template_values(messages, variables, False)
    return chat_template.render_marked(self._template(variables), values)

  @functools.cached_property
  def end_of_turn(self) -> EndOfTurn | None:
    """The text that the template writes after the last answer.

    None without a template; also if the template changes the answer's text, or
    rejects a user's and an assistant's message, both with and without a system
    message before them.
    """
    if self.chat_template is None:
      return None
    tail = self._after_probe(_CONVERSATION[1:])
    tail = self._after_probe(_CONVERSATION) if tail is None else tail
    if tail is None:
      return None
    (ids,) = self.encode_parts([tail], start=False)
    added = self.vocabulary.added
    for i in ids:
      if added.get(i, '').strip():
        before = tail[: tail.index(added[i])]
        return EndOfTurn(tail, before, added[i], i)
    return EndOfTurn(tail, '', '', None)

  def _after_probe(self, messages: list[dict[str, Any]]) -> str | None:
    try:
      _, found, tail = self.apply_chat(messages).rpartition(PROBE)
    except ValueError:
      return None
    return tail if found else None

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """All tokens that end an answer, EOS first."""
    turn = self.end_of_turn
    ids = [self.eos_id, *self.stops]
    if turn is not None and turn.token_id is not None:
      ids.append(turn.token_id)
    return tuple(dict.fromkeys(ids))

  @property
  def eos_token_id(self) -> int | tuple[int, ...]:
    """`stop_ids` as in a model's config files: an int if there is only one."""
    return self.eos_id if len(self.stop_ids) == 1 else self.stop_ids

  @property
  def pad_id(self) -> int | None:
    """The checkpoint's padding token, if it has one."""
    text = self.special_tokens.get('pad_token')
    return None if text is None else self.vocabulary.token_to_id(text)

  def with_distinct_pad(self) -> 'Tokenizer':
    """The tokenizer, with another pad token if it has none or a stop token.

    The other is 'unk_token', 'bos_token' or a further control token; where all
    of these are stop tokens, the tokenizer has no pad token.
    """
    names = ('pad_token', 'unk_token', 'bos_token')
    texts = [*map(self.special_tokens.get, names), *sorted(self.control)]
    ids = [self.vocabulary.token_to_id(text) for text in texts if text]
    free = [i for i in ids if i is not None and i not in self.stop_ids]
    tokens = {k: v for k, v in self.special_tokens.items() if k != 'pad_token'}
    if free:
      tokens['pad_token'] = self.vocabulary.id_to_token(free[0])
    return dataclasses.replace(self, special_tokens=tokens)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the vocabulary and tokenizer_config.json into `folder`.

    `tokenizers.load` then reads an equal tokenizer; so does `transformers`,
    except for some texts if the vocabulary is sentencepiece (see
    `SentencepieceVocabulary.config`). The folder may hold weights;
    FileExistsError if it holds files of a tokenizer.
    """
    folder = pathlib.Path(folder)
    there = [name for name in _FILES if (folder / name).exists()]
    if there:
      raise FileExistsError(f'{str(folder)!r} has {", ".join(there)} already.')
    config = {
      **self.vocabulary.config,
      'clean_up_tokenization_spaces': False,
      'add_bos_token': self.add_bos,
      'eos_token': self.vocabulary.id_to_token(self.eos_id),
      **self.special_tokens,
    }
    if self.chat_template is not None:
      # Not in chat_template.jinja, where '\r\n' would be read as '\n'.
      config['chat_template'] = self.chat_template
    if self.named_templates:
      named = {'default': self.chat_template} | self.named_templates
      config['chat_template'] = [
        {'name': name, 'template': template}
        for name, template in named.items()
        if template is not None
      ]
    with assets.atomic_path(folder / self.vocabulary.file) as temp:
      self.vocabulary.save(temp)
    with assets.atomic_path(folder / 'tokenizer_config.json') as temp:
      temp.write_text(json.dumps(config, indent=2) + '\n', 'utf-8')

  def _template_values(
    self, messages: list, variables: dict[str, Any], add_generation_prompt: bool
  ) -> dict[str, Any]:
    return {
      **self.special_tokens,
      **variables,
      'messages': messages,
      'add_generation_prompt': add_generation_prompt,
    }

  def _template(self, variables: dict[str, Any]) -> str:
    """The template that `variables` ask for; ValueError if there is none."""
    template = self.chat_template
    if variables.get('tools'):
      template = self.named_templates.get('tool_use', template)
    if template is None:
      named = ', '.join(self.named_templates)
      raise ValueError(
        'This tokenizer has no chat template'
        f'{f" but those named {named}" if named else ""}: its records need '
        "plain text prompts, or a 'chat_template' in its tokenizer_config.json."
      )
    return template
