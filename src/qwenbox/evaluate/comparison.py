"""Two services beside each other, as their clients see them: how fast they read and write, and whether they keep a long prompt whole.

Both get the same texts, in turn; times are those of the client's clock. A prompt's tokens are counted by one tokenizer for both.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, NamedTuple

import httpx2

from qwenbox.errors import QwenboxError, RequestError

from . import needle

_WORDS = (
    *("river", "stone", "lamp", "window", "garden", "silver", "road", "bread", "cloud", "paper"),
    *("mountain", "candle", "winter", "apple", "green", "table", "horse", "letter", "quiet", "morning"),
)
_TIMEOUT = httpx2.Timeout(20.0, read=900.0)


class Sample(NamedTuple):
    """One answer: seconds until its first piece and until its end, its tokens, and how many tokens of the prompt the service says it has read."""

    first_seconds: float
    seconds: float
    num_tokens: int
    prompt_tokens: int | None
    text: str


class Client:
    """A service that carries a text on: Ollama's API, or OpenAI's completions."""

    def __init__(self, name: str, url: str, model: str, *, ollama: bool, key: str | None = None) -> None:
        self.name, self.model, self._ollama = name, model, ollama
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=_TIMEOUT, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(self, prompt: str, new_tokens: int) -> Sample:
        """Greedy. RequestError with the service's words where it refuses."""
        began = time.monotonic()
        first: float | None = None
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        with self._asked(prompt, new_tokens) as parts:
            for text, told in parts:
                usage |= told
                if text:
                    first = first or time.monotonic()
                    pieces.append(text)
        now = time.monotonic()
        return Sample((first or now) - began, now - began, usage.get("written", len(pieces)), usage.get("read"), "".join(pieces))

    @contextmanager
    def _asked(self, prompt: str, new_tokens: int) -> Iterator[Iterator[tuple[str, dict[str, int]]]]:
        if self._ollama:
            path, body = "/api/generate", {"raw": True, "options": {"temperature": 0, "num_predict": new_tokens}}
        else:
            path, body = "/v1/completions", {"temperature": 0, "max_tokens": new_tokens, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", path, json={"model": self.model, "prompt": prompt, "stream": True} | body) as response:
                if not response.is_success:
                    raise RequestError(f"{self.name} answers {response.status_code}: {response.read()[:500].decode('utf-8', 'replace')}")
                yield map(_ollama_part if self._ollama else _openai_part, filter(None, response.iter_lines()))
        except httpx2.HTTPError as error:
            raise QwenboxError(f"{self.name} does not answer ({error}).") from None


def _ollama_part(line: str) -> tuple[str, dict[str, int]]:
    part = json.loads(line)
    if "error" in part:
        raise RequestError(str(part["error"])[:500])
    return part.get("response", ""), {
        ours: part[theirs] for ours, theirs in (("written", "eval_count"), ("read", "prompt_eval_count")) if theirs in part
    }


def _openai_part(line: str) -> tuple[str, dict[str, int]]:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return "", {}
    part = json.loads(line.removeprefix("data: "))
    if "error" in part:
        raise RequestError(str(part["error"])[:500])
    usage = part.get("usage") or {}
    told = {ours: usage[theirs] for ours, theirs in (("written", "completion_tokens"), ("read", "prompt_tokens")) if theirs in usage}
    return "".join(choice.get("text") or "" for choice in part.get("choices", ())), told


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a long prompt with a number at its beginning."""

    sent_tokens: int
    read_tokens: int | None
    found: bool
    refusal: str | None = None

    @property
    def verdict(self) -> str:
        if self.refusal is not None:
            return "refused, and said so"
        # A token or two at the beginning are a matter of taste.
        if self.read_tokens is not None and self.read_tokens < self.sent_tokens - 8:
            return f"cut silently: {self.read_tokens} of {self.sent_tokens} tokens"
        return f"{self.sent_tokens} tokens, the number {'found' if self.found else 'not found'}"


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second of each round, and what became of the long prompt."""

    name: str
    reading: tuple[float, ...]
    writing: tuple[float, ...]
    kept: Kept


def compare(
    clients: Sequence[Client], count: Callable[[str], int], *, prompt_tokens: int, new_tokens: int, rounds: int, long_tokens: int
) -> list[Speeds]:
    """Each round asks all clients the same text, which no cache knows; who is asked first changes. A round before them counts nothing."""
    reading: list[list[float]] = [[] for _ in clients]
    writing: list[list[float]] = [[] for _ in clients]
    for number in range(rounds + 1):
        prompt = _text(prompt_tokens, number)
        num_prompt = count(prompt)
        for index in sorted(range(len(clients)), reverse=bool(number % 2)):
            one = clients[index].ask(prompt, new_tokens)
            if number:
                reading[index].append(num_prompt / one.first_seconds)
                if one.num_tokens > 1:
                    writing[index].append((one.num_tokens - 1) / (one.seconds - one.first_seconds))
    long = needle.hidden(_text(long_tokens, rounds + 1))
    sent = count(long)
    return [
        Speeds(client.name, tuple(read), tuple(written), _kept(client, long, sent))
        for client, read, written in zip(clients, reading, writing, strict=True)
    ]


def _kept(client: Client, prompt: str, sent: int) -> Kept:
    try:
        answer = client.ask(prompt, 12)
    except RequestError as error:
        return Kept(sent, None, found=False, refusal=error.message)
    return Kept(sent, answer.prompt_tokens, needle.is_found(answer.text))


def _text(num_tokens: int, seed: int) -> str:
    """About so many tokens of plain words, which go on as a list."""
    chosen = random.Random(seed)
    return f"List {seed}: " + ", ".join(chosen.choice(_WORDS) for _ in range(num_tokens // 2)) + ","


def table(speeds: Sequence[Speeds]) -> str:
    """Medians in columns; how many times as fast the first is stands only where every round of it was faster than every one of the other."""
    rows = [("", "reading tok/s", "writing tok/s", "a long prompt")]
    rows += [(one.name, _median(one.reading), _median(one.writing), one.kept.verdict) for one in speeds]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    ours = speeds[0]
    for other in speeds[1:]:
        for verb, own, theirs in (("reads", ours.reading, other.reading), ("writes", ours.writing, other.writing)):
            if own and theirs and min(own) > max(theirs):
                lines.append(f"{ours.name} {verb} {statistics.median(own) / statistics.median(theirs):.2f} times as fast as {other.name}.")
    return "\n".join(lines)


def summary(speeds: Sequence[Speeds]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        asdict(one) | {"reading_median": _value(one.reading), "writing_median": _value(one.writing), "verdict": one.kept.verdict} for one in speeds
    ]


def _value(rates: Sequence[float]) -> float | None:
    return statistics.median(rates) if rates else None


def _median(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.1f}" if rates else "-"


def picture(speeds: Sequence[Speeds], title: str) -> str:
    """Bars as SVG: reading and writing, each by the fastest of its kind, with a line from the slowest round to the fastest."""
    height, left, width = 28, 150, 360
    lines: list[str] = []
    y = 44
    for label, rows in (("reading", [one.reading for one in speeds]), ("writing", [one.writing for one in speeds])):
        lines.append(f'<text x="12" y="{y}" font-weight="bold">{label}, tokens per second</text>')
        most = max((rate for rates in rows for rate in rates), default=1.0)
        for number, (one, rates) in enumerate(zip(speeds, rows, strict=True)):
            y += height
            if not rates:
                continue
            middle, low, high = (value / most * width for value in (statistics.median(rates), min(rates), max(rates)))
            colour = "#2f6f4f" if number == 0 else "#8a8f98"
            lines.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{escape(one.name)}</text>')
            lines.append(f'<rect x="{left}" y="{y - 13}" width="{middle:.1f}" height="17" fill="{colour}"/>')
            lines.append(f'<line x1="{left + low:.1f}" x2="{left + high:.1f}" y1="{y - 4.5}" y2="{y - 4.5}" stroke="#000"/>')
            lines.append(f'<text x="{left + width + 10}" y="{y}">{_median(rates)}</text>')
        y += height + 12
    for one in speeds:
        lines.append(f'<text x="12" y="{y}">{escape(f"{one.name}: a long prompt: {one.kept.verdict}")}</text>')
        y += 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{y}" font-family="sans-serif" font-size="13">'
    white = f'<rect width="100%" height="100%" fill="#fff"/><text x="12" y="20" font-size="15">{escape(title)}</text>'
    return "\n".join([head, white, *lines, "</svg>", ""])
