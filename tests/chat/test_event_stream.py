from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.chat.graphemes import MAX_CLUSTER
from qwenbox.chat.stream import MAX_BLANK_LINES, MAX_STOP_LENGTH, EventStream, starts_in_reasoning
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.errors import EngineError, RequestError
from qwenbox.types import Event, SequenceOutput, TokenLogprob, Usage


def run(stream: EventStream, chunks: Sequence[Sequence[int]], *, reason: Any = "length", logprobs: bool = False) -> list[Event]:
    """Feeds ids in chunks, then the end; the log-probability of an id is minus the id."""
    events: list[Event] = []
    for chunk in chunks:
        values = tuple(TokenLogprob(id, -float(id), ((id, -float(id)),)) for id in chunk) if logprobs else None
        events += stream.feed(SequenceOutput("r", tuple(chunk), values))
    return [*events, *stream.feed(SequenceOutput("r", finish_reason=reason))]


def text_of(events: Sequence[Event], kind: str = "content") -> str:
    return "".join(event.text for event in events if event.kind == kind)


def singly(ids: Sequence[int]) -> list[list[int]]:
    return [[id] for id in ids]


# --- characters and graphemes --------------------------------------------------------------------------------------

CLUSTERS = [
    *("a", "é", "e\u0301", "o\u0302\u0301\u0323", "你", "\r\n", "\n", " ", " \u0301", "🙂"),
    *("👍🏽", "👩‍👩‍👧‍👦", "❤\ufe0f", "1\ufe0f\u20e3", "🇨🇳", "🇩🇪", "🏴\U000e0067\U000e0062\U000e0065\U000e007f", "🧑🏿‍🚀"),
    *("한", "한", "각", "ก\u0e33", "นิ", "नि", "क्षि", "กี่", "س\u064e", "ｶ\uff9e", "\u0600\u0661"),
]


@given(clusters=st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=20))
def test_an_event_never_ends_inside_a_grapheme(clusters: list[str], small: Tokenizer) -> None:
    text = "".join(clusters)
    allowed, position = {0}, 0
    for cluster, after in zip(clusters, [*clusters[1:], ""], strict=True):
        position += len(cluster)
        # Neighbours may join by the rules: a line feed after a carriage return, a letter after a prefix.
        if unicodedata.category((after or " ")[0]) not in ("Mn", "Mc", "Me"):
            allowed.add(position)
    ends, position = set(), 0
    events = run(EventStream(small), singly(text.encode()))
    for event in events:
        position += len(event.text)
        ends.add(position)
    assert text_of(events) == text
    assert ends <= allowed | {len(text)}


def test_text_comes_as_soon_as_it_cannot_change(small: Tokenizer) -> None:
    stream = EventStream(small)
    assert [text_of(stream.feed(SequenceOutput("r", (byte,)))) for byte in b"ab\ncd"] == ["", "a", "b\n", "", "c"]


def test_endless_combining_marks_still_flow(small: Tokenizer) -> None:
    stream = EventStream(small)
    shown = 0
    for fed, byte in enumerate(("e" + "\u0301" * 500).encode(), 1):
        shown += len(text_of(stream.feed(SequenceOutput("r", (byte,)))).encode())
        assert fed - shown <= 2 * (MAX_CLUSTER + 2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xff\xfeb", "a\ufffd\ufffdb"),
        (b"\xe4\xbd", "\ufffd"),
        (b"\xe4\xbdA", "\ufffdA"),
        (b"\xf0\x9f\x99", "\ufffd"),
        (b"\xe4\xe4\xbd\xa0", "\ufffd你"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\xaf", "\ufffd\ufffd"),
    ],
)
def test_bytes_that_are_not_utf8_become_replacement_characters(small: Tokenizer, data: bytes, text: str) -> None:
    assert text_of(run(EventStream(small), singly(data))) == text
    assert text_of(run(EventStream(small), [list(data)])) == text


# --- stop strings --------------------------------------------------------------------------------------------------


def test_a_stop_string_across_tokens_ends_the_content_and_is_not_shown(small: Tokenizer) -> None:
    stream = EventStream(small, stop=["</end>"])
    events = stream.feed(SequenceOutput("r", tuple(b"one </en")))
    assert text_of(events) == "one "
    assert not stream.stopped
    events = stream.feed(SequenceOutput("r", tuple(b"d> two")))
    assert stream.stopped
    assert text_of(events) == ""
    assert stream.feed(SequenceOutput("r", tuple(b"three"))) == []
    finish = stream.feed(SequenceOutput("r", finish_reason="cancelled", usage=Usage(7, 99, 3)))
    assert [event.kind for event in finish] == ["finish"]
    assert finish[0].finish_reason == "stop"
    assert finish[0].stop_text == "</end>"
    # The engine ran on to 99 tokens; ten were needed to see the stop string.
    assert finish[0].usage == Usage(7, len(b"one </end>"), 3)


def test_what_only_looked_like_a_stop_string_comes_out(small: Tokenizer) -> None:
    events = run(EventStream(small, stop=["</end>", "aab"]), singly(b"x </en </endless> aaac"))
    assert text_of(events) == "x </en </endless> aaac"
    assert events[-1].finish_reason == "length"
    assert events[-1].stop_text is None


@pytest.mark.parametrize(
    ("stop", "text", "shown", "found"),
    [
        (["aab"], "aaab!", "a", "aab"),
        (["ababc"], "abababcd", "ab", "ababc"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["b", "ab"], "xab", "x", "ab"),
        (["\n\n"], "one\n\ntwo", "one", "\n\n"),
        (["é"], "caf\u00e9s", "caf", "é"),
        (["stop"], "stop", "", "stop"),
        (["\u0301"], "e\u0301x", "e", "\u0301"),
    ],
)
def test_the_stop_string_that_is_complete_first_wins(small: Tokenizer, stop: list[str], text: str, shown: str, found: str) -> None:
    for chunks in (singly(text.encode()), [list(text.encode())]):
        events = run(EventStream(small, stop=stop), chunks)
        assert text_of(events) == shown
        assert events[-1].stop_text == found


@pytest.mark.parametrize("stop", [[""], ["x" * (MAX_STOP_LENGTH + 1)], ["x"] * 17])
def test_stop_strings_are_bounded(small: Tokenizer, stop: list[str]) -> None:
    with pytest.raises(RequestError, match="stop"):
        EventStream(small, stop=stop)


# --- reasoning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "reasoning", "content", "reasoning_tokens"),
    [
        ("<think>\nR\n</think>\n\nC", False, "R", "C", 3),
        ("\nR\n</think>\n\nC", True, "R", "C", 3),
        ("R</think>C", True, "R", "C", 1),
        ("C", False, "", "C", 0),
        ("R", True, "R", "", 1),
        ("<think>\n\nR\n\nS", False, "R\n\nS", "", 4),
        ("<think>R\n", False, "R\n", "", 2),
        ("<think>\n\n</think>\n\nC", False, "", "C", 1),
        ("R</think>", True, "R", "", 1),
        ("R</think>a</think>b<think>c", True, "R", "a</think>b<think>c", 1),
        ("a</think>b", False, "", "a</think>b", 0),
        ("R<tool_call>\n</think>\n<tool_call>x", True, "R<tool_call>", "<tool_call>x", 3),
        ("R<think>S</think>C", True, "R<think>S", "C", 3),
        ("<think>R</think>C\n\n", False, "R", "C\n\n", 1),
        ("\n\nC", False, "", "\n\nC", 0),
        ("\n\n<think>R</think>C", False, "R", "\n\nC", 1),
        ("`<think>`a</think>b", False, "", "`<think>`a</think>b", 0),
    ],
)
def test_thoughts_are_told_from_content_by_token_id(
    small: Tokenizer, text: str, start: bool, reasoning: str, content: str, reasoning_tokens: int
) -> None:
    ids = small.encode(text)
    for chunks in (singly(ids), [ids]):
        events = run(EventStream(small, start_reasoning=start), chunks)
        assert (text_of(events, "reasoning"), text_of(events)) == (reasoning, content)
        assert events[-1].usage == Usage(0, len(ids), 0, reasoning_tokens)


def test_written_out_tags_are_only_text(small: Tokenizer) -> None:
    events = run(EventStream(small), singly(b"<think>no thought</think>"))
    assert text_of(events) == "<think>no thought</think>"


def test_plain_completions_show_the_tags(small: Tokenizer) -> None:
    ids = small.encode("<think>\nR\n</think>\n\nC<|im_end|>")
    assert text_of(run(EventStream(small, split_reasoning=False), [ids])) == "<think>\nR\n</think>\n\nC"
    assert text_of(run(EventStream(small, split_reasoning=False, skip_special=False), [ids])) == "<think>\nR\n</think>\n\nC<|im_end|>"


def test_a_stop_string_inside_a_thought_does_not_count(small: Tokenizer) -> None:
    ids = small.encode("<think>a STOP b</think>\n\nc STOP d")
    events = run(EventStream(small, stop=["STOP", "\n\n"]), singly(ids))
    assert text_of(events, "reasoning") == "a STOP b"
    assert text_of(events) == "c "


def test_a_stop_string_does_not_reach_across_a_thought(small: Tokenizer) -> None:
    events = run(EventStream(small, stop=["\nb"]), singly(small.encode("\n<think>r</think>b")))
    assert text_of(events) == "\nb"
    assert events[-1].stop_text is None


def test_endless_blank_lines_in_a_thought_still_flow(small: Tokenizer) -> None:
    stream = EventStream(small, start_reasoning=True)
    events = stream.feed(SequenceOutput("r", (*b"R", *b"\n" * 100)))
    assert text_of(events, "reasoning") == "R" + "\n" * (100 - MAX_BLANK_LINES)


def test_a_prompt_that_opened_a_thought_is_recognised(small: Tokenizer) -> None:
    head = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert not starts_in_reasoning(small, small.encode(head))
    assert starts_in_reasoning(small, small.encode(head + "<think>\n"))
    assert starts_in_reasoning(small, small.encode(head + "<think>\npart of it"))
    assert not starts_in_reasoning(small, small.encode(head + "<think>\n\n</think>\n\n"))
    assert not starts_in_reasoning(small, small.encode("<think>" + head))
    assert not starts_in_reasoning(small, [])


# --- the end -------------------------------------------------------------------------------------------------------


def test_the_stop_id_is_never_shown(small: Tokenizer) -> None:
    for last in (small.id_of("<|im_end|>"), ord("!")):
        stream = EventStream(small, skip_special=False)
        events = stream.feed(SequenceOutput("r", (*b"hi", last), finish_reason="stop", usage=Usage(3, 3), timings={"queue": 0.5}))
        assert [(event.kind, event.text) for event in events] == [("content", "hi"), ("finish", "")]
        assert events[-1].finish_reason == "stop"
        assert events[-1].ids == (last,)
        assert events[-1].timings == {"queue": 0.5}


def test_special_tokens_are_left_out_of_the_text(small: Tokenizer) -> None:
    ids = small.encode("a<|im_start|>b<|vision_pad|>c")
    assert text_of(run(EventStream(small), singly(ids))) == "abc"


def test_an_error_ends_the_stream_after_the_text_before_it(small: Tokenizer) -> None:
    error = EngineError("broken").to_wire()
    stream = EventStream(small)
    events = stream.feed(SequenceOutput("r", tuple(b"ab"))) + stream.feed(SequenceOutput("r", finish_reason="error", error=error))
    assert text_of(events) == "ab"
    assert events[-1].kind == "error"
    assert events[-1].error == error


# --- log-probabilities and the property that holds all of it together ---------------------------------------------


def test_logprobs_come_with_the_text_of_their_tokens(small: Tokenizer) -> None:
    ids = small.encode("<think>\nR\n</think>\n\n你好!<|im_end|>")
    events = run(EventStream(small), singly(ids), logprobs=True)
    assert [entry.token for event in events if event.kind == "reasoning" for entry in event.logprobs] == ["R"]
    content = [entry for event in events if event.kind == "content" for entry in event.logprobs]
    assert b"".join(entry.bytes for entry in content).decode() == "你好!"
    assert content[0].bytes == b"\xe4\xbd"
    assert content[0].token == "\ufffd"
    assert content[0].logprob == -content[0].id == content[0].top[0].logprob


def expected(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str], start: bool) -> tuple[str, str, str | None]:
    """Reasoning, content and stop string by the plain rules, on the whole answer at once."""
    opening, closing = tokenizer.control_tokens["<think>"], tokenizer.control_tokens["</think>"]
    ids = list(ids)
    before: list[int] = []
    thought: list[int] | None = None
    after = ids
    said = next((index for index, id in enumerate(ids) if id not in tokenizer.blank_ids), len(ids))
    begin = -1 if start else said if ids[said : said + 1] == [opening] else None
    if begin is not None:
        before, rest = ids[: max(begin, 0)], ids[begin + 1 :]
        end = rest.index(closing) if closing in rest else len(rest)
        thought, after = rest[:end], rest[end + 1 :]
        ended = end < len(rest)

    def text(part: Sequence[int]) -> str:
        shown = (id for id in part if not tokenizer.is_special(id))
        return b"".join(map(tokenizer.token_bytes, shown)).decode("utf-8", errors="replace")

    def cut(content: str) -> tuple[str, str | None]:
        found = min(((content.index(one) + len(one), -len(one), one) for one in stop if one in content), default=None)
        return (content, None) if found is None else (content[: found[0] + found[1]], found[2])

    if thought is None:
        content, stopped = cut(text(after))
        return "", content, stopped
    content, stopped = cut(text(before))
    if stopped is not None:
        return "", content, stopped
    reasoning = text(thought).lstrip("\n")
    if ended:
        kept = reasoning.rstrip("\n")
        reasoning = kept + "\n" * max(len(reasoning) - len(kept) - MAX_BLANK_LINES, 0)
    tail, stopped = cut(text(after).lstrip("\n"))
    return reasoning, content + tail, stopped


TOKEN_TEXTS = [
    "<think>",
    "</think>",
    "<|im_start|>",
    "<tool_call>",
    "\n",
    "\n\n",
    "a",
    "b",
    "ab",
    "你",
    "é",
    "e\u0301",
    "👩‍👧",
    "🇨🇳",
    "hello",
    "\r\n",
]


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_any_cutting_into_outputs_gives_the_same_answer(data: st.DataObject, small: Tokenizer) -> None:
    pieces = data.draw(st.lists(st.sampled_from(TOKEN_TEXTS).map(small.encode) | st.integers(0, 255).map(lambda byte: [byte]), max_size=40))
    ids = [id for piece in pieces for id in piece]
    stop = data.draw(st.lists(st.text("ab\n你", min_size=1, max_size=4), max_size=3))
    start = data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=10)))
    chunks = [ids[low:high] for low, high in zip([0, *cuts], [*cuts, len(ids)], strict=True)]

    def answer(chunks: Sequence[Sequence[int]]) -> tuple[Any, ...]:
        stream = EventStream(small, stop=stop, start_reasoning=start)
        events = run(stream, chunks, logprobs=True)
        assert [event.kind for event in events].count("finish") == 1
        assert all(event.text for event in events[:-1])
        fed = [id for event in events for id in event.ids]
        assert fed == ids[: len(fed)]
        assert stream.stopped or len(fed) == len(ids)
        parts = [
            (text_of(events, kind), [entry for event in events if event.kind == kind for entry in event.logprobs])
            for kind in ("reasoning", "content")
        ]
        return *parts, events[-1].stop_text, events[-1].finish_reason, events[-1].usage, fed

    whole = answer([ids])
    assert answer(singly(ids)) == whole
    assert answer(chunks) == whole
    assert (whole[0][0], whole[1][0], whole[2]) == expected(small, ids, stop, start)


@pytest.mark.parametrize(
    ("unit", "stop", "start"),
    [("a", ["a" * 1000 + "b"] * 4, False), ("\n", (), True), ("\u0301", (), False), ("</thin", (), True), ("a\n", ["\n\n"], False)],
)
def test_hostile_streams_cost_the_same_a_token_at_any_length(small: Tokenizer, unit: str, stop: Sequence[str], start: bool) -> None:
    """What is held back, which every output is matched against, stays bounded: so the time is linear."""
    stream = EventStream(small, stop=stop, start_reasoning=start)
    ids = (unit * 20_000).encode()
    shown = ""
    for position, id in enumerate(ids, 1):
        shown += "".join(event.text for event in stream.feed(SequenceOutput("r", (id,))))
        if unit != "\n":  # line ends at the start of a thought are dropped
            assert position - len(shown.encode()) <= max(map(len, stop), default=0) + 4 * MAX_CLUSTER
