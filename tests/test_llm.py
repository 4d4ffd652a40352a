"""`LocalLLM` as scripts use it, over an engine without a model; `LLM` over the real 0.5B."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

from qwenbox import LLM
from qwenbox.chat.chat import FAMILY_DEFAULTS
from qwenbox.chat.template import template_for
from qwenbox.chat.tokenizer import BYTE_OF, AddedToken, Tokenizer
from qwenbox.errors import ContextLengthError, NotFoundError, OverloadedError, RequestError, UsageError, WorkerDiedError
from qwenbox.llm import LocalLLM, model_name, request_params
from qwenbox.types import GenerationPlan, Message, OutputFormat, RequestParams, SequenceOutput
from tests.fakes import FakeEngine, Script, byte_chat, byte_tokenizer_ids

TEXT = Script().text


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def llm(engine: FakeEngine) -> Iterator[LocalLLM]:
    with LocalLLM(engine, byte_chat(), "tiny") as llm:
        yield llm


def test_a_chat_is_a_reply(llm):
    reply = llm.chat("Hi")
    assert (reply.text, reply.reasoning, reply.finish_reason) == (TEXT, "", "stop")
    assert reply.usage.completion_tokens == len(TEXT.encode()) + 1


def test_messages_are_ours_or_plain_mappings(llm, engine):
    llm.chat([Message("user", "Hi")])
    llm.chat([{"role": "user", "content": "Hi"}])
    llm.chat("Hi")
    assert len({plan.prompt_ids for plan in engine.plans}) == 1
    with pytest.raises(UsageError, match="message"):
        llm.chat([{"rolle": "user"}])


def test_a_stream_ends_with_finish_and_says_what_the_chat_says(llm):
    events = list(llm.stream("Hi"))
    assert "".join(event.text for event in events) == TEXT
    assert [event.kind for event in events].count("finish") == 1
    assert events[-1].kind == "finish"


def test_the_asynchronous_stream_is_the_same(llm):
    async def read() -> list[str]:
        return [event.text async for event in llm.astream("Hi")]

    assert "".join(asyncio.run(read())) == TEXT


def test_a_stream_that_is_dropped_ends_the_request(llm, engine):
    engine.script = Script("abc" * 1000)
    engine.hold(lambda plan, position: position >= 10)
    stream = llm.stream("Hi")
    next(stream)
    stream.close()
    engine.wait_for(lambda engine: engine.num_running == 0)


def test_an_asynchronous_stream_that_is_cancelled_ends_the_request(llm, engine):
    engine.pause()

    async def read() -> None:
        async for _ in llm.astream("Hi"):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        await asyncio.to_thread(engine.wait_for, lambda engine: engine.num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    engine.wait_for(lambda engine: engine.num_running == 0)


def test_the_replies_of_a_batch_are_in_order_and_run_together(llm, engine):
    engine.script = Script(reply=lambda plan: [*b"answer ", plan.prompt_ids[plan.prompt_ids.index(ord("#")) + 1], 258])
    engine.pause()
    threading.Timer(0, lambda: (engine.wait_for(lambda e: e.num_running == 5), engine.resume())).start()
    replies = llm.batch([f"#{number}" for number in range(5)], max_tokens=20)
    assert [reply.text for reply in replies] == [f"answer {number}" for number in range(5)]


def test_a_completion_is_the_bare_text(llm, engine):
    assert llm.complete("ab", max_tokens=5).text == "Hello"
    assert llm.complete([97, 98], max_tokens=5).text == "Hello"
    assert [plan.prompt_ids for plan in engine.plans] == [(97, 98)] * 2


def test_a_stop_may_be_one_string(llm, engine):
    engine.script = Script("one two three")
    assert llm.chat("Hi", stop=" t").text == "one"


def test_an_unknown_parameter_is_named(llm):
    with pytest.raises(UsageError, match=r"temprature.*temperature"):
        llm.chat("Hi", temprature=1)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(llm):
    with pytest.raises(ContextLengthError, match=r"5000 tokens.*4096"):
        llm.complete("x" * 5000)


def test_an_answer_gets_what_the_window_has_left(llm, engine):
    llm.complete("x" * 4000, max_tokens=1000)
    assert engine.plans[0].max_tokens == 96


def test_the_pages_bound_the_window_too(llm, engine):
    engine.num_pages = 2
    assert llm.context_length == 64


def test_errors_of_the_engine_are_raised_as_what_they_are(llm, engine):
    with pytest.raises(RequestError) as caught:
        llm.complete([10**6], max_tokens=1)
    assert caught.value.param == "prompt"
    engine.pause()
    threading.Timer(0, lambda: (engine.wait_for(lambda e: e.num_running == 1), engine.fail(WorkerDiedError("it died")))).start()
    with pytest.raises(WorkerDiedError, match="it died"):
        llm.chat("Hi")


def test_more_at_least_than_at_most_is_refused(llm):
    with pytest.raises(RequestError, match="min_tokens is 9"):
        llm.chat("Hi", min_tokens=9, max_tokens=5)


def test_a_reader_that_falls_behind_gets_an_error_and_bounded_memory(llm, engine, monkeypatch):
    monkeypatch.setattr("qwenbox.generation.MAX_UNREAD", 50)
    engine.script = Script("x" * 3000)
    stream = llm.stream("Hi")
    assert next(stream).text
    engine.wait_for(lambda engine: engine.num_running == 0)
    events = list(stream)
    assert events[-1].kind == "error"
    assert "too slowly" in events[-1].error["message"]
    assert len(events) <= 60


def test_requests_without_a_seed_differ_and_choices_share_one(llm, engine):
    llm.chat("Hi")
    llm.chat("Hi")
    assert engine.plans[0].sampling.seed != engine.plans[1].sampling.seed


def test_waiting_for_a_model_ends(llm, engine):
    engine.state_now = type(engine.state_now)("loading", 0.5)
    with pytest.raises(OverloadedError, match="50%"):
        llm.wait_ready(0.1)


def test_a_model_is_known_by_the_last_part_of_its_path():
    assert [model_name(name) for name in ("qwen2.5-coder-0.5b", "/a/b/Model-Q4.gguf", "dir/Qwen3-8B/")] == [
        "qwen2.5-coder-0.5b",
        "Model-Q4",
        "Qwen3-8B",
    ]


def test_what_cannot_be_opened_is_an_error_that_says_the_way_out():
    with pytest.raises(NotFoundError, match=r"qwen2\.5-coder"):
        LLM("no-such-model")
    with pytest.raises(UsageError, match=r"thread.*threads"):
        LLM("no-such-model", thread=1)


@pytest.mark.weights
def test_a_notebook_has_chat_stream_batch_and_logits(real_model):
    with LLM(str(real_model("qwen2.5-coder-0.5b")), num_pages=128) as llm:
        reply = llm.chat("Say hello.", max_tokens=12, temperature=0)
        assert "hello" in reply.text.lower()
        assert "".join(event.text for event in llm.stream("Say hello.", max_tokens=12, temperature=0)) == reply.text
        assert [one.text for one in llm.batch(["Say hello."] * 2, max_tokens=12, temperature=0)] == [reply.text] * 2
        ids = llm.tokenizer.encode("The quick brown fox")
        logits = llm.logits(ids)
        assert logits.shape == (len(ids), 151936)
        assert logits.dtype == np.float32
        assert np.array_equal(logits, llm.logits("The quick brown fox"))
        assert llm.complete(ids, max_tokens=1, temperature=0, repetition_penalty=1.0).text == llm.tokenizer.decode([int(logits[-1].argmax())])


def test_a_batch_never_asks_more_of_the_engine_than_it_takes(llm, engine, monkeypatch):
    engine.max_requests = 7
    running, submit = [], engine.submit
    monkeypatch.setattr(engine, "submit", lambda plan, deliver: (submit(plan, deliver), running.append(engine.num_running)))
    assert len(llm.batch([f"question {i}" for i in range(20)])) == 20
    assert max(running) <= 7


def test_a_long_answer_of_a_batch_keeps_nobody_waiting(llm, engine):
    engine.max_requests, engine.step_seconds = 3, 0.001
    engine.script = Script(reply=lambda plan: [*b"a" * (3000 if ord("#") in plan.prompt_ids else 2), 258])
    with closing(llm.replies(["#", *("short" for _ in range(10))])) as replies:
        assert sorted(index for index, _ in islice(replies, 10)) == list(range(1, 11))


def test_a_batch_may_be_larger_than_the_queue(llm, engine):
    replies = llm.batch([f"question {i}" for i in range(300)])
    assert [reply.text for reply in replies] == [TEXT] * 300
    assert len(engine.plans) == 300


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("max_tokens", "5"), ("max_tokens", True), ("seed", "x"), ("stop", 5), ("n", 2), ("temperature", "hot"), ("stop_ids", 3)],
)
def test_a_parameter_that_cannot_be_is_named(llm, name, value):
    with pytest.raises(UsageError, match=name):
        llm.chat("Hi", **{name: value})


def test_a_gap_is_asked_for_by_the_models_own_tokens() -> None:
    names = ["<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"]
    tokenizer = Tokenizer(BYTE_OF, [], [AddedToken(256 + index, name, special=index < 1) for index, name in enumerate(names)])
    with LocalLLM(FakeEngine(), replace(byte_chat(), tokenizer=tokenizer), "coder") as llm:
        assert llm.encode_infill("ab", "cd") == [257, 97, 98, 258, 99, 100, 259]
        assert llm.encode_infill([97], "c") == [257, 97, 258, 99, 259]
        assert llm.infill_stop_ids() == (257, 258, 259, 260)


# --- thinking ----------------------------------------------------------------------------------------------------------


def prompts(engine: FakeEngine, family: str, nature: Any, **asked: Any) -> tuple[str, GenerationPlan]:
    chat = replace(byte_chat(), family=family, template=template_for(family, None), nature=nature, defaults=FAMILY_DEFAULTS[family])
    with LocalLLM(engine, chat, "tiny") as llm:
        llm.chat("Hi", **asked)
        return llm.tokenizer.decode(engine.plans[-1].prompt_ids), engine.plans[-1]


def test_a_hybrid_model_is_told_by_its_template_and_sampled_as_its_mode_wants(engine):
    prompt, plan = prompts(engine, "qwen3", "hybrid")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert (plan.sampling.temperature, plan.sampling.top_p) == (0.6, 0.95)
    prompt, plan = prompts(FakeEngine(), "qwen3", "hybrid", thinking="off")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (plan.sampling.temperature, plan.sampling.top_p) == (0.7, 0.8)
    _, plan = prompts(FakeEngine(), "qwen3", "hybrid", thinking="off", temperature=0)
    assert (plan.sampling.temperature, plan.sampling.top_p) == (0.0, 0.8)
    assert plan.thinking is not None and plan.thinking.max_tokens == 0  # one that begins all the same ends at once


def test_a_model_that_always_thinks_is_cut_short_where_nobody_wants_it(engine):
    prompt, plan = prompts(engine, "qwen3-thinking-2507", "always")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert plan.thinking is not None and plan.thinking.open
    prompt, plan = prompts(FakeEngine(), "qwen3-thinking-2507", "always", thinking="off")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert plan.thinking is not None and not plan.thinking.open


def test_a_model_that_never_thinks_is_left_alone(engine):
    for asked in ({}, {"thinking": "on"}):
        prompt, plan = prompts(FakeEngine(), "qwen2.5", "never", **asked)
        assert prompt.endswith("<|im_start|>assistant\n")
        assert plan.thinking is not None and plan.thinking.max_tokens == 0


def test_a_form_makes_a_hybrid_model_begin_its_thought_so_that_the_form_knows_where_to_begin(llm):
    prompt = llm.chat_prompt([Message("user", "Hi")], (), RequestParams(output_format=OutputFormat("json_object")))
    assert llm.tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize("wrong", ["yes", -1, 1.5, None, []])
def test_thinking_is_a_word_or_a_number_of_tokens(llm, wrong):
    with pytest.raises(UsageError, match="thinking"):
        llm.chat("Hi", thinking=wrong)


# --- an answer tried without thought ----------------------------------------------------------------------------------

SUM = "What is 6*7?"
THOUGHTFUL = "<think>\n6*7=42\n</think>\n\n42"


def thinks(plan: GenerationPlan) -> list[int]:
    """Thinks unless the prompt has an empty thought."""
    plain = byte_tokenizer_ids("</think>")[0] in plan.prompt_ids
    return [*byte_tokenizer_ids("41" if plain else THOUGHTFUL), *plan.stop_ids[:1]]


@pytest.fixture
def sure(monkeypatch) -> None:
    """The fake engine's tokens are all likely enough."""
    monkeypatch.setattr("qwenbox.chat.trial.SURE", 0.1)


@pytest.mark.usefixtures("sure")
def test_an_answer_that_the_model_is_sure_of_is_kept_without_thought(llm, engine):
    engine.script.reply = thinks
    *events, last = llm.stream(SUM, thinking="auto")
    assert [(event.kind, event.text) for event in events] == [("content", "4"), ("content", "1")]
    assert not any(event.logprobs for event in events), "nobody asked for them"
    said = last.detail["thinking"]
    assert (said["mode"], said["depth"]) == ("off", "off") and said["reason"].endswith("; the model was sure of its answer")
    assert len(engine.plans) == 1 and last.usage.completion_tokens == 3


@pytest.mark.parametrize("tokens_per_step", [1, 100])
def test_an_answer_that_the_model_is_not_sure_of_is_thought_about(llm, engine, tokens_per_step):
    engine.script.reply, engine.tokens_per_step = thinks, tokens_per_step
    *events, last = llm.stream(SUM, thinking="auto", seed=5)
    assert "".join(event.text for event in events if event.kind == "reasoning") == "6*7=42"
    assert "".join(event.text for event in events if event.kind == "content") == "42"
    said = last.detail["thinking"]
    assert (said["mode"], said["depth"]) == ("on", "short") and said["reason"].endswith("; the model was not sure without thought")
    tried, thought = engine.plans
    assert said["tried_tokens"] == min(tokens_per_step, 3)
    assert last.usage.completion_tokens == len(thinks(thought)) + said["tried_tokens"], "what was thrown away counts as thought"
    assert tried.sampling.logprobs == 0 and thought.sampling.logprobs is None
    assert thought.thinking.max_tokens == 512


def test_a_batch_as_large_as_the_engine_takes_may_try_all_its_answers(llm, engine):
    engine.script.reply, engine.max_requests = thinks, 3
    assert [reply.text for reply in llm.batch([SUM] * 7, thinking="auto")] == ["42"] * 7


def test_who_leaves_while_an_answer_is_tried_leaves_nothing_behind(llm, engine):
    engine.script.reply = thinks
    engine.pause()
    prompt, bell = llm.chat_prompt([Message("user", SUM)], (), request_params({"thinking": "auto"})), threading.Event()
    generation = llm.start([prompt], RequestParams(), bell.set, chat=True)
    generation.cancel()
    assert bell.wait(60)
    assert [event.finish_reason for _, event in generation.take()] == ["cancelled"]
    assert len(engine.plans) == 1


def test_what_has_piled_up_is_read_in_turns(llm, engine, monkeypatch):
    monkeypatch.setattr("qwenbox.generation.TURN_SECONDS", -1)
    engine.pause()
    bell = threading.Event()
    generation = llm.start([llm.text_prompt([1], RequestParams())], RequestParams(), bell.set, chat=False)
    for letter in b"abc":
        generation.deliver(SequenceOutput(engine.plans[0].request_id, (letter,)))
    taken = []
    for _ in range(3):
        assert bell.is_set(), "the reader is woken for what is left"
        bell.clear()
        taken.append("".join(event.text for _, event in generation.take()))
    assert taken == ["", "a", "b"], "a letter is told when the next one has come"
    assert not bell.is_set()
    generation.close()


@pytest.mark.parametrize("request_", [{"tools": [{"type": "function", "function": {"name": "f"}}]}, {"messages": "Hi"}, {"thinking": "on"}])
def test_nothing_is_tried_with_tools_in_talk_or_where_somebody_decided(llm, engine, request_):
    llm.chat(**{"messages": SUM, "thinking": "auto"} | request_)
    assert [plan.sampling.logprobs for plan in engine.plans] == [None]
