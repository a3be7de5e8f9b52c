"""A vocabulary with what a training run needs to know of it."""

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
from dpo_jax.tokenizers import chat
from dpo_jax.tokenizers import vocabulary as vocabulary_lib

Ids = list[int]
# A stale one beside those that `save` writes would change what they say.
_FILES = (
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
)
# Stands for an answer, to see what a template writes after one.
PROBE = 'Quartz glyph'
_TALK = [
  {'role': 'system', 'content': 'Be kind.'},
  {'role': 'user', 'content': 'Hello'},
  {'role': 'assistant', 'content': PROBE},
]


class EndOfTurn(NamedTuple):
  """What a template writes after the last answer.

  tail: all of it; token: its first control token, '' and None if it has none;
  before: what comes before that.
  """

  tail: str
  before: str
  token: str
  token_id: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
  """Text <-> ids.

  bos_id: None if the vocabulary has none. add_bos: whether the checkpoint's own
  tokenizer starts every text with it; `encode` never does.
  special_tokens: 'bos_token' etc. -> text, as chat templates refer to them.
  stops: tokens that end what the checkpoint says, beside `eos_id`.
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
    """Ids of a whole text; nothing is added, special tokens are recognised.

    They are those of the checkpoint's own tokenizer. With a vocabulary that
    puts a space before every text (Llama 2), so do they. A byte that the
    vocabulary lacks is dropped, as by the checkpoint's tokenizer (SmolLM2's has
    no token for six of the control characters). ValueError for text with half
    of a surrogate pair, which no UTF-8 can hold.
    """
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
    """`encode` of each text, on all cores."""
    return self.vocabulary.encode_whole(texts)

  def encode_parts(
    self, texts: Sequence[str], *, start: bool, literal: bool = False
  ) -> list[Ids]:
    """Ids of texts that can be joined.

    start: whether each begins where a text does, after nothing or BOS, or goes
    on from another. The joined ids of a text cut anywhere decode to the text,
    up to the vocabulary's own normalisation; where nothing is cut, no white
    space is removed and no two texts have one form (a dummy prefix before 'a'
    and before ' a'), they are those of `encode`.

    literal: the control tokens that a text spells (`control`) are not
    recognised, so that what someone wrote can't end or forge a turn: no id is
    one of them. Other added tokens, such as Qwen's <think>, still are. A text
    that spells none has the same ids.
    """
    vocabulary = self.vocabulary
    encode = vocabulary.encode_text if literal else vocabulary.encode
    return encode(texts, start=start)

  def encode_written(
    self, text: str, spans: Sequence[tuple[int, int]], *, start: bool
  ) -> Ids:
    """Ids of a text in which the tokens at `spans` are characters.

    spans: [begin, end) of tokens of `control_pattern`, in order. Each is
    encoded by itself, as `transformers` does with sanitize_control_tokens.
    ValueError for one that its characters can't be told from.
    """
    ids, at = [], 0
    for begin, end in (*spans, (len(text), len(text))):
      for part, literal in ((text[at:begin], False), (text[begin:end], True)):
        begins = self.starts_after(ids) if ids else start
        more = self.encode_parts([part], start=begins, literal=literal)[0]
        if literal and self.vocabulary.token_to_id(part) in more:
          # Added tokens that are not special are found in any text.
          (more,) = self.encode_parts([part[:1]], start=begins)
          more += self.encode_parts([part[1:]], start=False, literal=True)[0]
        ids += more
      at = end
    return ids

  @functools.cached_property
  def control_pattern(self) -> re.Pattern:
    """Finds the tokens that could end or begin a turn, longest first.

    Special tokens, and other added ones that the template puts around what a
    system and a user say, or after an answer.
    """
    shown = self.end_of_turn.tail if self.end_of_turn else ''
    for talk in (_TALK[:2], _TALK[1:2]) if self.chat_template else ():
      with contextlib.suppress(ValueError):
        shown += self.apply_chat(talk, add_generation_prompt=True)
    added = self.vocabulary.added.values()
    tokens = {t for t in added if t.strip() and t in shown}
    longest = sorted(tokens | self.vocabulary.control, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest)) or '(?!)')

  def template_variables(self, *, tools: bool = False) -> frozenset[str]:
    """The names of what the template reads, or that for tools; ValueError."""
    return chat.variables(self._template({'tools': tools}))

  def starts_after(self, ids: Ids) -> bool:
    """Whether what goes on from `ids` is encoded as the start of a text."""
    return self.vocabulary.starts_after(ids)

  def decode(self, ids: Sequence[int], *, start: bool = True) -> str:
    """The text of `ids`, special tokens included.

    start: whether they begin where a text does, so that a dummy prefix goes.
    Inverts `encode` up to the vocabulary's own normalisation (NFC for Qwen2,
    none for GPT-2, SmolLM2 and Llama 3). Bytes that are no UTF-8, such as half
    a character, become U+FFFD.
    """
    return self.vocabulary.decode(list(ids), start=start)

  @property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return self.vocabulary.vocab_size

  @property
  def control(self) -> frozenset[str]:
    """Texts of the tokens that the vocabulary calls control or special."""
    return self.vocabulary.control

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of all that decides which ids a record becomes."""
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
    """The text of a conversation by the checkpoint's template.

    Messages are {'role', 'content'} dicts; `variables` are the template's own
    (tools, date_string, ...; strftime_now, without which they are told the
    present time), and may replace its special tokens. With tools the template
    named 'tool_use' is used, if there is one. ValueError without a template,
    and where it refuses the conversation.
    """
    asked = {'add_generation_prompt': add_generation_prompt}
    values = {**self.special_tokens, **variables, 'messages': messages, **asked}
    return chat.render(self._template(variables), values)

  def mark_answers(
    self, messages: list[dict[str, Any]], /, **variables: Any
  ) -> tuple[str, list[tuple[int, int]]] | None:
    """`apply_chat`, and where the assistant's words lie in it.

    As [begin, end) in characters, by the template's {% generation %} blocks;
    None for a template without these.
    """
    asked = {'add_generation_prompt': False}
    values = {**self.special_tokens, **variables, 'messages': messages, **asked}
    return chat.render_marked(self._template(variables), values)

  @functools.cached_property
  def end_of_turn(self) -> EndOfTurn | None:
    """How the template ends the last answer; None without a template.

    None too for a template that does not show one as it is given, or refuses a
    user and an assistant, with and without a system message before them.
    """
    if self.chat_template is None:
      return None
    tail = self._after_probe(_TALK[1:])
    tail = self._after_probe(_TALK) if tail is None else tail
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
      _, shown, tail = self.apply_chat(messages).rpartition(PROBE)
    except ValueError:
      return None
    return tail if shown else None

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """All tokens that end an answer: EOS first, then what else does."""
    turn = self.end_of_turn
    ids = [self.eos_id, *self.stops]
    if turn is not None and turn.token_id is not None:
      ids.append(turn.token_id)
    return tuple(dict.fromkeys(ids))

  @property
  def eos_token_id(self) -> int | tuple[int, ...]:
    """`stop_ids` as a model's config files have them: one by itself."""
    return self.eos_id if len(self.stop_ids) == 1 else self.stop_ids

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the vocabulary and tokenizer_config.json into `folder`.

    `tokenizers.load` reads what is there as this tokenizer, and so does
    `transformers`, but for some texts with a sentencepiece vocabulary: see
    `SentencepieceVocabulary.config`. Weights may lie beside it.
    FileExistsError if files of a tokenizer do.
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
      # In a file of its own, '\r\n' would be read as '\n'.
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

  def _template(self, variables: dict[str, Any]) -> str:
    template = self.chat_template
    if variables.get('tools'):
      template = self.named_templates.get('tool_use', template)
    if template is None:
      named = ', '.join(self.named_templates)
      raise ValueError(
        'This tokenizer has no chat template'
        f'{f" but those named {named}" if named else ""}: records of it need '
        "plain text prompts, or a 'chat_template' in its tokenizer_config.json."
      )
    return template
