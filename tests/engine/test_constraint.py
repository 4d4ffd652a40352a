"""Random logits and a grammar: whatever ends fits the grammar, whoever else runs beside it."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import jsonschema
import numpy as np
import pytest

from qwenbox.engine.constraint import Grammars
from qwenbox.engine.engine import Engine
from qwenbox.errors import RequestError
from qwenbox.types import ConstraintPlan, SequenceOutput, ThinkingPlan, TokenTable
from tests.engine.fakes import VOCAB, FakeModel, plan

# ids 0 to 89 are characters; then a control token, a line end, what opens and closes a thought, and the end.
CHARS = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in "`~^$@"]
CALL, LINE, OPEN, CLOSE, END = range(90, 95)
TOKENS = [*(char.encode() for char in CHARS[:90]), b"<call>", b"\n\n", b"<think>", b"</think>", b"<end>"]
TABLE = TokenTable(b"".join(TOKENS), np.cumsum([len(token) for token in TOKENS]).astype("<u4").tobytes(), (CALL, OPEN, CLOSE, END), (END,))


def text_of(ids: Sequence[int]) -> str:
    return b"".join(TOKENS[id] for id in ids if id != END).decode()


def ids_of(text: str) -> list[int]:
    return [TOKENS.index(char.encode()) for char in text]


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(TABLE)
    yield grammars
    grammars.close()


class Model(FakeModel):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.vocab_limit = len(TOKENS)


def run(grammars: Grammars, plans: Sequence[Any], model: Model | None = None) -> dict[str, list[SequenceOutput]]:
    engine = Engine(model or Model(), grammars=grammars, debug=True)
    outputs: dict[str, list[SequenceOutput]] = {one.request_id: [] for one in plans}
    for one in plans:
        engine.add(one)
    began = time.monotonic()
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        assert time.monotonic() - began < 600
    return outputs


def answer(outputs: Sequence[SequenceOutput]) -> list[int]:
    return [id for output in outputs for id in output.ids]


def schema(value: Any) -> ConstraintPlan:
    return ConstraintPlan(json.dumps({"grammars": [{"json_schema": {"x-guidance": {"whitespace_flexible": False}, **value}}]}))


def lark(text: str, **options: Any) -> ConstraintPlan:
    return ConstraintPlan(json.dumps({"grammars": [{"lark_grammar": text}]}), **options)


def asked(name: str, constraint: ConstraintPlan, max_tokens: int = 300, **options: Any) -> Any:
    options = {"temperature": 1.0, "seed": zlib.crc32(name.encode()) % 1000} | options
    return plan(name, 5, max_tokens, constraint=constraint, stop_ids=(END,), **options)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["small", "large", 3, None]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 500}, "maxItems": 4},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}


def test_a_random_model_gives_instances_of_a_schema_while_others_talk_freely(grammars: Grammars) -> None:
    plans = [asked(f"bound{index}", schema(SCHEMA), seed=index) for index in range(8)]
    free = [plan(f"free{index}", 40, 60, seed=index) for index in range(4)]
    outputs = run(grammars, [*plans, *free])
    texts = set()
    for one in plans:
        assert outputs[one.request_id][-1].finish_reason == "stop", outputs[one.request_id][-1].error
        text = text_of(answer(outputs[one.request_id]))
        jsonschema.validate(json.loads(text), SCHEMA)
        texts.add(text)
    assert len(texts) > 1
    alone = run(grammars, free)
    assert all(answer(outputs[one.request_id]) == answer(alone[one.request_id]) for one in free)


def test_the_same_seed_gives_the_same_answer_after_a_preemption_too(grammars: Grammars) -> None:
    plans = [asked(f"bound{index}", schema(SCHEMA), seed=index, max_tokens=100) for index in range(6)]
    wide, narrow = run(grammars, plans), run(grammars, plans, Model(num_pages=10))
    assert [answer(outputs) for outputs in wide.values()] == [answer(outputs) for outputs in narrow.values()]


def test_what_a_grammar_leaves_no_choice_of_costs_no_steps(grammars: Grammars) -> None:
    model = Model()
    (outputs,) = run(
        grammars, [asked("r", lark('start: "the only thing that may be said is " /[ab]/ " and nothing else"'), logprobs=1)], model
    ).values()
    text = text_of(answer(outputs))
    assert re.fullmatch("the only thing that may be said is [ab] and nothing else", text)
    assert outputs[-1].finish_reason == "stop" and outputs[-1].usage is not None and outputs[-1].usage.completion_tokens == len(text)
    assert sum(len(batch.logits_rows) for batch in model.batches) < 10
    chosen = [logprob for output in outputs for logprob in output.logprobs or () if logprob is not None]
    assert [TOKENS[logprob.id] in (b"a", b"b") for logprob in chosen] == [True]


def test_an_answer_may_end_only_where_the_grammar_does(grammars: Grammars) -> None:
    for seed in range(10):
        (outputs,) = run(grammars, [asked("r", lark("start: /(ab)+c?/"), seed=seed, max_tokens=1000)]).values()
        assert re.fullmatch("(ab)+c?", text_of(answer(outputs))) and outputs[-1].finish_reason == "stop"
    for count in (3, 4, 40):
        (outputs,) = run(grammars, [asked("r", lark(f"start: /(ab){{{count}}}/"), max_tokens=7)]).values()
        assert text_of(answer(outputs)) == ("ab" * count)[:7] and outputs[-1].finish_reason == ("stop" if count == 3 else "length")
    (outputs,) = run(grammars, [asked("r", lark("start: /[ab]{5}/"), min_tokens=50)]).values()
    assert len(answer(outputs)) == 5


def thinking(**options: Any) -> ThinkingPlan:
    return ThinkingPlan(OPEN, CLOSE, (CLOSE, LINE), **options)


@pytest.mark.parametrize("budget", [None, 20])
def test_a_thought_is_free_and_what_follows_it_is_not(budget: int | None, grammars: Grammars) -> None:
    closed = 0
    for seed in range(12):
        one = asked(
            "r",
            lark("start: /[01]{20}/", gap_ids=(LINE,)),
            seed=seed,
            max_tokens=2000,
            thinking=thinking(open=True, max_tokens=budget, loop_guard=False),
        )
        (outputs,) = run(grammars, [one]).values()
        ids = answer(outputs)
        end = ids.index(CLOSE)
        assert end > 0 and ids[end + 1] == LINE and re.fullmatch("[01]{20}", text_of(ids[end + 2 :])), text_of(ids)
        closed += outputs[-1].detail == {"thinking_ended": "budget"}
    assert (closed > 0) == (budget is not None)


def test_a_thought_may_still_begin_and_then_the_grammar_waits(grammars: Grammars) -> None:
    begun = 0
    for seed in range(40):
        one = asked("r", lark("start: /[01]{8}/"), seed=seed, max_tokens=500, thinking=thinking(max_tokens=10), logit_bias={OPEN: 1.0})
        (outputs,) = run(grammars, [one]).values()
        ids = answer(outputs)
        begun += ids[0] == OPEN
        content = ids[ids.index(CLOSE) + 1 :] if ids[0] == OPEN else ids
        assert re.fullmatch("[01]{8}", text_of(content).strip()) and OPEN not in content
    assert 0 < begun < 40


def test_a_trigger_arms_a_grammar_each_time_it_comes(grammars: Grammars) -> None:
    one = asked("r", lark('start: "(" /[0-9]{3}/ ")"', trigger=CALL), max_tokens=1500, logit_bias={CALL: 6.0, END: -100.0})
    (outputs,) = run(grammars, [one]).values()
    text = text_of(answer(outputs))
    calls = re.findall(r"<call>(.{0,5})", text)
    assert len(calls) > 10 and all(re.fullmatch(r"\([0-9]{3}\)", call) for call in calls[:-1])
    assert len(re.sub(r"<call>\([0-9]{3}\)", "", text)) > 50


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        (lark("start: nothing"), "nothing"),
        (schema({"type": "object", "uniqueItems": True, "not": {}}), "not"),
        (schema({"$ref": "https://example.com/schema"}), "example"),
        (schema({"type": "string", "pattern": "(?=a)b"}), ""),
        (lark("start: /a{1000000}/"), ""),
        (schema({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(3)]} for i in range(14)]}), ""),
    ],
)
def test_a_grammar_that_cannot_be_honoured_is_refused_by_name(constraint: ConstraintPlan, why: str, grammars: Grammars) -> None:
    outputs = run(grammars, [asked("bad", constraint), plan("good", 5, 10)])
    (refused,) = outputs["bad"]
    assert refused.finish_reason == "error" and refused.error is not None and refused.error["status"] == 400
    assert "response_format" in refused.error["message"] and why in refused.error["message"]
    assert outputs["good"][-1].finish_reason in ("stop", "length")


def test_an_engine_without_the_text_of_its_tokens_says_so() -> None:
    with pytest.raises(RequestError, match="without the text"):
        Engine(Model()).add(asked("r", schema(SCHEMA)))


def test_a_plan_with_a_form_crosses_to_the_worker() -> None:
    one = asked("r", lark("start: /a/", trigger=3, gap_ids=(1, 2)), thinking=thinking())
    assert type(one).from_wire(json.loads(json.dumps(one.to_wire()))) == one


@pytest.mark.parametrize(
    "constraint",
    [
        schema({"enum": [f"value {index}" for index in range(20_000)]}),
        lark("start: /[bc]a{1000000}/"),
        lark("start: /(.*a.{20}b|.*c.{25}d)*/"),
        lark('start: /[bc]/ "' + "abc def " * 4000 + '"'),
        schema({"type": "object", "properties": {f"p{index}": {"type": "string", "description": "x" * 400} for index in range(2000)}}),
    ],
    ids=["enum", "count", "states", "literal", "megabyte"],
)
def test_a_hard_grammar_holds_nobody_else_up(constraint: ConstraintPlan) -> None:
    """A machine with other work makes gaps too, but not each time. Each time it is compiled anew."""

    def late() -> float:
        with closing(Grammars(TABLE)) as grammars:
            engine = Engine(Model(context_length=1 << 14), grammars=grammars)
            engine.add(plan("other", 5, 1500, seed=1))
            engine.add(asked("hard", constraint, max_tokens=40))
            gaps = []
            last = time.monotonic()
            while engine.has_work:
                outputs = engine.step()
                if any(output.request_id == "other" for output in outputs):
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
        assert len(gaps) == 1500
        return float(np.percentile(gaps, 95))

    assert any(late() < 0.05 for _ in range(5))


def test_characters_of_the_table_are_as_the_tests_want_them() -> None:
    assert len(TOKENS) == 95 <= VOCAB - 2 and ids_of("ab") == [TOKENS.index(b"a"), TOKENS.index(b"b")]
