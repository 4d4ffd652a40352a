"""A text file as token ids and windows, in bounded memory."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwenbox.errors import UsageError

PIECE_CHARACTERS = 1 << 18
_SEAM = re.compile(r"\n(?=\S)")


class Encoder(Protocol):
    def encode(self, text: str, *, control: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A run of tokens, of which those at `first` and later are scored (the others are context, and were scored before)."""

    ids: list[int]
    first: int


def pieces(path: Path) -> Iterator[str]:
    """The text in pieces of about PIECE_CHARACTERS, cut where a line begins with a visible character.

    Qwen's tokenizer never joins such a character to the line end before it, so the pieces encode to the ids of the whole. A text that has
    no such place for that long is cut anyway. Raises UsageError for a file that cannot be read or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, offset = "", 0
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(PIECE_CHARACTERS)
                try:
                    text += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise UsageError(f"{path} is not UTF-8 text: {error.reason} near byte {offset}", param="data") from None
                offset += len(block)
                while len(text) > PIECE_CHARACTERS:
                    seams = [match.end() for match in _SEAM.finditer(text, 0, PIECE_CHARACTERS + 1)]
                    cut = seams[-1] if seams else PIECE_CHARACTERS
                    yield text[:cut]
                    text = text[cut:]
                if not block:
                    break
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", param="data") from None
    if text:
        yield text


def token_ids(path: Path, encoder: Encoder) -> Iterator[int]:
    """The ids of a text file, in which control tokens are only text."""
    return itertools.chain.from_iterable(encoder.encode(piece, control=False) for piece in pieces(path))


def windows(ids: Iterable[int], size: int, stride: int) -> Iterator[Window]:
    """Windows of `size` ids that advance by `stride`; every id but the very first is scored exactly once.

    A scored id has at least `size - stride` ids before it, or all there are.
    """
    if not 0 < stride < size:
        raise UsageError(f"a window of {size} tokens cannot advance by {stride}: the stride must be at least 1 and less than the window")
    source = iter(ids)
    window = list(itertools.islice(source, size))
    first = 1
    while len(window) > first:
        yield Window(window, first)
        fresh = list(itertools.islice(source, stride))
        if not fresh:
            return
        window = window[len(window) - (size - stride) :] + fresh
        first = size - stride
