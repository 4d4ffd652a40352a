"""Where text may be cut without cutting what a reader sees as one character.

The rules are those of Unicode's grapheme clusters (UAX #29), made a little coarser where the exact tables are not in the standard
library: nothing here ever allows a cut inside a cluster, a few allowed cuts are missed.
"""

from __future__ import annotations

import unicodedata

MAX_CLUSTER = 32
"""A longer cluster is cut: nobody can hold a stream back with endless combining marks."""

_JOINER = "\u200d"
_EXTENDING_LETTERS = frozenset("\u0e33\u0eb3\uff9e\uff9f")
"""Letters that belong to the one before them: Thai and Lao AM, halfwidth voiced sound marks."""
_LEADING_LETTERS = frozenset(
    "\u0d4e\U000111c2\U000111c3\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)
"""Letters that belong to the one after them."""
_VIRAMA = 9
"""Canonical combining class of the signs that bind two Indic consonants."""


def cut(text: str, end: int) -> int:
    """The largest position <= `end` where `text` may be cut, `text[0]` being the start of a cluster.

    The end of `text` itself is such a position only after a control character: anything else may still grow a combining mark.
    """
    position = end
    while position > 0 and not _breaks(text, position):
        position -= 1
        if end - position > MAX_CLUSTER:
            return end
    return position


def _breaks(text: str, position: int) -> bool:
    left = text[position - 1]
    if left < " ":
        return left != "\r" or (position < len(text) and text[position] != "\n")
    if position == len(text):
        return False
    right = text[position]
    if right < "\u0300":
        return left < "\u0600" or not _starts_cluster(left)
    if _extends(right):
        return False
    if left < "\u0300":
        return True
    if left == _JOINER or _starts_cluster(left):
        return False
    if unicodedata.category(right) == "Lo" and _bound(text, position):
        return False
    if _is_flag_letter(left) and _is_flag_letter(right):
        return _flag_letters_before(text, position) % 2 == 0
    return not _joins_hangul(left, right)


def _extends(char: str) -> bool:
    """Combining marks, variation selectors, joiners, tags, skin tones: they belong to the character before them.

    A character younger than the interpreter's Unicode may be a mark, so it counts as one.
    """
    if unicodedata.category(char) in ("Mn", "Me", "Mc", "Cn"):
        return True
    return char in "\u200c\u200d" or char in _EXTENDING_LETTERS or "\U0001f3fb" <= char <= "\U0001f3ff" or "\U000e0020" <= char <= "\U000e007f"


def _starts_cluster(char: str) -> bool:
    """Signs that belong to the character after them: number signs of Arabic and the like."""
    return (unicodedata.category(char) in ("Cf", "Cn") and char not in "\u200b\u200e\u200f\ufeff") or char in _LEADING_LETTERS


def _bound(text: str, position: int) -> bool:
    """A virama stands before `position`, with nothing but other marks in between."""
    for index in range(position - 1, max(position - MAX_CLUSTER, -1), -1):
        if unicodedata.combining(text[index]) == _VIRAMA:
            return True
        if not _extends(text[index]):
            return False
    return False


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _flag_letters_before(text: str, position: int) -> int:
    count = 0
    while position > count and _is_flag_letter(text[position - count - 1]):
        count += 1
    return count


def _joins_hangul(left: str, right: str) -> bool:
    """Jamo that make one syllable: leading consonants (L), vowels (V), trailing consonants (T), and syllables of L V or L V T."""
    kind = _hangul(left) + _hangul(right)
    return kind in ("LL", "LV", "LA", "LB", "AV", "AT", "VV", "VT", "BT", "TT")


def _hangul(char: str) -> str:
    """L, V, T for jamo; A for a syllable of L V, B for one of L V T; X for all else."""
    if "\u1100" <= char <= "\u115f" or "\ua960" <= char <= "\ua97c":
        return "L"
    if "\u1160" <= char <= "\u11a7" or "\ud7b0" <= char <= "\ud7c6":
        return "V"
    if "\u11a8" <= char <= "\u11ff" or "\ud7cb" <= char <= "\ud7fb":
        return "T"
    if "\uac00" <= char <= "\ud7a3":
        return "A" if (ord(char) - 0xAC00) % 28 == 0 else "B"
    return "X"
