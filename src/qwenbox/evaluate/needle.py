"""A number at the beginning of a long text, asked for at its end: who finds it has read all between."""

from __future__ import annotations

NUMBER = "48213"


def hidden(hay: str) -> str:
    return f"The secret number is {NUMBER}. Remember it.\n\n{hay}\n\nThe secret number, which was said at the beginning, is"


def is_found(answer: str) -> bool:
    return NUMBER in answer
