"""The tasks and the text under bench/data: made again, solvable, and never seen by calibration."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bench.data import calibration, tasks
from qwenbox.evaluate.problems import choices, code_problems, questions


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_generator_writes_the_tasks_byte_for_byte(name: str) -> None:
    assert (tasks.HERE / f"{name}.jsonl").read_bytes() == tasks.text(name).encode()


def passes(source: str, task: dict[str, Any]) -> bool:
    names: dict[str, Any] = {}
    try:
        exec(source, names)
        exec(task["tests"], names)
    except Exception:
        return False
    return True


def test_every_code_problem_is_solved_by_its_solution_and_by_no_wrong_answer() -> None:
    problems = list(tasks.code())
    assert len(problems) >= 300 and len({problem["id"] for problem in problems}) == len(problems)
    for problem in problems:
        assert passes(problem["solution"], problem), problem["id"]
        assert f"def {problem['entry']}(" in problem["question"] and '"""' in problem["question"]
        examples = re.findall(r">>> .*\n    (.*)", problem["question"])
        for wrong in ("None", *(repr(ast.literal_eval(ast.literal_eval(f'"""{shown}"""') if "\\" in shown else shown)) for shown in examples)):
            source = f"def {problem['entry']}(*given, **named):\n    return {wrong}\n"
            assert not passes(source, problem), f"{problem['id']} takes {wrong} for every answer"


def test_choices_differ_and_right_answers_are_spread_over_the_places() -> None:
    questions = list(tasks.choice())
    assert len(questions) >= 100 and len({one["question"] for one in questions}) == len(questions)
    places = [0] * 4
    for one in questions:
        assert len(one["choices"]) == len(set(one["choices"])) == 4
        places[one["answer"]] += 1
    assert min(places) > len(questions) / 8
    assert 40 <= sum(bool(re.search("[一-龥]", one["question"])) for one in questions) <= len(questions) - 40


def test_answers_to_generate_can_be_read_off_or_computed() -> None:
    questions = list(tasks.generate())
    assert len(questions) >= 60
    for one in questions:
        assert one["match"] in ("number", "contains")
        assert one["match"] == "number" or one["answer"] in one["question"]


def words(text: str) -> list[str]:
    """Words; in Chinese and Japanese each character is one."""
    return re.findall(r"[぀-ヿ一-鿿]|[^\W_぀-ヿ一-鿿]+", text.lower())


def runs(text: str) -> Iterator[tuple[str, ...]]:
    found = words(text)
    return zip(*(found[start:] for start in range(8)), strict=False)


def test_no_eight_words_of_the_held_out_text_or_of_a_question_are_in_the_calibration_text() -> None:
    seen = set()
    for line in calibration.FILE.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        for message in one.get("messages", [{"content": one.get("text")}]):
            seen.update(runs(message["content"]), runs(message.get("reasoning_content", "")))
    text = (tasks.HERE / "heldout.txt").read_text(encoding="utf-8")
    assert len(list(runs(text))) > 10_000
    assert not seen.intersection(runs(text))
    for task in (*tasks.code(), *tasks.choice(), *tasks.generate()):
        assert not seen.intersection(runs(task["question"])), task["id"]


def test_the_tasks_are_in_the_form_that_eval_reads() -> None:
    assert len(code_problems(tasks.HERE / "code.jsonl")) == len(list(tasks.code()))
    assert len(choices(tasks.HERE / "choice.jsonl")) == len(list(tasks.choice()))
    assert len(questions(tasks.HERE / "generate.jsonl")) == len(list(tasks.generate()))
