"""Token ids in, events out: the one machine behind streaming and plain answers, so they cannot differ."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from qwenbox.chat.graphemes import cut
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.chat.toolcall import Part, ToolScanner
from qwenbox.errors import RequestError
from qwenbox.types import Event, FinishReason, SequenceOutput, TextLogprob, TokenLogprob, ToolCallPiece, Usage

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_BLANK_LINES = 32
"""Line ends at the end of a thought that are held back, to be dropped if the thought ends there."""

THINK, THINK_END = "<think>", "</think>"


class EventStream:
    """Turns the outputs of one sequence into events.

    * Text is cut only between grapheme clusters (a cluster of more than 32 code points is cut); what is held back comes with later text.
      Bytes that are not UTF-8 become U+FFFD.
    * A stop string ends the content: text before it comes out, it and all after it do not, `stopped` is True and the caller cancels the
      sequence. The event "finish" comes when the sequence's last output is fed. Stop strings do not count inside a thought.
    * `<think>` and `</think>`, by id, divide reasoning from content. Line ends at the start of a thought, before `</think>` and after it are
      dropped. An answer has one thought at most, and nothing but blanks before it: other tags are text. `split_reasoning=False` (plain
      completions) shows all as content.
    * With `tools` the content is read for calls (see `toolcall.py`), which become "tool_call" events; the answer then ends with "tool_calls". What
      ends the scanner ends the answer, as a stop string does.
    * Special tokens are left out with `skip_special`; the stop id that ended a sequence always is.
    * Each token's id and log-probability come with the event that holds its first visible text; ids of invisible tokens come with the next
      event. Log-probabilities of invisible tokens are left out.

    Linear time in the number of characters, for any cutting of the ids into outputs the same text, ids and log-probabilities.
    RequestError for stop strings that are empty, too long or too many.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        start_reasoning: bool = False,
        skip_special: bool = True,
        split_reasoning: bool = True,
        tools: ToolScanner | None = None,
    ) -> None:
        self.stopped = False
        self.stop_text: str | None = None
        self._tokenizer = tokenizer
        self._stops = [_StopString(text) for text in _checked(stop)]
        self._hidden = tokenizer.special_ids if skip_special else frozenset()
        self._open = tokenizer.id_of(THINK) if split_reasoning else None
        self._close = tokenizer.id_of(THINK_END) if split_reasoning else None
        self._tools = tools
        self._reasoning = start_reasoning and split_reasoning
        self._may_think = True  # nothing has been said: a thought may begin
        self._at_start = self._reasoning  # line ends are dropped until other text comes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = False  # the decoder holds the start of a character
        self._held = ""
        self._count = 0  # characters decoded so far; `_held` is the last of them
        self._tokens: deque[_Token] = deque()
        self._loose_ids: list[int] = []  # ids of dropped text, for the next event
        self._completion_tokens = 0
        self._reasoning_tokens = 0
        self._events: list[Event] = []

    def feed(self, output: SequenceOutput) -> list[Event]:
        """Events of one output; at most one of a kind, and of a call, in a row."""
        if self._takes_plainly(output):
            return self._plain(output.ids[0])
        logprobs = output.logprobs or (None,) * len(output.ids)
        last = len(output.ids) - 1 if output.finish_reason == "stop" else -1
        for index, (id, logprob) in enumerate(zip(output.ids, logprobs, strict=True)):
            if self.stopped:
                break
            self._token(id, logprob, visible=index != last)
            if self._tools is not None:
                self._release()  # a call that ends the answer does so at its last token
        if output.finish_reason is None:
            self._release()
        else:
            self._finish(output)
        events, self._events = self._events, []
        return events

    # --- the common case ---------------------------------------------------------------------------------------------

    def _takes_plainly(self, output: SequenceOutput) -> bool:
        """Whether all that the output can do is to add one token of plain letters to the content."""
        return (
            len(output.ids) == 1
            and output.finish_reason is None
            and output.logprobs is None
            and output.ids[0] not in self._hidden
            and not (self._reasoning or self._may_think or self._stops or self._partial or self._at_start or self.stopped)
            and self._held.isascii()
            and self._tokenizer.is_plain(output.ids[0])
        )

    def _plain(self, id: int) -> list[Event]:
        """What `_token` and `_release` do to such a token: between plain letters text may be cut, after the last one not yet."""
        text = self._tokenizer.token_bytes(id).decode("ascii")
        self._completion_tokens += 1
        self._tokens.append(_Token(self._count, self._count + len(text), id, None))
        self._count += len(text)
        self._held += text
        self._emit(len(self._held) - 1)
        events, self._events = self._events, []
        return events

    # --- tokens to held text ---------------------------------------------------------------------------------------

    def _token(self, id: int, logprob: TokenLogprob | None, visible: bool) -> None:
        self._completion_tokens += 1
        if self._reasoning and id == self._close:
            self._switch(reasoning=False)
            visible = False
        elif self._reasoning:
            self._reasoning_tokens += 1
        elif self._may_think:
            if id == self._open:
                self._switch(reasoning=True)
                visible = False
            elif id not in self._tokenizer.blank_ids:
                self._may_think = False
        if not visible or id in self._hidden:
            self._tokens.append(_Token(self._count, self._count, id, None))
            return
        data = self._tokenizer.token_bytes(id)
        text = self._decoder.decode(data)
        start = self._count
        self._partial = data[-1] >= 0x80 and bool(self._decoder.getstate()[0])
        self._tokens.append(_Token(start, start + len(text) + self._partial, id, logprob))
        if text:
            self._append(text)

    def _append(self, text: str) -> None:
        self._count += len(text)
        if self._at_start:
            rest = text.lstrip("\n")
            if not rest:
                self._drop_tokens(self._count)
                return
            self._at_start = False
            text = rest
        if self._stops and not self._reasoning:
            match = self._match(text)
            if match is not None:
                self.stopped = True
                end, stop = match
                self.stop_text = stop
                self._count -= len(text) - end
                self._held += text[:end]
                self._emit(len(self._held) - len(stop))
                self._end_tools("stop")
                self._drop_tokens(self._count)
                self._held = ""
                return
        self._held += text

    def _match(self, text: str) -> tuple[int, str] | None:
        """End in `text` of the stop string that is complete first, and the longest if several are."""
        for index, char in enumerate(text, 1):
            complete = [stop.text for stop in self._stops if stop.advance(char)]
            if complete:
                return index, max(complete, key=len)
        return None

    def _switch(self, reasoning: bool) -> None:
        self._flush()
        self._end_tools(None)
        self._reasoning, self._may_think, self._at_start = reasoning, False, True
        for stop in self._stops:
            stop.matched = 0

    # --- held text to events ---------------------------------------------------------------------------------------

    def _release(self) -> None:
        """Emits what no later token can change."""
        held = self._held
        if not held:
            return
        if self._reasoning:
            back = min(len(held) - len(held.rstrip("\n")), MAX_BLANK_LINES)
        else:
            back = max((stop.matched for stop in self._stops), default=0)
        self._emit(cut(held, len(held) - back))

    def _flush(self, ended: bool = True) -> None:
        """Emits all that is held; a thought that `ended` loses its last line ends."""
        if self._partial:
            self._partial = False
            self._append(self._decoder.decode(b"", final=True))
        held = self._held
        if self._reasoning and ended:
            blank = min(len(held) - len(held.rstrip("\n")), MAX_BLANK_LINES)
            self._emit(len(held) - blank)
            self._drop_tokens(self._count)
            self._held = ""
        else:
            self._emit(len(held))

    def _emit(self, length: int) -> None:
        if length <= 0:
            return
        text, self._held = self._held[:length], self._held[length:]
        if self._reasoning or self._tools is None:
            self._add("reasoning" if self._reasoning else "content", text, self._count - len(self._held))
        else:
            self._add_parts(self._tools, self._tools.feed(text))

    def _add_parts(self, tools: ToolScanner, parts: list[Part]) -> None:
        reached = self._count - len(self._held) - tools.num_held - sum(part.length for part in parts)
        for part in parts:
            reached += part.length
            if part.call is not None:
                self._add("tool_call", "", reached, part.call)
            elif part.text:
                self._add("content", part.text, reached)
            else:
                self._drop_tokens(reached)
        self.stopped = self.stopped or tools.over

    def _end_tools(self, reason: str | None) -> None:
        """The content ends here, or is interrupted by a thought."""
        if self._tools is not None and not self._reasoning:
            self._add_parts(self._tools, self._tools.finish(reason))

    def _add(self, kind: Literal["reasoning", "content", "tool_call"], text: str, reached: int, call: ToolCallPiece | None = None) -> None:
        """An event of the characters up to `reached`, or more of the last one."""
        ids, self._loose_ids = self._loose_ids, []
        logprobs: list[TextLogprob] = []
        tokens = self._tokens
        while tokens and tokens[0].start < reached:
            token = tokens.popleft()
            ids.append(token.id)
            if token.logprob is not None:
                logprobs.append(text_logprob(self._tokenizer, token.logprob))
        if kind == "tool_call":
            logprobs = []
        if self._events and self._events[-1].kind == kind:
            before = self._events[-1]
            if call is None or before.call is None or call.number == before.call.number:
                self._events.pop()
                text, ids, logprobs = before.text + text, [*before.ids, *ids], [*before.logprobs, *logprobs]
                if call is not None and before.call is not None:
                    call = before.call._replace(arguments=before.call.arguments + call.arguments)
        self._events.append(Event(kind, text, logprobs=tuple(logprobs), ids=tuple(ids), call=call))

    def _drop_tokens(self, reached: int) -> None:
        """Text up to `reached` will never be seen: nor will the tokens that end there."""
        while self._tokens and self._tokens[0].end <= reached:
            self._loose_ids.append(self._tokens.popleft().id)

    def _finish(self, output: SequenceOutput) -> None:
        if not self.stopped:
            self._flush(ended=False)
            self._end_tools(output.finish_reason)
        ids = (*self._loose_ids, *(token.id for token in self._tokens))
        usage = replace(output.usage or Usage(completion_tokens=self._completion_tokens), reasoning_tokens=self._reasoning_tokens)
        if output.finish_reason == "error":
            self._events.append(Event("error", ids=ids, finish_reason="error", usage=usage, timings=output.timings, error=output.error))
            return
        reason: FinishReason | Literal["tool_calls"] | None = output.finish_reason
        if self.stopped:
            # The sequence ran on until it was cancelled; what came after its end is nobody's.
            reason, usage = "stop", replace(usage, completion_tokens=self._completion_tokens)
        detail: dict[str, Any] = {}
        if self._tools is not None:
            if self._tools.calls and reason == "stop":
                reason = "tool_calls"
            if self._tools.error is not None:
                detail["tool_error"] = {"index": self._tools.calls, "message": self._tools.error}
        self._events.append(
            Event("finish", ids=ids, finish_reason=reason, stop_text=self.stop_text, detail=detail, usage=usage, timings=output.timings)
        )


def text_logprob(tokenizer: Tokenizer, logprob: TokenLogprob) -> TextLogprob:
    """A token's log-probability with its text and exact bytes, and those of its alternatives."""

    def with_text(id: int, value: float, top: tuple[TextLogprob, ...] = ()) -> TextLogprob:
        data = tokenizer.token_bytes(id)
        return TextLogprob(id, data.decode("utf-8", errors="replace"), data, value, top)

    return with_text(logprob.id, logprob.logprob, tuple(with_text(id, value) for id, value in logprob.top))


def starts_in_reasoning(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thought: its last `<think>` after the last turn began is not closed."""
    begin, opening, closing = (tokenizer.id_of(name) for name in ("<|im_start|>", THINK, THINK_END))
    for id in reversed(prompt_ids):
        if id in (begin, closing, opening):
            return id == opening
    return False


class _Token(NamedTuple):
    """A token and the characters [start, end) it has a part in; a token without text has start == end."""

    start: int
    end: int
    id: int
    logprob: TokenLogprob | None


class _StopString:
    """Looks for one string in a stream of characters (Knuth, Morris and Pratt). `matched`: how much of it the last characters are."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = [0] * (len(text) + 1)  # length of the longest proper border of each beginning
        border = 0
        for index in range(1, len(text)):
            while border and text[index] != text[border]:
                border = self._fallback[border]
            border += text[index] == text[border]
            self._fallback[index + 1] = border

    def advance(self, char: str) -> bool:
        """Takes one character; True where the string is complete with it."""
        matched = self.matched
        while matched and self.text[matched] != char:
            matched = self._fallback[matched]
        self.matched = matched + (self.text[matched] == char)
        return self.matched == len(self.text)


def _checked(stop: Sequence[str]) -> Sequence[str]:
    if len(stop) > MAX_STOPS:
        raise RequestError(f"stop: {len(stop)} strings, at most {MAX_STOPS}", param="stop")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise RequestError(f"stop: a string of {len(text)} characters; each must have 1 to {MAX_STOP_LENGTH}", param="stop")
    return stop
