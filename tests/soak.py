"""Thousands of requests of every kind, faults among them, over the real service and its real worker; nothing may be lost and nothing may grow.

    python tests/soak.py [--requests 10000] [--model MODEL] [--people 8] [--seed 0]

Without a model a tiny random one is made. The engine checks its books after every step, and has so few pages that sequences give way to each other.
Each fault is at least one request in twenty. In the last third no worker is killed, so that one lives long enough to show what grows in it. The last
line is JSON; the exit code is 1 where something was lost or grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwenbox.engine import supervisor  # noqa: E402
from qwenbox.engine.client import EngineOptions, WorkerEngine  # noqa: E402
from qwenbox.hub import resolve  # noqa: E402
from qwenbox.llm import LocalLLM, open_chat  # noqa: E402
from qwenbox.server.serve import Service  # noqa: E402
from qwenbox.settings import Settings  # noqa: E402
from tests.checkpoint import write_checkpoint  # noqa: E402
from tests.fakes import byte_chat  # noqa: E402

KINDS = {
    "whole": 28, "stream": 14, "common beginning": 10, "choices": 6, "stop": 6,
    "malformed": 6, "too long": 6, "left before the answer": 6, "left in a stream": 6, "worker killed": 6, "worker stopped for a while": 6,
}  # fmt: skip
"""Of a hundred requests."""
STATUS = {"malformed": {400}, "too long": {400}}
"""Of the answers to these; the others end well (200) or say that a worker died meanwhile."""
WORKER_CODES = {"worker_died", "poisoned_request", "model_loading"}
ANSWER_SECONDS = 300.0
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""The event loop's own threads, which it starts one by one and keeps."""
GRAMMAR_THREADS = 2
"""A worker's, which begin when it is idle for the first time, or a form is asked for."""
MOST_GROWTH = 24 << 20
"""Bytes that the memory of a process may grow after it has warmed up: allocators keep what they had at the busiest moment."""
COMMON = "You are the assistant of a school library. Answer in one sentence. " * 3


@dataclass
class Report:
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--model")
    parser.add_argument("--people", type=int, default=8, help="requests at a time")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    summary = soak(asked.requests, asked.model, asked.people, asked.seed)
    print(json.dumps(summary))
    sys.exit(1 if summary["wrong"] else 0)


def soak(requests: int, model: str | None = None, people: int = 8, seed: int = 0) -> dict[str, Any]:
    """What happened; `wrong` says what should not have."""
    logging.getLogger("qwenbox.engine").setLevel(logging.CRITICAL)  # it tells of every death
    supervisor.MAX_BACKOFF_SECONDS = supervisor.BACKOFF_SECONDS  # else the pauses between hundreds of deaths were most of the time
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            path, chat = write_checkpoint(Path(folder), vocab=300), byte_chat()
        else:
            path = resolve(model)
            chat = open_chat(path)
        tokens = chat.tokenizer.table()
        options = EngineOptions(model=str(path), threads=1, num_pages=20, context_length=512, max_sequences=8, tokens=tokens, debug=True)
        engine = WorkerEngine(options)
        settings = Settings(port=0, state_dir=Path(folder), data_dir=Path(folder), request_timeout=ANSWER_SECONDS, log_level="error")
        with LocalLLM(engine, chat, "soak", request_timeout=ANSWER_SECONDS) as llm, Service(llm, settings) as service:
            llm.wait_ready(120)
            return asyncio.run(Soak(engine, service.port, random.Random(seed), people).run(requests))


def without_kills_at_the_end(kinds: list[str], start: int, rng: random.Random) -> list[str]:
    """As many kills, all before `start`."""
    early = [index for index in range(start) if kinds[index] != "worker killed"]
    for index in range(start, len(kinds)):
        if kinds[index] == "worker killed":
            other = early.pop(rng.randrange(len(early)))
            kinds[index], kinds[other] = kinds[other], kinds[index]
    return kinds


def held(process: str, prefix: str) -> dict[str, int]:
    """What a process has of what can leak."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
    files, threads, rss = len(os.listdir(f"/proc/{process}/fd")), int(fields["Threads"]), int(fields["VmRSS"].split()[0]) * 1024
    return {f"{prefix}files": files, f"{prefix}threads": threads, f"{prefix}rss": rss}


class Soak:
    def __init__(self, engine: WorkerEngine, port: int, rng: random.Random, people: int) -> None:
        self.engine, self.port, self.rng, self.people = engine, port, rng, people
        self.report = Report()
        self.one_fault = asyncio.Lock()

    async def run(self, requests: int) -> dict[str, Any]:
        began = time.monotonic()
        kinds = without_kills_at_the_end(self.rng.choices(list(KINDS), list(KINDS.values()), k=requests), requests * 2 // 3, self.rng)
        parts = [0, max(requests // 10, self.people), requests * 3 // 4, requests]
        rests = []
        for first, end in itertools.pairwise(parts):
            await self._ask_all(kinds[first:end])
            rests.append(await self._at_rest())
        warm, calm, after = rests
        wrong = self.report.wrong
        for name in after:
            before = calm if name.startswith("worker") else warm
            more = {"threads": POOL_THREADS, "worker_threads": GRAMMAR_THREADS, "rss": MOST_GROWTH, "worker_rss": MOST_GROWTH}
            if after[name] > before[name] + more.get(name, 0):
                wrong.append(f"{name}: {before[name]} when it was warm, {after[name]} at the end")
        stats = self.engine.stats()
        if stats.used_pages or stats.running or stats.waiting:
            wrong.append(f"left behind: {stats}")
        if stats.restarts != self.report.kills:
            wrong.append(f"{self.report.kills} workers were killed, {stats.restarts} died")
        return {
            "requests": requests, "seconds": round(time.monotonic() - began, 1), "kinds": dict(self.report.counts), "codes": dict(self.report.codes),
            "kills": self.report.kills, "cached_tokens": stats.cached_tokens, "preemptions": stats.preemptions,
            "warm": warm, "calm": calm, "after": after, "wrong": wrong[:20],
        }  # fmt: skip

    async def _ask_all(self, kinds: list[str]) -> None:
        waiting = list(reversed(kinds))

        async def person() -> None:
            while waiting:
                kind = waiting.pop()
                if len(waiting) % 500 == 0:
                    print(f"{len(waiting)} left, {self.report.kills} workers killed, {len(self.report.wrong)} wrong", file=sys.stderr, flush=True)
                self.report.counts[kind] += 1
                try:
                    await asyncio.wait_for(self._one(kind), ANSWER_SECONDS)
                except Exception as error:
                    self.report.wrong.append(f"{kind}: {type(error).__name__}: {error}")

        await asyncio.gather(*(person() for _ in range(self.people)))

    async def _at_rest(self) -> dict[str, int]:
        """Handles, threads and memory of this process and of the worker once nothing runs any more."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            stats = self.engine.stats()
            if self.engine.state().name == "ready" and not (stats.running or stats.waiting or stats.used_pages):
                break
            await asyncio.sleep(0.05)
        return held("self", "") | held(str(self.engine.pid), "worker_")

    async def _one(self, kind: str) -> None:
        if kind.startswith("worker"):
            async with self.one_fault:
                await self._fault(kind)
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"{self.rng.random()} Tell me something about number {self.rng.randrange(10**6)}."}],
            "max_tokens": min(1 + int(self.rng.expovariate(1 / 50)), 300),
            "temperature": self.rng.choice([0, 0.7, 1.2]), "user": self.rng.choice("abc"),
        }  # fmt: skip
        if kind == "common beginning":
            body["messages"].insert(0, {"role": "system", "content": COMMON})
        elif kind == "choices":
            body |= {"n": 3, "logprobs": True, "top_logprobs": 2}
        elif kind == "stop":
            body["stop"] = [chr(self.rng.randrange(97, 123)), "ab"]
        elif kind == "malformed":
            body |= self.rng.choice([{"temperature": "hot"}, {"messages": []}, {"max_tokens": -1}, {"logit_bias": {"x": 1}}, {"n": 10**9}])
        elif kind == "too long":
            body["messages"][0]["content"] *= 40
        elif "stream" in kind:
            body |= {"stream": True, "max_tokens": 200 if kind == "left in a stream" else 40}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            data = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
            await writer.drain()
            if kind == "left before the answer":
                await asyncio.sleep(self.rng.random() * 0.05)
            elif kind == "left in a stream":
                await reader.readuntil(b"data: ")
            else:
                self._judge(kind, await reader.read())
        except asyncio.IncompleteReadError as error:
            self._judge(kind, error.partial)  # an error that came instead of a stream
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _fault(self, kind: str) -> None:
        pid = self.engine.pid
        if pid is None or self.engine.state().name != "ready":
            return
        with contextlib.suppress(ProcessLookupError):
            if kind == "worker killed":
                restarts = self.engine.stats().restarts
                os.kill(pid, self.rng.choice([signal.SIGKILL, signal.SIGSEGV]))
                self.report.kills += 1
                while self.engine.stats().restarts == restarts or self.engine.state().name != "ready":
                    await asyncio.sleep(0.01)
            else:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.05)
                os.kill(pid, signal.SIGCONT)

    def _judge(self, kind: str, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        codes = [code for code in WORKER_CODES if f'"{code}"'.encode() in body]
        self.report.codes[f"{status} {' '.join(codes)}".strip()] += 1
        expected = STATUS.get(kind, {200})
        if status in expected and not codes and (kind != "stream" or b"data: [DONE]" in body):
            return
        if codes and (kind not in STATUS or codes == ["model_loading"]):
            return
        self.report.wrong.append(f"{kind}: {status} {body[-300:]!r}")


if __name__ == "__main__":
    main()
