"""Tasks, asked of models whose answers are known: the thinker, and one whose logits are a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from qwenbox.errors import UsageError
from qwenbox.evaluate import problems, tasks
from qwenbox.evaluate.answers import is_right
from qwenbox.evaluate.problems import Choice, CodeProblem, Question
from qwenbox.llm import LLM, open_chat
from qwenbox.types import Batch, FloatArray, Message
from tests import thinker


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(thinker.MODEL), context_length=1024, num_pages=1024) as loaded:
        yield loaded


def sums(count: int) -> list[Question]:
    return [Question(str(index), asked.text, asked.answer, "number") for index, asked in enumerate(thinker.sums(5, count, [4, 5, 6]))]


def test_the_thinker_answers_better_with_a_thought_and_the_paired_difference_says_so(llm: LLM) -> None:
    asked = sums(60)
    off, on = (tasks.generate(llm, asked, thinking=thinking, max_tokens=256) for thinking in (False, True))
    assert [item.id for item in on.items] == [problem.id for problem in asked]
    known = thinker.accuracy(llm, thinker.sums(5, 60, [4, 5, 6]), True)
    assert on.share.value == known
    assert all("reasoning" in item.said for item in on.items) and not any("reasoning" in item.said for item in off.items)
    assert on.share.minus(off.share).low > 0
    assert on.new_tokens == sum(item.said["new_tokens"] for item in on.items) > off.new_tokens


def test_progress_counts_the_answers_and_those_that_are_too_long_are_counted_as_cut(llm: LLM) -> None:
    done: list[int] = []
    score = tasks.generate(llm, sums(4), max_tokens=2, progress=done.append)
    assert done == [1, 2, 3, 4]
    assert (score.cut, score.new_tokens, score.share.value) == (4, 8, 0.0)


def test_what_is_retained_is_paired_so_its_interval_is_narrower_than_those_of_the_scores() -> None:
    reference = [index % 10 < 6 for index in range(300)]
    right = [one != (index % 30 == 1) for index, one in enumerate(reference)]  # ten of the hundred and eighty are lost
    told = tasks.retention(right, reference)
    assert (told["lost"], told["gained"]) == (10, 0)
    assert told["retention"] == pytest.approx(170 / 180) and told["difference"] == pytest.approx(-10 / 300)
    assert told["retention_low"] < told["retention"] < told["retention_high"] <= 1
    assert 0.05 < told["retention_high"] - told["retention_low"] < 0.08  # apart: 0.19
    assert tasks.retention(reference, reference)["retention_low"] == 1


class Tabled:
    """The next token depends on the one before it alone."""

    def __init__(self, vocab: int, context_length: int = 2048) -> None:
        self.vocab_limit, self.context_length, self.max_batch_tokens, self.max_logits = vocab, context_length, 16, 4
        self.tokens_read = 0

    def logits(self, id: int) -> FloatArray:
        return np.random.default_rng(id).normal(size=self.vocab_limit).astype(np.float32) * 4

    def run(self, batch: Batch) -> FloatArray:
        self.tokens_read += batch.num_tokens
        return np.array([self.logits(int(batch.ids[row])) for row in batch.logits_rows], np.float32).reshape(-1, self.vocab_limit)


def test_a_choice_is_scored_by_its_likelihood_behind_the_chat_prompt_over_its_bytes() -> None:
    chat = open_chat(thinker.MODEL)
    model = Tabled(chat.tokenizer.vocab_limit)
    texts = ("yes", "no, never", "不是", "it depends on the weather")
    score = tasks.choose(model, chat, [Choice("a", "Is it?", texts, 2)])
    prompt = chat.encode([Message("user", "Is it?")], enable_thinking=False)
    expected = []
    for text in texts:
        ids, total = prompt + chat.tokenizer.encode(text, control=False), 0.0
        for at in range(len(prompt), len(ids)):
            row = model.logits(ids[at - 1]).astype(np.float64)
            total += row[ids[at]] - math.log(np.exp(row).sum())
        expected.append(total / len(text.encode()))
    assert score.items[0].said["scores"] == pytest.approx(expected, rel=1e-5)
    assert score.items[0].said["chosen"] == expected.index(max(expected))
    assert score.items[0].right == (expected.index(max(expected)) == 2)
    # The prompt is read once.
    assert model.tokens_read <= len(prompt) + sum(len(chat.tokenizer.encode(text)) for text in texts) + len(texts)
    chat.close()


def test_a_choice_that_is_the_next_thing_the_thinker_would_say_wins(llm: LLM) -> None:
    from qwenbox.engine.options import EngineOptions, open_model

    chat = llm.chat_format
    model = open_model(EngineOptions(model=str(thinker.MODEL), num_pages=8, context_length=256, tokens=chat.tokenizer.table()), lambda part: None)
    asked = thinker.sums(7, 24, [2], "en")
    texts = [[f"The answer is {int(one.answer) + step}." for step in (1, 0, 2)] for one in asked]
    choices = [Choice(str(index), one.text, tuple(said), 1) for index, (one, said) in enumerate(zip(asked, texts, strict=True))]
    assert tasks.choose(model, chat, choices).share.value > 0.9
    with pytest.raises(UsageError, match=r"problem long has \d+ tokens, and the window holds 256"):
        tasks.choose(model, chat, [replace(choices[0], id="long", question="1+1 " * 200)])
    model.close()


def test_code_is_asked_for_written_and_executed(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "double": "```python\ndef double(x):\n    return 2 * x\n```",
        "half": "```python\ndef half(x):\n    return x * 2\n```",
        "evil": "```python\nimport os\nos.kill(-1, 9)\n```",
        "none": "I cannot do that.",
    }

    def replies(self: LLM, texts: list[str], **params: object) -> Iterator[object]:
        from qwenbox.llm import Reply
        from qwenbox.types import Usage

        assert params["temperature"] == 0.0 and params["repetition_penalty"] == 1.0
        for index, text in reversed(list(enumerate(texts))):  # the last is ready first
            name = next(name for name in said if f"def {name}(" in text)
            yield index, Reply(said[name], "", "stop", Usage(10, 20))

    monkeypatch.setattr(LLM, "replies", replies)
    asked = [CodeProblem(name, f"def {name}(x):", name, f"assert {name}(4) == {8 if name == 'double' else 2}") for name in said]
    score = tasks.write_code(llm, asked)
    assert [(item.id, item.right) for item in score.items] == [("double", True), ("half", False), ("evil", False), ("none", False)]
    assert "assert half(4) == 2" in score.items[1].said["reason"]
    assert "PermissionError" in score.items[2].said["reason"]
    assert "SyntaxError" in score.items[3].said["reason"]


@pytest.mark.parametrize(
    ("match", "answer", "reply", "right"),
    [
        ("exact", "Paris", " Paris\n", True),
        ("exact", "Paris", "It is Paris", False),
        ("exact", "2 km", "2  km", True),
        ("contains", "paris", "It is PARIS.", True),
        ("contains", "42", "It is 4 2", False),
        ("number", "7", "3 + 4 = 7.", True),
        ("number", "7", "7 is 3 + 4", False),
        ("number", "-3", "2 - 5 = -3", True),
        ("number", "−3", "2 - 5 is ４ - 7 = －3", True),
        ("number", "3", "10-7=3", True),
        ("number", "3", "from 10-3", True),
        ("number", "1234.5", "$1,234.50", True),
        ("number", "1,234", "1234.0 of them", True),
        ("number", "3", "a, b: 1,2,3", True),
        ("number", "9", "答案是9。", True),
        ("number", "5", "no idea", False),
        ("number", "25", "The area is 25 cm².", True),
        ("number", "7", "It has 7 m^2", True),
        ("number", "1024", "2^10 = 1024", True),
        ("number", "3.5", "It takes 3½ hours", True),
        ("number", "0.5", "half of it: ½", True),
        ("number", "602000000000000000000000", "about 6.02e23", True),
        ("number", "0.001", "1E-3 of it", True),
        ("number", "3", "step 3e of 3", True),
    ],
)
def test_answers_match_as_the_problem_says(match: problems.Match, answer: str, reply: str, right: bool) -> None:
    assert is_right(Question("a", "?", answer, match), reply) is right


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[1]", "not a JSON object"),
        ('{"id": "b", "question": "?", "answer": "x"}', "`match` must be one of exact, number, contains"),
        ('{"id": "b", "question": "?", "answer": "x", "match": "number"}', "must be a number"),
        ('{"id": "b", "question": "?", "answer": Infinity, "match": "number"}', "must be a number"),
        ('{"id": "b", "question": "\\ud83d", "answer": 1, "match": "number"}', "`question` holds half of a surrogate pair"),
        ('{"id": "b", "question": " ", "answer": "x", "match": "exact"}', "`question`"),
        ('{"id": "a", "question": "?", "answer": "x", "match": "exact"}', "another problem with the id 'a'"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "a", "question": "1+1?", "answer": 2, "match": "number", "level": "easy"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError, match="line 2") as caught:
        problems.questions(path)
    assert words in caught.value.message


def test_what_editors_put_before_a_file_is_no_part_of_it_and_numbers_are_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    line = '{"id": "x", "question": "?", "answer": 1e22, "match": "number"}'
    path.write_text(
        line + "\n" + line.replace("x", "y").replace("1e22", "1e-5") + "\n" + line.replace("x", "z").replace("1e22", "9" * 400), "utf-8-sig"
    )
    assert [Decimal(one.answer) for one in problems.questions(path)] == [Decimal(10) ** 22, Decimal("0.00001"), Decimal("9" * 400)]


def test_choices_and_code_problems_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    for fields, words in (
        ({"choices": ["a"], "answer": 0}, "at least two"),
        ({"choices": ["a", ""], "answer": 0}, "not empty"),
        ({"choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
    ):
        path.write_text(json.dumps({"id": "a", "question": "?", **fields}), encoding="utf-8")
        with pytest.raises(UsageError, match=words):
            problems.choices(path)
    path.write_text(json.dumps({"id": "a", "question": "?", "entry": "f(x)", "tests": "f(1)"}), encoding="utf-8")
    with pytest.raises(UsageError, match="name of a function"):
        problems.code_problems(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no problems"):
        problems.code_problems(path)
