"""What a model can do: it chooses, answers, and writes code that is executed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from qwenbox.chat.chat import ChatFormat
from qwenbox.errors import UsageError
from qwenbox.llm import LocalLLM, Reply
from qwenbox.types import Message

from .answers import code_of, is_right
from .execution import check_confinement, examine
from .interval import Mean
from .logits import Scorable, log_mass, scored_logits
from .problems import Choice, CodeProblem, Question
from .windows import Window

CODE_REQUEST = "Write this Python function. Reply with one Python code block that holds the whole function and every import that it needs.\n\n"
MAX_TOKENS = 1024
"""Of an answer, where nobody says otherwise; with a thought `MAX_THINKING_TOKENS`."""
MAX_THINKING_TOKENS = 4096
_EXAMINERS = 2

Progress = Callable[[int], None]
"""Called with the number of problems that are done."""


@dataclass(frozen=True, slots=True)
class Item:
    """What became of one problem. `said` is for people: the answer, and why it is wrong."""

    id: str
    right: bool
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """Of a task, over its problems in the order of the file."""

    items: tuple[Item, ...]
    seconds: float
    new_tokens: int = 0
    """Of all answers, thoughts included."""
    cut: int = 0
    """Answers that were ended by the limit of their length."""

    @property
    def share(self) -> Mean:
        """Of right answers."""
        return Mean.of([(float(item.right), 1.0) for item in self.items])

    def numbers(self) -> dict[str, float]:
        counts = {"right": sum(item.right for item in self.items), "problems": len(self.items), "new_tokens": self.new_tokens, "cut": self.cut}
        return {**self.share.estimate().numbers("score"), **counts, "seconds": self.seconds}


def retention(right: Sequence[bool], reference: Sequence[bool]) -> dict[str, float]:
    """What became of the reference's score, problem by problem, which makes the intervals paired: the difference of the shares that are right, the
    share that is retained, and how many problems are lost (only the reference solved them) and gained."""
    mine, other = (Mean.of([(float(one), 1.0) for one in marks]) for marks in (right, reference))
    changed = [one - another for one, another in zip(right, reference, strict=True)]
    intervals = mine.minus(other).numbers("difference") | mine.over(other).numbers("retention")
    return {**intervals, "lost": changed.count(-1), "gained": changed.count(1)}


def choose(model: Scorable, chat: ChatFormat, problems: Sequence[Choice], progress: Progress = lambda done: None) -> Score:
    """The question is the user's only message in the model's own chat format, without a thought; each choice is scored as the answer's beginning.

    Its score is the sum of the log-probabilities of its tokens, divided by the number of its bytes in UTF-8: a long choice does not lose because
    it is long, whatever the tokenizer. The best score is the model's choice, the first of equal ones.
    """
    began = time.monotonic()
    items = []
    for problem in problems:
        prompt = chat.encode_for(False, [Message("user", problem.question)])
        texts = [chat.tokenizer.encode(text, control=False) for text in problem.choices]
        if (needed := len(prompt) + max(map(len, texts))) > model.context_length:
            raise UsageError(f"problem {problem.id} has {needed} tokens, and the window holds {model.context_length}", param="window")
        values = _likelihoods(model, prompt, texts)
        scores = [value / len(text.encode()) for text, value in zip(problem.choices, values, strict=True)]
        chosen = scores.index(max(scores))
        items.append(Item(problem.id, chosen == problem.answer, {"chosen": chosen, "answer": problem.answer, "scores": scores}))
        progress(len(items))
    return Score(tuple(items), time.monotonic() - began)


def _likelihoods(model: Scorable, prompt: list[int], texts: Sequence[list[int]]) -> Iterator[float]:
    """The log-probability of each text after the prompt, which the model reads once."""
    begin = 0
    for ids in texts:
        total = 0.0
        for position, logits in scored_logits(model, Window(prompt + ids, len(prompt)), begin):
            total += sum(float(row[id]) - log_mass(row) for row, id in zip(logits, ids[position - len(prompt) :], strict=False))
        yield total
        begin = len(prompt) - 1


def _check_lengths(llm: LocalLLM, problems: Sequence[Question | CodeProblem], texts: Sequence[str], thinking: bool) -> None:
    """Before the first answer. Raises UsageError for a problem that leaves no room for one."""
    for problem, text in zip(problems, texts, strict=True):
        num_tokens = len(llm.chat_format.encode_for(thinking, [Message("user", text)]))
        if num_tokens >= llm.context_length:
            raise UsageError(
                f"problem {problem.id} has {num_tokens} tokens, and the window holds {llm.context_length}, the answer included", param="data"
            )


def generate(
    llm: LocalLLM, problems: Sequence[Question], *, thinking: bool = False, max_tokens: int | None = None, progress: Progress = lambda done: None
) -> Score:
    """Answers with the most likely token each time, all problems in one engine, matched as `answers.is_right` says."""
    began = time.monotonic()
    items: dict[int, Item] = {}
    answered = _Answered()
    texts = [problem.question for problem in problems]
    _check_lengths(llm, problems, texts, thinking)
    with closing(_replies(llm, texts, thinking, max_tokens)) as replies:
        for index, reply in replies:
            problem = problems[index]
            items[index] = Item(problem.id, is_right(problem, reply.text), {"reply": reply.text, "answer": problem.answer, **answered.count(reply)})
            progress(len(items))
    return Score(tuple(items[index] for index in range(len(problems))), time.monotonic() - began, answered.new_tokens, answered.cut)


def write_code(
    llm: LocalLLM, problems: Sequence[CodeProblem], *, thinking: bool = False, max_tokens: int | None = None, progress: Progress = lambda done: None
) -> Score:
    """Answers as `generate` makes them, whose code is executed with the tests (see `execution`) while the others are still written.

    Raises EngineError where the system cannot confine what is executed.
    """
    check_confinement()
    began = time.monotonic()
    items: dict[int, Future[Item]] = {}
    answered = _Answered()

    def item(problem: CodeProblem, reply: Reply, more: dict[str, Any]) -> Item:
        code = code_of(reply.text, problem.entry)
        outcome = examine(code, problem.tests)
        return Item(problem.id, outcome.passed, {"reply": reply.text, "code": code, "reason": outcome.reason, **more})

    texts = [CODE_REQUEST + problem.question for problem in problems]
    _check_lengths(llm, problems, texts, thinking)
    pool = ThreadPoolExecutor(_EXAMINERS)
    try:
        with closing(_replies(llm, texts, thinking, max_tokens)) as replies:
            for index, reply in replies:
                items[index] = pool.submit(item, problems[index], reply, answered.count(reply))
                progress(len(items))
        results = tuple(items[index].result() for index in range(len(problems)))
    finally:
        pool.shutdown(cancel_futures=True)  # whoever presses Ctrl-C does not wait for those that have not begun
    return Score(results, time.monotonic() - began, answered.new_tokens, answered.cut)


def _replies(llm: LocalLLM, texts: Sequence[str], thinking: bool, max_tokens: int | None) -> Generator[tuple[int, Reply], None, None]:
    most = max_tokens or (MAX_THINKING_TOKENS if thinking else MAX_TOKENS)
    return llm.replies(texts, thinking="on" if thinking else "off", temperature=0.0, repetition_penalty=1.0, max_tokens=most)


class _Answered:
    """What is counted of all answers."""

    def __init__(self) -> None:
        self.new_tokens = self.cut = 0

    def count(self, reply: Reply) -> dict[str, Any]:
        self.new_tokens += reply.usage.completion_tokens
        self.cut += reply.finish_reason == "length"
        thought = {"reasoning": reply.reasoning} if reply.reasoning else {}
        return {"finish_reason": reply.finish_reason, "new_tokens": reply.usage.completion_tokens, **thought}
