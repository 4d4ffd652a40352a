"""Writes the tasks of `qwenbox eval` beside this file: `python -m bench.data.tasks`. Own questions, the same files each time; a test compares.

`code.jsonl` comes from the modules under problems, `choice.jsonl` from facts.txt (question, right answer, wrong ones), `generate.jsonl` is made
from a seed.
"""

from __future__ import annotations

import ast
import json
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 11
PROBLEMS = ("mixed", "text", "numbers", "sequences", "records", "simulations", "everyday")
Task = dict[str, Any]


def code() -> Iterator[Task]:
    for name in PROBLEMS:
        yield from functions_of((HERE / "problems" / f"{name}.py").read_text(encoding="utf-8"))


def functions_of(source: str) -> Iterator[Task]:
    """Each function: signature and docstring as the question, its body as the solution, and what its test runs."""
    lines = source.splitlines(keepends=True)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for name, node in functions.items():
        if name.startswith("test_"):
            continue
        test, first = functions[f"test_{name}"], node.body[0]
        assert first.end_lineno is not None
        question = "".join(lines[node.lineno - 1 : first.end_lineno]).replace("  # type: ignore[type-arg]", "")
        yield {
            "id": f"code-{name}",
            "question": question,
            "entry": name,
            "tests": textwrap.dedent("".join(lines[test.body[0].lineno - 1 : test.end_lineno])),
            "solution": question + "".join(lines[first.end_lineno : node.end_lineno]),
        }


def choice() -> Iterator[Task]:
    rng = random.Random(SEED)
    for number, line in enumerate((HERE / "facts.txt").read_text(encoding="utf-8").splitlines()):
        question, right, *wrong = (part.strip() for part in line.split(" | "))
        choices = rng.sample([right, *wrong], 1 + len(wrong))
        yield {"id": f"choice-{number:03}", "question": question, "choices": choices, "answer": choices.index(right)}


def generate() -> Iterator[Task]:
    rng = random.Random(SEED)
    makers: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (_sum, _shop, _letter, _contact, _log, _chinese_order)
    for number in range(96):
        question, answer, match = makers[number % len(makers)](rng)
        yield {"id": f"generate-{number:03}", "question": question, "answer": answer, "match": match}


def _sum(rng: random.Random) -> tuple[str, str, str]:
    a, b, c = rng.randint(11, 99), rng.randint(11, 99), rng.randint(2, 10)
    form, value = rng.choice([("{a} + {b}", a + b), ("{a} + {b} - {c}", a + b - c), ("{a} * {c}", a * c), ("{b} - {c}", b - c)])
    ask = rng.choice(["What is {}? Answer with the number only.", "{}等于多少？只回答数字。"])
    return ask.format(form.format(a=a, b=b, c=c)), str(value), "number"


def _shop(rng: random.Random) -> tuple[str, str, str]:
    one, two, price, other = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 12)
    things = rng.sample(["notebooks", "mugs", "candles", "umbrellas", "plants"], 2)
    question = (
        f"{rng.choice(['Ruth', 'Samir', 'Hanna', 'Kwame'])} buys {one} {things[0]} at {price} dollars each "
        f"and {two} {things[1]} at {other} dollars each. "
        "How many dollars is that together? End your answer with the number."
    )
    return question, str(one * price + two * other), "number"


_PEOPLE = ("Marta Nowak", "Idris Bello", "Chloe Tran", "Viktor Holm", "Leila Haddad", "Pablo Ruiz")
_STREETS = ("Mill Lane", "Station Road", "Lindenweg", "Rue Haute", "Via Roma")


def _letter(rng: random.Random) -> tuple[str, str, str]:
    person, street, number = rng.choice(_PEOPLE), rng.choice(_STREETS), rng.randint(1, 180)
    order = f"{rng.choice('ABCDEFGH')}{rng.randint(1000, 9999)}"
    text = f"Dear shop, my parcel with order {order} never arrived at {street} {number}. Please send it again. Regards, {person}"
    wanted, answer = rng.choice([("order number", order), ("name of the customer", person), ("street with its house number", f"{street} {number}")])
    return f"{text}\n\nWhat is the {wanted} in this letter? Answer with it only.", answer, "contains"


def _contact(rng: random.Random) -> tuple[str, str, str]:
    people = rng.sample(_PEOPLE, 4)
    lines = [f"{person}: room {rng.randint(100, 499)}, extension {rng.randint(1000, 9999)}" for person in people]
    index = rng.randrange(4)
    listed = "\n".join(lines)
    return f"{listed}\n\nWhich extension has {people[index]}? Answer with the number only.", lines[index][-4:], "contains"


def _log(rng: random.Random) -> tuple[str, str, str]:
    services = rng.sample(["mail", "billing", "search", "backup", "login"], 4)
    bad = rng.choice(services)
    lines = [
        f"2027-02-{rng.randint(10, 28)} {rng.randint(10, 23)}:{rng.randint(10, 59)} {name} {'ERROR disk is full' if name == bad else 'INFO ready'}"
        for name in services
    ]
    listed = "\n".join(lines)
    return f"{listed}\n\nWhich service reports an error? Answer with its name in one word.", bad, "contains"


def _chinese_order(rng: random.Random) -> tuple[str, str, str]:
    name = rng.choice(["李娜", "王磊", "赵敏", "孙强", "周婷"])
    item, count = rng.choice(["台灯", "书包", "雨伞", "水杯"]), rng.randint(2, 30)
    city = rng.choice(["杭州", "重庆", "哈尔滨", "厦门"])
    wanted, answer = rng.choice([("寄往哪个城市", city), ("买的是什么商品", item), ("收货人叫什么", name), ("买了几件", str(count))])
    return f"订单：{name}购买{item}{count}件，请于周五前寄往{city}。\n\n{wanted}？只回答答案本身。", answer, "contains"


TASKS: dict[str, Callable[[], Iterator[Task]]] = {"code": code, "choice": choice, "generate": generate}


def text(name: str) -> str:
    return "".join(f"{json.dumps(task, ensure_ascii=False)}\n" for task in TASKS[name]())


if __name__ == "__main__":
    for name in TASKS:
        (HERE / f"{name}.jsonl").write_text(text(name), encoding="utf-8")
