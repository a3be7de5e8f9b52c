"""Byte-level BPE as its papers describe it, slow and without dependencies.

Radford et al. 2019 (GPT-2): text is cut by a regular expression, the UTF-8
bytes of a piece are spelled in a printable alphabet, and the pair of symbols
that was merged first in training is merged first. Sennrich et al. 2016 for the
merging. With `digits`, every numeral is a piece of its own before that cut.
"""

import functools
import itertools
import re
import sys
import unicodedata


@functools.cache
def _class(*majors):
  """A regular expression class of all characters of these categories."""
  members = [
    c
    for c in range(sys.maxunicode + 1)
    if unicodedata.category(chr(c))[0] in majors
  ]
  ranges, start = [], members[0]
  for a, b in zip(members, [*members[1:], None]):
    if b != a + 1:
      ranges.append(f'\\U{start:08x}-\\U{a:08x}')
      start = b
  return ''.join(ranges)


@functools.cache
def _gpt2_pattern():
  # Unicode's White_Space; Python's \s also has the separators 1C to 1F.
  space = r'\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000'
  letter, number = _class('L'), _class('N')
  return re.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{number}]+"
    rf'| ?[^{space}{letter}{number}]+|[{space}]+(?![^{space}])|[{space}]+'
  )


def _alphabet():
  """Byte -> printable character: itself, or the next unused from U+0100."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {
    b: chr(256 + i) for i, b in enumerate(rest)
  }


class BruteBpe:
  def __init__(self, tokens, merges, specials, *, digits):
    self._ids = {t: i for i, t in enumerate(tokens)}
    self._ranks = {tuple(m.split(' ')): i for i, m in enumerate(merges)}
    self._specials = set(specials)
    self._special = re.compile(
      '(' + '|'.join(map(re.escape, specials)) + ')' if specials else '(?!)'
    )
    self._digits = digits
    self._spell = _alphabet()
    self._piece = functools.cache(self._merge)

  def encode(self, text):
    ids = []
    for part in self._special.split(text):
      if part in self._specials:
        ids.append(self._ids[part])
        continue
      runs = [part]
      if self._digits:
        runs = re.split(f'([{_class("N")}])', part)
      for run in runs:
        for piece in _gpt2_pattern().findall(run):
          ids += self._piece(piece)
    return ids

  def _merge(self, piece):
    spelled = [self._spell[b] for b in piece.encode()]
    word = [c for c in spelled if c in self._ids]  # The others are dropped.
    while len(word) > 1:
      pairs = list(itertools.pairwise(word))
      best = min(pairs, key=lambda p: self._ranks.get(p, sys.maxsize))
      if best not in self._ranks:
        break
      i = 0
      while i < len(word) - 1:
        if (word[i], word[i + 1]) == best:
          word[i : i + 2] = [word[i] + word[i + 1]]
        i += 1
    return [self._ids[w] for w in word]
