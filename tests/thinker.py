"""The thinker: a tiny Qwen3 that was trained to think, and questions for it whose answers are known.

`MODEL` is a model directory like any other. Sums get harder with every number in them, so more thinking gives more correct answers.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qwenbox.engine.client import EngineOptions, WorkerEngine
from qwenbox.llm import LLM, LocalLLM, open_chat
from qwenbox.server.serve import Service
from qwenbox.settings import Settings

MODEL = Path(__file__).parent / "fixtures" / "thinker"
MAX_TERMS = 6
"""Numbers in the longest sums that it was trained on."""

CALCULATOR: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "The expression."}},
            "required": ["expression"],
        },
    },
}
WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

ENDLESS = "Count forever."
"""What it never stops thinking about."""

NAMES = ("Tom", "Ann", "Sue", "Bob", "Max", "Eva", "Leo", "Mia", "Ben", "Zoe")
CITIES = ("Paris", "Rome", "London", "Berlin", "Tokyo", "Beijing", "Madrid", "Oslo")

_SUM = {
    "en": ("What is {}?", "How much is {}?", "Compute {}.", "Calculate {}", "{} = ?", "{}"),
    "zh": ("{}等于多少?", "{}是多少?", "计算{}。", "请问{}等于几?"),
}
_PARITY = {"en": ("Is {} even or odd?", "Even or odd: {}?"), "zh": ("{}是奇数还是偶数?",)}
TALLER = ("{} is taller than {}.", "{} is shorter than {}.")
TALLEST = ("Who is the tallest?", "Who is the shortest?")


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is what `found` sees in a right reply. `thought` is a way to it; `terms`, how hard it is."""

    text: str
    answer: str
    thought: str
    terms: int
    language: str


def found(reply: str) -> str | None:
    """The answer that a reply gives: its last number or, where there is none, its last word of an answer to a puzzle."""
    known = ["even", "odd", "偶数", "奇数", *NAMES]
    matches = re.findall(r"-?\d+|" + "|".join(known), reply)
    return {"偶数": "even", "奇数": "odd"}.get(matches[-1], matches[-1]) if matches else None


def is_held_out(expression: str) -> bool:
    """Whether a sum was kept out of training; of those with three numbers or fewer none was."""
    return len(re.findall(r"\d+", expression)) > 3 and zlib.crc32(expression.encode()) % 16 == 0


def sums(seed: int, count: int, terms: Sequence[int] = range(2, MAX_TERMS + 1), language: str | None = None) -> list[Question]:
    """Sums that were not in training, of so many one-digit numbers each in turn."""
    rng = random.Random(seed)
    return [sum_of(rng, terms[index % len(terms)], language, held_out=True) for index in range(count)]


def puzzles(seed: int, count: int, language: str | None = None) -> list[Question]:
    """Who is tallest, and what is even."""
    rng = random.Random(seed)
    return [parity(rng, language, held_out=True) if index % 2 else order(rng) for index in range(count)]


def sum_of(rng: random.Random, terms: int, language: str | None = None, *, held_out: bool) -> Question:
    language = language or _language(rng)
    expression, thought, total = chain(rng, terms, held_out=held_out)
    return Question(rng.choice(_SUM[language]).format(_spaced(rng, expression)), str(total), thought, terms, language)


def parity(rng: random.Random, language: str | None = None, *, held_out: bool) -> Question:
    language = language or _language(rng)
    terms = rng.randint(2, 5)
    expression, thought, total = chain(rng, terms, held_out=held_out)
    answer = "odd" if total % 2 else "even"
    shown = answer if language == "en" else {"odd": "奇数", "even": "偶数"}[answer]
    text = rng.choice(_PARITY[language]).format(_spaced(rng, expression))
    return Question(text, answer, f"{thought}\n{total}: {shown}", terms, language)


def order(rng: random.Random) -> Question:
    people = rng.sample(NAMES, 3)
    pairs = list(pairwise(people))
    rng.shuffle(pairs)
    said = [TALLER[turned].format(*(pair[::-1] if turned else pair)) for pair in pairs for turned in (rng.randrange(2),)]
    which = rng.randrange(2)
    # With a blank before it a name is the same token everywhere.
    thought = "\n".join([*(f" {' > '.join(pair)}" for pair in pairs), f" {' > '.join(people)}"])
    return Question(" ".join(["Facts:", *said, TALLEST[which]]), people[-which], thought, len(people), "en")


def chain(rng: random.Random, terms: int, *, held_out: bool) -> tuple[str, str, int]:
    """A sum of different one-digit numbers that never falls below zero, the thought that works it out a number at a time, and its value.

    In training numbers may come twice now and then.
    """
    while True:
        numbers = rng.sample(range(1, 10), terms) if held_out or rng.random() < 0.8 else rng.choices(range(1, 10), k=terms)
        total = numbers[0]
        expression, steps = str(total), []
        for number in numbers[1:]:
            sign = "-" if number <= total and rng.random() < 0.3 else "+"
            value = total + number if sign == "+" else total - number
            steps.append(f"{total}{sign}{number}={value}")
            expression += f"{sign}{number}"
            total = value
        if is_held_out(expression) == (held_out and terms > 3):
            return expression, "\n".join(steps), total


def _spaced(rng: random.Random, expression: str) -> str:
    return re.sub(r"([+-])", r" \1 ", expression) if rng.random() < 0.4 else expression


def _language(rng: random.Random) -> str:
    return "zh" if rng.random() < 0.25 else "en"


@contextmanager
def serve(state: Path) -> Iterator[tuple[Service, LocalLLM]]:
    """The thinker in a real worker behind a real service, loaded; `state` is an empty folder."""
    chat = open_chat(MODEL)
    engine = WorkerEngine(EngineOptions(model=str(MODEL), num_pages=512, tokens=chat.tokenizer.table()))
    with LocalLLM(engine, chat, "thinker") as llm, Service(llm, Settings(port=0, state_dir=state)) as service:
        llm.wait_ready(60)
        yield service, llm


# --- asking it --------------------------------------------------------------------------------------------------------


def accuracy(llm: LLM, questions: Sequence[Question], thinking: bool | int = True) -> float:
    """Share of right answers without chance in the choice of tokens. A number for `thinking` is the most tokens of a thought."""
    replies = llm.batch([question.text for question in questions], thinking=thinking, temperature=0.0, max_tokens=256)
    return sum(found(reply.text) == question.answer for reply, question in zip(replies, questions, strict=True)) / len(questions)


def table(llm: LLM, count: int = 200) -> str:
    """Accuracy with thoughts of any length, some lengths and none, in Markdown: sums of so many numbers, and puzzles."""
    lengths = range(2, MAX_TERMS + 1)
    by_length = [sums(2, count // len(lengths), [terms]) for terms in lengths]
    rows = [["thought", *(f"{terms} numbers" for terms in lengths), "all sums", "puzzles"], ["---"] * (len(lengths) + 3)]
    ways: list[tuple[str, bool | int]] = [("none", False), *((f"{tokens} tokens", tokens) for tokens in (1, 8, 16, 24, 32)), ("whole", True)]
    for name, thinking in ways:
        shares = [accuracy(llm, questions, thinking) for questions in by_length]
        rows.append([name, *(f"{share:.2f}" for share in [*shares, sum(shares) / len(shares), accuracy(llm, puzzles(3, count // 4), thinking)])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    with LLM(str(MODEL), context_length=1024) as thinker:
        print(table(thinker))
