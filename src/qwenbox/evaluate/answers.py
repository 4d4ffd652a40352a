"""Whether an answer in words is right, and the code in an answer."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .problems import Question

_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z)\]])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z.]))?")
_EXPONENT = re.compile(r"[⁻⁰¹²³⁴-⁹]+|\^ ?\{?-?[0-9]+\}?")
_FRACTION = re.compile("([0-9]*) ?([¼-¾⅐-⅞])")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([\w+-]*)")


def is_right(question: Question, reply: str) -> bool:
    """exact: the same text; contains: the answer stands in it, whatever its case; number: the last number of the reply is the answer's value.

    Runs of blanks count as one, and characters that only look different (full width, minus signs) as the same.
    """
    said, wanted = _plain(reply), _plain(question.answer)
    if question.match == "number":
        return number(reply) == number(question.answer)
    if question.match == "contains":
        return wanted.casefold() in said.casefold()
    return said == wanted


def number(text: str) -> Decimal | None:
    """The last number in a text; thousands may stand between commas, 6.02e23 is one, an exponent (of cm², m^2) is none, and ½ is 0.5."""
    text = _FRACTION.sub(lambda found: str(int(found[1] or 0) + unicodedata.numeric(found[2])), _EXPONENT.sub("", text))
    found = _NUMBER.findall(_plain(text))
    return Decimal(found[-1].replace(",", "")) if found else None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).replace("−", "-").split())


def code_of(reply: str, entry: str) -> str:
    """The code of a reply: its first block that defines `entry`; without one all its blocks together; without blocks the whole reply.

    A block that is never closed ends with the reply.
    """
    blocks = [block for language, block in _blocks(reply) if language in ("", "python", "python3", "py")]
    defining = next((block for block in blocks if _defines(block, entry)), None)
    return defining if defining is not None else "\n\n".join(blocks) if blocks else reply


def _blocks(reply: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in reply.split("\n"):
        found = _FENCE.match(line)
        if not fence and found:
            fence = found[1]
            blocks.append((found[2].lower(), []))
        elif fence and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        elif fence:
            blocks[-1][1].append(line)
    return [(language, textwrap.dedent("\n".join(lines))) for language, lines in blocks]


def _defines(code: str, entry: str) -> bool:
    name = re.escape(entry)
    return re.search(rf"^(?:(?:async\s+def|def|class)\s+{name}\b|{name}\s*[:=])", code, re.MULTILINE) is not None
