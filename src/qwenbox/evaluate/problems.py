"""Problems of a task, one JSON object a line.

    choice    {"id", "question", "choices": [...], "answer": number of the right one, from 0}
    generate  {"id", "question", "answer", "match": "exact" | "number" | "contains"}
    code      {"id", "question", "entry": name of the function, "tests": Python that raises where the function is wrong}

Other fields are for people: where a problem comes from, how hard it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from qwenbox.chat.text import lines
from qwenbox.errors import UsageError

from .answers import number

Match = Literal["exact", "number", "contains"]


@dataclass(frozen=True, slots=True)
class Choice:
    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    question: str
    answer: str
    match: Match


@dataclass(frozen=True, slots=True)
class CodeProblem:
    id: str
    question: str
    entry: str
    tests: str


Problem = TypeVar("Problem", Choice, Question, CodeProblem)


class _Wrong(Exception):
    """What is wrong with a line."""


def choices(path: Path) -> list[Choice]:
    """Raises UsageError, with the number of the line, for what is not as the module says; so do the other two."""
    return _read(path, _choice)


def questions(path: Path) -> list[Question]:
    return _read(path, _question)


def code_problems(path: Path) -> list[CodeProblem]:
    return _read(path, _code_problem)


def _choice(fields: Mapping[str, Any]) -> Choice:
    texts, answer = fields.get("choices"), fields.get("answer")
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
        raise _Wrong("`choices` must be a list of at least two texts that are not empty")
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise _Wrong(f"`answer` must be a number from 0 to {len(texts) - 1}")
    return Choice(_text(fields, "id"), _text(fields, "question"), tuple(_whole(text, "choices") for text in texts), answer)


def _question(fields: Mapping[str, Any]) -> Question:
    match: Match | None = next((match for match in get_args(Match) if match == fields.get("match")), None)
    if match is None:
        raise _Wrong(f"`match` must be one of {', '.join(get_args(Match))}")
    answer = fields.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        value = Decimal(repr(answer))
        if not value.is_finite():
            raise _Wrong("`answer` must be a number")
        fields = {**fields, "answer": format(value, "f")}
    question = Question(_text(fields, "id"), _text(fields, "question"), _text(fields, "answer"), match)
    if match == "number" and number(question.answer) is None:
        raise _Wrong("`answer` must be a number, as `match` says")
    return question


def _code_problem(fields: Mapping[str, Any]) -> CodeProblem:
    problem = CodeProblem(*(_text(fields, name) for name in ("id", "question", "entry", "tests")))
    if not problem.entry.isidentifier():
        raise _Wrong("`entry` must be the name of a function")
    return problem


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if name == "id" and type(value) is int:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"`{name}` must be a text that is not empty")
    return _whole(value, name)


def _whole(text: str, name: str) -> str:
    """JSON can say halves of characters, which no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"`{name}` holds half of a surrogate pair") from None
    return text


def _read(path: Path, make: Callable[[Mapping[str, Any]], Problem]) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for index, line in lines(path, "data"):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise _Wrong("it is not a JSON object")
            problem = make(fields)
            if problem.id in problems:
                raise _Wrong(f"there is another problem with the id {problem.id!r}")
        except (_Wrong, ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {index}: {error}", param="data") from None
        problems[problem.id] = problem
    if not problems:
        raise UsageError(f"{path} holds no problems", param="data")
    return list(problems.values())
