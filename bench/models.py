"""What does a second model cost? Two models behind one service: loading on request, making way, and answering at the same time.

`python bench/models.py [FIRST] [SECOND] [--seconds 5] [--prompt-tokens 2500]`; the last line is JSON. What one does alone is the ceiling of both.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import httpx2  # noqa: E402

from qwenbox.server.serve import Service  # noqa: E402
from qwenbox.server.stock import Stock  # noqa: E402
from qwenbox.settings import load_settings  # noqa: E402


class Client:
    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any] | None = None) -> float:
        """Seconds of the request."""
        began = time.perf_counter()
        httpx2.post(self.url + path, json=body or {}, timeout=600, trust_env=False).raise_for_status()
        return time.perf_counter() - began

    def first_token(self, model: str) -> float:
        return self.post("/v1/completions", {"model": model, "prompt": "Hi", "max_tokens": 1, "temperature": 0})

    def tokens(self, model: str) -> Iterator[float]:
        """The time of each token of a long answer."""
        body = {"model": model, "prompt": "1, 2, 3,", "max_tokens": 4000, "temperature": 0, "ignore_eos": True, "stream": True}
        with httpx2.stream("POST", self.url + "/v1/completions", json=body, timeout=600, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield time.perf_counter()


def decode(client: Client, models: list[str], seconds: float) -> dict[str, float]:
    """Tokens per second of each, all at the same time."""
    rates: dict[str, float] = {}

    def count(model: str) -> None:
        began = 0.0
        for num, at in enumerate(client.tokens(model)):
            began = began or at
            if at > began + seconds:
                rates[model] = num / (at - began)
                return

    threads = [threading.Thread(target=count, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("second", nargs="?", default="qwen2.5-coder-1.5b")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of tokens per second")
    parser.add_argument("--prompt-tokens", type=int, default=2500)
    asked = parser.parse_args()
    first, second = asked.first, asked.second
    with TemporaryDirectory() as folder:
        settings = load_settings({"model": first, "port": 0, "state_dir": Path(folder)})
        stock = Stock(settings)
        with stock.open(stock.default) as llm, Service(llm, settings, stock) as service:
            llm.wait_ready(600)
            client = Client(service.url)
            client.first_token(first)
            numbers: dict[str, float] = {"load_seconds": client.first_token(second), "warm_seconds": client.first_token(second)}
            numbers["unload_seconds"] = client.post(f"/v1/models/{second}/unload")
            numbers["load_again_seconds"] = client.first_token(second)
            alone = {model: decode(client, [model], asked.seconds)[model] for model in (first, second)}
            both = decode(client, [first, second], asked.seconds)
            numbers |= {f"{model}_of_alone": both[model] / alone[model] for model in alone}
            prompt = {"model": second, "prompt": [100 + index % 5000 for index in range(asked.prompt_tokens)], "max_tokens": 1}
            numbers["prompt_alone_seconds"] = client.post("/v1/completions", prompt | {"cache_salt": "alone"})
            times: list[float] = []
            stream = threading.Thread(target=lambda: times.extend(_until(client.tokens(first), lambda: "prompt_beside_seconds" in numbers)))
            stream.start()
            numbers["prompt_beside_seconds"] = client.post("/v1/completions", prompt | {"cache_salt": "beside"})
            stream.join()
            gaps = sorted(after - before for before, after in pairwise(times))
            numbers |= {"gap_median_seconds": gaps[len(gaps) // 2], "gap_most_seconds": gaps[-1]}
    print(f"{second} on request beside {first}: first token after {numbers['load_seconds']:.2f} s, again {numbers['load_again_seconds']:.2f} s,")
    print(f"  loaded {numbers['warm_seconds']:.2f} s; unloaded in {numbers['unload_seconds']:.2f} s")
    for model in (first, second):
        print(f"{model}: {alone[model]:.1f} tok/s alone, {both[model]:.1f} beside the other")
    print(
        f"prompt of {asked.prompt_tokens}: {numbers['prompt_alone_seconds']:.1f} s alone, {numbers['prompt_beside_seconds']:.1f} s beside a stream,"
    )
    print(f"  whose gaps are {1e3 * numbers['gap_median_seconds']:.0f} ms in the median and {1e3 * numbers['gap_most_seconds']:.0f} at most")
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def _until(times: Iterator[float], over: Callable[[], bool]) -> Iterator[float]:
    for at in times:
        yield at
        if over():
            return


if __name__ == "__main__":
    main()
