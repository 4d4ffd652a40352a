"""What a search finds: messages, or titles, that hold every word of the query somewhere, also within a word, and in any writing that has no spaces.

Texts and queries are folded first: case, wide and narrow forms do not count.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MAX_TERMS = 16
SNIPPET_LENGTH = 120


class Condition(NamedTuple):
    """A part of a WHERE, and the values of its parameters."""

    sql: str
    values: tuple[str, ...]


def fold(text: str) -> str:
    """`text` as it is compared. SQLite's texts end at a NUL, so that counts as a space."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("\0", " ")


def terms_of(query: str) -> list[str]:
    """The words of a query, folded, at most MAX_TERMS."""
    return list(dict.fromkeys(fold(query).split()))[:MAX_TERMS]


def in_messages(terms: list[str], *, indexed: bool) -> Condition:
    """Rows of `found` that hold all the terms. Pieces of three characters are indexed, so shorter terms are looked for in every text."""
    long = [term for term in terms if indexed and len(term) >= 3]
    short = [term for term in terms if term not in long]
    parts = [*(["found MATCH ?"] if long else []), *["instr(found.folded, ?) > 0"] * len(short)]
    phrases = " AND ".join('"' + term.replace('"', '""') + '"' for term in long)
    return Condition(" AND ".join(parts), (*([phrases] if long else []), *short))


def in_title(terms: list[str]) -> Condition:
    """Titles that hold all the terms. There are few, so none are indexed."""
    return Condition(" AND ".join(["instr(fold(conversations.title), ?) > 0"] * len(terms)), tuple(terms))


def snippet(text: str, query: str) -> str:
    """A line around the first of the query's words that stands in the text as it was written, otherwise its beginning."""
    words = "|".join(map(re.escape, query.split()[:MAX_TERMS]))
    found = re.search(words, text, re.IGNORECASE) if words else None
    begin = max(0, found.start() - SNIPPET_LENGTH // 3) if found else 0
    line = " ".join(text[begin : begin + SNIPPET_LENGTH].split())
    return ("…" if begin else "") + line + ("…" if begin + SNIPPET_LENGTH < len(text) else "")
