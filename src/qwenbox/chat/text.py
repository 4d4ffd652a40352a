"""A text file as token ids or lines, in bounded memory."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from qwenbox.errors import UsageError

PIECE_CHARACTERS = 1 << 18
MAX_BYTES = 256 << 20
"""Of a file whose lines are read."""
_SEAM = re.compile(r"\n(?=\S)")


class Encoder(Protocol):
    def encode(self, text: str, *, control: bool = True) -> list[int]: ...


def token_ids(path: Path, encoder: Encoder, *, param: str = "data") -> Iterator[int]:
    """The ids of a text file, in which control tokens are only text. Raises UsageError for what cannot be read or is not UTF-8."""
    return ids_of(_decoded(path, param), encoder)


def ids_of(texts: Iterable[str], encoder: Encoder) -> Iterator[int]:
    """The ids of a text that comes in parts, in which control tokens are only text; no more is encoded than somebody asks for."""
    return itertools.chain.from_iterable(encoder.encode(piece, control=False) for piece in pieces(texts))


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """A text that comes in parts, in pieces of about PIECE_CHARACTERS, cut where a line begins with a visible character.

    Qwen's tokenizer never joins such a character to the line end before it, so the pieces encode to the ids of the whole. A text that has
    no such place for that long is cut anyway.
    """
    text = ""
    for part in texts:
        text += part
        begin = 0
        while len(text) - begin > PIECE_CHARACTERS:
            seams = [match.end() for match in _SEAM.finditer(text, begin, begin + PIECE_CHARACTERS + 1)]
            cut = seams[-1] if seams else begin + PIECE_CHARACTERS
            yield text[begin:cut]
            begin = cut
        text = text[begin:]
    if text:
        yield text


def _decoded(path: Path, param: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(PIECE_CHARACTERS)
                try:
                    yield decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise UsageError(f"{path} is not UTF-8 text: {error.reason} near byte {offset}", param=param) from None
                offset += len(block)
                if not block:
                    return
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", param=param) from None


def lines(path: Path, param: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only a line feed ends one. Raises UsageError as `token_ids`, and for a large file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES >> 20} MB; that much is not read", param=param)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", param=param) from None
    text = "".join(_decoded(path, param))
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
