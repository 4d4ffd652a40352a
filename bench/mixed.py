"""How long do running answers stop when a long prompt arrives, and how much longer does the prompt take because of them?

    python bench/mixed.py [MODEL] [--prompt-tokens 30000] [--streams 8] [--step-ms 100,200,400] [--json]

For each size of step the service is started, the prompt is answered alone, then another one of its length beside streams that are under way.
Gaps are those that the clients see between two pieces of an answer, from the arrival of the prompt to its first token. The results go to
bench/results/mixed-<tokens>-<machine>.json and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import openai  # noqa: E402

from bench.machine import commit, machine_name, say  # noqa: E402
from bench.table import markdown, number, quartiles  # noqa: E402

STORY = "Count from one to ten thousand in English words, separated by spaces. Write nothing else and do not stop."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b", metavar="MODEL")
    parser.add_argument("--prompt-tokens", type=int, default=30000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--step-ms", default="100,200,400")
    parser.add_argument("--weights")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    rows = [measure(asked.model, asked.weights, int(step), asked.prompt_tokens, asked.streams) for step in asked.step_ms.split(",")]
    summary = {"machine": machine_name(), "commit": commit(), "model": asked.model, "weights": asked.weights or "file"}
    summary |= {"prompt_tokens": asked.prompt_tokens, "streams": asked.streams, "rows": rows}
    path = asked.results / f"mixed-{asked.prompt_tokens}-{machine_name()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    plot(summary, path.with_suffix(".png"))
    if not asked.json:
        columns = ["step_ms", "gap_median_ms", "gap_p99_ms", "gap_max_ms", "prompt_alone_s", "prompt_mixed_s", "slowdown", "stream_tok_s"]
        print(markdown(columns, [[number(row[name]) for name in columns] for row in rows]))
    print(json.dumps(summary))


def measure(model: str, weights: str | None, step_ms: int, prompt_tokens: int, streams: int) -> dict[str, Any]:
    with service(model, weights, "--step-ms", str(step_ms)) as url:
        row = asyncio.run(run(url, prompt_tokens, streams))
    row = {"step_ms": step_ms, **row}
    say(f"steps of {step_ms} ms: " + ", ".join(f"{name} {number(value)}" for name, value in row.items()))
    return row


@contextmanager
def service(model: str, weights: str | None, *options: str) -> Iterator[str]:
    """The address of a service that was started for this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "qwenbox", "serve", model, "--port", str(port), "--request-timeout", "3600", *options]
    command += ["--no-loop-guard", "--no-archive", "--log-level", "error", *(["--weights", weights] if weights else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


async def run(url: str, prompt_tokens: int, streams: int) -> dict[str, Any]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=3600, max_retries=0) as client:
        await loaded(client)
        await first_token(client, 300)  # until the engine knows what a step costs
        alone = await first_token(client, prompt_tokens)
        begun = asyncio.Semaphore(0)
        times: list[list[float]] = [[] for _ in range(streams)]
        tasks = [asyncio.create_task(stream(client, times[index], begun, index)) for index in range(streams)]
        for _ in range(20 * streams):
            await begun.acquire()
        arrived = time.monotonic()
        mixed = await first_token(client, prompt_tokens)
        ended = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    pairs = [pair for own in times for pair in itertools.pairwise(own)]
    gaps = sorted(1000 * (later - earlier) for earlier, later in pairs if earlier >= arrived and later <= ended)
    tokens = len(gaps)
    return {
        "gap_median_ms": quartiles(gaps)[1], "gap_p99_ms": gaps[int(0.99 * tokens)], "gap_max_ms": gaps[-1],
        "prompt_alone_s": alone, "prompt_mixed_s": mixed, "slowdown": mixed / alone, "stream_tok_s": tokens / (ended - arrived),
    }  # fmt: skip


async def loaded(client: openai.AsyncOpenAI) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            await client.completions.create(model="", prompt="a", max_tokens=1)
            return
        except (openai.APIConnectionError, openai.InternalServerError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def first_token(client: openai.AsyncOpenAI, prompt_tokens: int) -> float:
    """Seconds until a prompt of random ids, never seen before, has its first token."""
    ids = [random.randrange(1000, 100_000) for _ in range(prompt_tokens)]
    began = time.monotonic()
    await client.completions.create(model="", prompt=ids, max_tokens=1)
    return time.monotonic() - began


async def stream(client: openai.AsyncOpenAI, times: list[float], begun: asyncio.Semaphore, seed: int) -> None:
    # A gap shall be the engine's: tokens that end or begin a turn have no text, and pieces of an emoji wait for each other, so neither is chosen.
    silent = dict.fromkeys(map(str, range(151643, 151665)), -100)
    answer = await client.chat.completions.create(
        model="", messages=[{"role": "user", "content": STORY}], max_tokens=16000, seed=seed, temperature=0, stream=True, logit_bias=silent
    )
    async for _ in answer:
        times.append(time.monotonic())
        begun.release()


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = summary["rows"]
    steps = [row["step_ms"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, label in (("gap_median_ms", "median"), ("gap_p99_ms", "99 of 100"), ("gap_max_ms", "longest")):
        left.plot(steps, [row[name] for row in rows], "o-", label=label)
    left.set(xlabel="step, ms", ylabel="gap between tokens, ms", ylim=(0, None))
    left.legend()
    right.plot(steps, [row["slowdown"] for row in rows], "o-", color="#3451b2")
    right.set(xlabel="step, ms", ylabel="time of the prompt over its time alone", ylim=(1, None))
    figure.suptitle(
        f"{summary['model']}: a prompt of {summary['prompt_tokens']} tokens beside {summary['streams']} streams, {summary['machine']}", fontsize=9
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
