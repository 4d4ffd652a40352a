"""How long does a person wait for the first word of an answer to a short prompt, and how much of that is not the model?

    python bench/first.py [MODEL] [--prompt-tokens 100] [--weights int4] [--repeat 9] [--json]

The service is started, and a client streams answers to chats of exactly so many tokens, one after the other: random digits, so that nothing
but the template's first tokens can be in the cache. The aim is 150 ms where matrix instructions fed from L1 do 4 T/s (int8), and as much
longer as they are slower here; they are measured around the requests while the service is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import openai  # noqa: E402

from bench.machine import commit, machine_name  # noqa: E402
from bench.mixed import loaded, service  # noqa: E402
from bench.table import quartiles  # noqa: E402
from qwenbox.kernels.ceiling import CeilingMeter  # noqa: E402

AIM_MS, AT_TOPS = 150, 4


class Answer(NamedTuple):
    first_ms: float
    model_ms: float
    """From the admission of the prompt to its first token."""
    prompt_tokens: int
    cached_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b", metavar="MODEL")
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--weights")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    meter = CeilingMeter(len(os.sched_getaffinity(0)))
    with service(asked.model, asked.weights) as url:
        before, answers, after = asyncio.run(measure(url, meter, asked.prompt_tokens, asked.repeat))
    tops = (before + after) / 2 / 1e12
    summary = {
        "machine": machine_name(), "commit": commit(), "model": asked.model, "weights": asked.weights or "file",
        "prompt_tokens": answers[-1].prompt_tokens, "cached_tokens": max(answer.cached_tokens for answer in answers),
        "first_ms": quartiles([answer.first_ms for answer in answers]),
        "beside_model_ms": quartiles([answer.first_ms - answer.model_ms for answer in answers]),
        "ceiling_l1_tops": tops, "aim_ms": AIM_MS * AT_TOPS / tops,
    }  # fmt: skip
    if not asked.json:
        low, median, high = summary["first_ms"]
        print(
            f"first token after {median:.0f} ms ({low:.0f} to {high:.0f}), {summary['beside_model_ms'][1]:.1f} of them not the model's; "
            f"the aim is {summary['aim_ms']:.0f} ms at {tops:.2f} T/s"
        )
    print(json.dumps(summary))


async def measure(url: str, meter: CeilingMeter, prompt_tokens: int, repeat: int) -> tuple[float, list[Answer], float]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=3600, max_retries=0) as client:
        await loaded(client)
        digits = prompt_tokens
        for _ in range(3):  # warm, and as long as was asked for: each digit is a token
            digits += prompt_tokens - (await answer(client, digits)).prompt_tokens
        before = meter.measure().int8_l1
        answers = [await answer(client, digits) for _ in range(repeat)]
        return before, answers, meter.measure().int8_l1


async def answer(client: openai.AsyncOpenAI, digits: int) -> Answer:
    text = "".join(random.choices("0123456789", k=max(digits, 1)))
    began = time.monotonic()
    stream = await client.chat.completions.create(
        model="",
        messages=[{"role": "system", "content": text[:20]}, {"role": "user", "content": text[20:]}],
        max_tokens=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "timings": True},
    )
    first_ms, timings, prompt_tokens = 0.0, {}, 0
    async for chunk in stream:
        if not first_ms and chunk.choices and chunk.choices[0].delta.content:
            first_ms = 1000 * (time.monotonic() - began)
        timings = (chunk.model_extra or {}).get("qwenbox", {}).get("timings", timings)
        prompt_tokens = chunk.usage.prompt_tokens if chunk.usage else prompt_tokens
    return Answer(first_ms, 1000 * timings["prefill"], prompt_tokens, timings["cached"])


if __name__ == "__main__":
    main()
