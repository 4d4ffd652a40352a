"""Three times as much is asked for as the machine can give: who gets what, are promises kept, and is everything over when it is over?

    python bench/overload.py [MODEL] [--seconds 300] [--times 3] [--serve "--max-sequences 16 ..."] [--json]

The service runs as a process of its own. What it can give is measured first. Then requests of
three users with the weights 1, 1 and 2 arrive at random, each user's as often as the others'; one that is refused comes back when it was told to, as
often as OpenAI's clients do. The results go to bench/results/overload-<machine>.json and .png; the exit code is 1 where a target is missed.

An error of a promise is the difference between what a request was told first and the time after which it got a place, over that time. Who gave up
has waited for all that it was told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.machine import commit, machine_name, say  # noqa: E402
from bench.table import markdown, number  # noqa: E402

USERS = {"ana": 1.0, "ben": 1.0, "cleo": 2.0}
RETRIES = 2
"""As OpenAI's clients do."""
PROMPT_TOKENS = (20, 200)
ANSWER_TOKENS = (20, 100)
KV_GB = "0.25"
"""So little that all pages have been used soon, and memory has nothing left to grow into."""
WARM_SECONDS = 20.0
QUIET_SECONDS = 30.0
TARGETS = {
    "jain": (0.95, ">="), "promise_error_median": (0.25, "<="), "idle_seconds": (QUIET_SECONDS, "<="), "speed_after": (0.8, ">="),
    "front_growth": (0.1, "<="), "worker_growth": (0.1, "<="), "health_max_ms": (250.0, "<="),
}  # fmt: skip


@dataclass
class Sample:
    """What one second of the overload looks like."""

    at: float
    running: float
    waiting: float
    front_mb: float
    worker_mb: float
    health_ms: float


@dataclass
class Load:
    """What the clients saw."""

    port: int
    rng: random.Random
    tokens: list[tuple[float, str]] = field(default_factory=list)
    """Arrival of each token, and whose it is."""
    first_seconds: list[float] = field(default_factory=list)
    promises: list[tuple[float, float, bool]] = field(default_factory=list)
    """Seconds that a request was told first, those that it waited, and whether it got a place in the end."""
    statuses: Counter[str] = field(default_factory=Counter)

    async def request(self, user: str) -> None:
        """Asks, and comes back when told to."""
        body = {
            "prompt": [self.rng.randrange(1000, 100_000) for _ in range(self.rng.randint(*PROMPT_TOKENS))], "ignore_eos": True, "stream": True,
            "max_tokens": self.rng.randint(*ANSWER_TOKENS), "user": user, "weight": USERS.get(user, 1.0),
        }  # fmt: skip
        told: list[float] = []
        for attempt in range(RETRIES + 1):
            wait = await self.ask(body, user, attempt)
            if wait is None:
                break
            told.append(wait)
            if attempt < RETRIES:
                await asyncio.sleep(wait)
        if told:
            came = len(told) <= RETRIES
            self.promises.append((told[0], sum(told), came))

    async def ask(self, body: dict[str, Any], user: str, attempt: int) -> float | None:
        """Reads the answer; the seconds to wait where the service refuses."""
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-stainless-retry-count: {attempt}\r\n"
        began = time.monotonic()
        async with connected(self.port) as (reader, writer):
            writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = answer.split()[1]
            self.statuses[status] += 1
            if status != "200":
                retry = re.search(r"^retry-after: (\d+)", answer, re.MULTILINE | re.IGNORECASE)
                if retry is None:
                    raise RuntimeError(f"refused without a time to come back: {answer} {await reader.read()!r}")
                return float(retry[1])
            while line := await reader.readline():
                if line.startswith(b'data: {"id"') and b'"text":""' not in line:
                    if began:
                        self.first_seconds.append(time.monotonic() - began)
                        began = 0.0
                    self.tokens.append((time.monotonic(), user))
        return None


@contextlib.asynccontextmanager
async def connected(port: int) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def get(port: int, path: str) -> tuple[str, str]:
    async with connected(port) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        return head.split()[1], body


async def gauges(port: int) -> dict[str, float]:
    """The engine's own, by their names without prefix."""
    _, text = await get(port, "/metrics")
    found = re.findall(r"^qwenbox_(num_requests_\w+|kv_cache_usage_perc)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    return {name: sum(float(value) for other, value in found if other == name) for name, _ in found}


def rss_mb(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def worker_of(pid: int) -> int:
    """The child that holds the most memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    children += [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text(encoding="ascii").split()]
    return max(map(int, set(children)), key=rss_mb)


async def run(port: int, pid: int, seconds: float, times: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    deadline = time.monotonic() + 300
    while (await get(port, "/ready"))[0] != "200":
        if time.monotonic() > deadline:
            raise SystemExit("the model was not ready in five minutes")
        await asyncio.sleep(0.2)
    capacity = await measure_capacity(Load(port, rng))
    await idle(port)
    before = await alone(port)
    rate = times * capacity
    say(f"the machine can answer {capacity:.2f} requests a second; {rate:.2f} arrive")
    load, samples, began = Load(port, rng), [], time.monotonic()
    sampling = asyncio.create_task(sample(port, pid, began, samples))
    tasks: set[asyncio.Task[None]] = set()
    failures: list[str] = []

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(f"{type(error).__name__}: {error}")

    at = 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(began + at - time.monotonic())
        task = asyncio.create_task(load.request(rng.choice(list(USERS))))
        tasks.add(task)
        task.add_done_callback(ended)
    await asyncio.sleep(began + seconds - time.monotonic())
    over = time.monotonic()
    for task in list(tasks):  # nobody asks any more, and those who have an answer under way leave
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    idle_seconds = await idle(port) - over
    sampling.cancel()
    after = await alone(port)
    got = Counter(user for at, user in load.tokens if at <= over)
    shares = [got[user] / weight for user, weight in USERS.items()]
    errors = sorted(abs(waited - told) / waited for told, waited, _ in load.promises)
    third = max(len(samples) // 3, 1)
    steady, last = samples[third : 2 * third] or samples, samples[-third:]
    return {
        "capacity_per_s": capacity, "arrivals_per_s": rate, "seconds": seconds, "tokens": dict(got), "statuses": dict(load.statuses),
        "jain": sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)),
        "promises": len(errors), "kept": statistics.mean(waited == told for told, waited, _ in load.promises) if errors else 0.0,
        "promise_median_s": statistics.median(told for told, _, _ in load.promises) if errors else 0.0,
        "promise_error_median": statistics.median(errors) if errors else 0.0,
        "first_token_p50_s": statistics.median(load.first_seconds), "first_token_p95_s": statistics.quantiles(load.first_seconds, n=20)[-1],
        "tokens_per_s": sum(got.values()) / seconds, "waiting_max": max(one.waiting for one in samples),
        "idle_seconds": idle_seconds, "speed_before_tok_s": before, "speed_after_tok_s": after, "speed_after": after / before,
        "front_growth": max(one.front_mb for one in last) / max(one.front_mb for one in steady) - 1,
        "worker_growth": max(one.worker_mb for one in last) / max(one.worker_mb for one in steady) - 1,
        "front_mb": samples[-1].front_mb, "worker_mb": samples[-1].worker_mb,
        "health_p50_ms": statistics.median(one.health_ms for one in samples), "health_max_ms": max(one.health_ms for one in samples),
        "failures": failures[:10],
        "series": {
            "samples": [[round(value, 3) for value in (s.at, s.running, s.waiting, s.front_mb, s.worker_mb, s.health_ms)] for s in samples],
            "tokens": {user: by_second([at - began for at, whose in load.tokens if whose == user], seconds) for user in USERS},
        },
    }  # fmt: skip


def by_second(times: list[float], seconds: float) -> list[int]:
    counts = Counter(int(at) for at in times)
    return [counts[second] for second in range(int(seconds))]


async def measure_capacity(load: Load) -> float:
    """Requests a second where there are always as many as run at a time."""
    began = time.monotonic()

    async def person() -> None:
        while time.monotonic() < began + WARM_SECONDS:
            await load.request("nobody")

    people = [asyncio.create_task(person()) for _ in range(32)]
    await asyncio.gather(*people)
    steady = [at for at, _ in load.tokens if began + WARM_SECONDS / 4 < at <= began + WARM_SECONDS]
    return len(steady) / (0.75 * WARM_SECONDS) / (sum(ANSWER_TOKENS) / 2)


async def alone(port: int) -> float:
    """Tokens a second of one answer with nothing beside it, the median of three."""
    speeds = []
    for _ in range(3):
        load = Load(port, random.Random())
        await load.ask({"prompt": [5] * 20, "max_tokens": 60, "ignore_eos": True, "stream": True}, "nobody", 0)
        speeds.append((len(load.tokens) - 1) / (load.tokens[-1][0] - load.tokens[0][0]))
    return statistics.median(speeds)


async def idle(port: int) -> float:
    """When nothing ran or waited any more and no page was in use."""
    deadline = time.monotonic() + 2 * QUIET_SECONDS
    while any((await gauges(port)).values()):
        if time.monotonic() > deadline:
            raise SystemExit(f"the service does not come to rest: {await gauges(port)}")
        await asyncio.sleep(0.05)
    return time.monotonic()


async def sample(port: int, pid: int, began: float, samples: list[Sample]) -> None:
    worker = worker_of(pid)
    while True:
        asked = time.monotonic()
        await get(port, "/health")
        health = time.monotonic() - asked
        now = await gauges(port)
        running, waiting = now["num_requests_running"], now["num_requests_waiting"]
        samples.append(Sample(asked - began, running, waiting, rss_mb(pid), rss_mb(worker), 1000 * health))
        await asyncio.sleep(max(0.0, asked + 1.0 - time.monotonic()))


def missed(result: dict[str, Any]) -> list[str]:
    wrong = [f"{name} is {result[name]:.3g}, not {sign} {value:g}" for name, (value, sign) in TARGETS.items()
             if not (result[name] >= value if sign == ">=" else result[name] <= value)]  # fmt: skip
    return wrong + [f"a request failed: {failure}" for failure in result["failures"]]


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = summary["series"]
    at, running, waiting, front, worker, _ = zip(*series["samples"], strict=True)
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(9, 7), sharex=True, layout="constrained")
    top.plot(at, running, label="running")
    top.plot(at, waiting, label="waiting")
    top.set(ylabel="requests", ylim=(0, None))
    window = 10
    for user, counts in series["tokens"].items():
        means = [sum(counts[i : i + window]) / window for i in range(0, len(counts) - window + 1, window)]
        middle.plot([window * (i + 0.5) for i in range(len(means))], means, "o-", markersize=3, label=f"{user}, weight {USERS[user]:g}")
    middle.set(ylabel="tokens per second", ylim=(0, None))
    bottom.plot(at, front, label="front")
    bottom.plot(at, worker, label="worker")
    bottom.set(ylabel="resident memory, MB", xlabel="seconds", ylim=(0, None))
    for axes in (top, middle, bottom):
        axes.legend(loc="center right", fontsize=8)
    figure.suptitle(
        f"{summary['model']}: {summary['arrivals_per_s']:.1f} requests a second arrive, {summary['capacity_per_s']:.1f} can be answered; "
        f"{summary['machine']}", fontsize=9,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b", metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--times", type=float, default=3.0, help="arrivals over what the machine can answer")
    parser.add_argument("--serve", type=shlex.split, default=[], metavar="SETTINGS", help="further settings of the service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "qwenbox", "serve", asked.model, "--port", str(port), "--log-level", "error", "--kv-gb", KV_GB]
    command += ["--no-archive", *asked.serve]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    try:
        connect(port, process)
        result = asyncio.run(run(port, process.pid, asked.seconds, asked.times, asked.seed))
    finally:
        process.terminate()
        process.wait(30)
    summary = {"machine": machine_name(), "commit": commit(), "model": asked.model, "settings": asked.serve, **result}
    summary["missed"] = missed(result)
    path = asked.results / f"overload-{machine_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    plot(summary, path.with_suffix(".png"))
    del summary["series"]
    if not asked.json:
        print(markdown(["", "measured", "target"], [[name, number(result[name]), f"{sign} {value:g}"] for name, (value, sign) in TARGETS.items()]))
    print(json.dumps(summary))
    sys.exit(1 if summary["missed"] else 0)


def connect(port: int, process: subprocess.Popen[bytes]) -> None:
    """Returns when somebody listens."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise SystemExit("the service did not start")


if __name__ == "__main__":
    main()
