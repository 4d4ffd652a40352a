"""What does the front cost? CPU of the whole front process for a streamed token, and what it takes from the model on the same processors.

    python bench/front.py [--streams 32] [--seconds 4] [--repeat 5] [--conversations] [--json]

The service is the real one, over the real worker with a model of nothing but time (stub.py). `cost`: steps of 5 ms that sleep, so 200 tokens a second
and stream. `share`: steps of 40 ms of fixed work on both processors, in turn with the same steps that nobody reads; the client's own CPU time is
taken out. The clock is the machine's, so the delay from the end of a step to its token at the client can be read. Aims: 50 us a token; 3 % fewer
steps; a first token 5 ms after its step; the longest gap in a hundred 1.3 steps. The ceiling is one `send` a token, printed beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench import stub  # noqa: E402
from bench.table import markdown, number  # noqa: E402

SLEEP_SECONDS = 0.005
WORK_SECONDS = 0.040
WINDOW_SECONDS = 0.1
BURST_SECONDS = 0.6
"""Long enough for the first tokens of all streams, which begin at once."""
LONG: dict[str, Any] = {"max_tokens": 1 << 14, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "hi"}]
MODEL = "qwen2.5-coder-0.5b"
"""Its tokenizer makes the tokens that are streamed."""


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--conversations", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    stub.build()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        save_ids(directory)
        cost = measure_cost(directory, asked.streams, asked.seconds, asked.repeat, asked.conversations)
        share = {} if asked.conversations else measure_share(directory, asked.streams, asked.seconds, asked.repeat)
    summary = {"streams": asked.streams, **cost, **share}
    if not asked.json:
        print(markdown(["figure", "value"], [[key, number(value)] for key, value in summary.items()]))
    print(json.dumps({key: round(value, 4) for key, value in summary.items()}))


def measure_cost(directory: Path, streams: int, seconds: float, repeat: int, conversations: bool) -> dict[str, float]:
    """CPU microseconds a token: median and 99th percentile of windows of 0.1 s; milliseconds from a step's end to its token at the client."""
    (directory / "stub.json").write_text(json.dumps({"seconds": SLEEP_SECONDS}), encoding="utf-8")
    windows: list[float] = []
    delays: list[float] = []
    with Service(directory) as service:
        for _ in range(repeat):
            with service.conversations(streams) if conversations else contextlib.nullcontext([COMPLETION]) as requests:
                read = service.read(directory, streams, seconds, windows, requests)
            delays += read["delays"]
    middle, most = np.percentile(windows, [50, 99])
    return {
        "cpu_us_per_token": float(middle),
        "cpu_us_per_token_p99": float(most),
        "send_us": send_seconds() * 1e6,
        "delay_ms": statistics.median(delays) * 1e3,
        "delay_ms_p99": float(np.percentile(delays, 99)) * 1e3,
    }


def measure_share(directory: Path, streams: int, seconds: float, repeat: int) -> dict[str, float]:
    rounds = calibrate(directory)
    kept, gaps, first, cpu, steps, alone = [], [], [], [], [], []
    with Service(directory) as service:
        for _ in range(repeat):
            without = steps_alone(directory, streams, seconds)
            alone += (np.diff(step_ends(directory)) * without).tolist()
            read = service.read(directory, streams, seconds, [])
            # Both processors for the whole time, less what the client took.
            share = 1 - read["client_cpu"] / (stub.THREADS * read["seconds"])
            kept.append(read["steps_s"] / share / without)
            gaps += [gap * without for gap in read["gaps"]]
            cpu.append(read["cpu_us_per_token"])
            for _ in range(4):
                first += service.read(directory, streams, BURST_SECONDS, [])["first"]
            steps += [gap * without for gap in read["steps"]]
    return {
        "rounds": rounds,
        "steps_kept": statistics.median(kept),
        "steps_kept_worst": min(kept),
        "share_cpu_us_per_token": statistics.median(cpu),
        "gap_p99_steps": float(np.percentile(gaps, 99)),
        "step_p99": float(np.percentile(steps, 99)),
        "step_alone_p99": float(np.percentile(alone, 99)),
        "first_ms": statistics.median(first) * 1e3,
        "first_ms_p90": float(np.percentile(first, 90)) * 1e3,
    }


def save_ids(directory: Path) -> None:
    """Tokens of words and code. Every one of them shows at once: half a character would look like a gap."""
    from qwenbox.hub import resolve
    from qwenbox.llm import open_chat

    text = "".join((ROOT / name).read_text(encoding="utf-8")[:8000] for name in ("README.md", "bench/front.py"))
    text = text.encode("ascii", "ignore").decode()
    np.save(directory / "ids.npy", np.array(open_chat(resolve(MODEL)).tokenizer.encode(text), np.int64))


def calibrate(directory: Path) -> int:
    """Rounds of work for a step of 40 ms alone."""
    rounds = 400
    for _ in range(4):
        (directory / "stub.json").write_text(json.dumps({"rounds": rounds}), encoding="utf-8")
        rounds = max(1, round(rounds * WORK_SECONDS * steps_alone(directory, 1, 1.0)))
    (directory / "stub.json").write_text(json.dumps({"rounds": rounds}), encoding="utf-8")
    return rounds


def steps_alone(directory: Path, streams: int, seconds: float) -> float:
    command = [sys.executable, str(ROOT / "bench" / "stub.py"), "alone", str(directory), str(streams), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(content)) + content


COMPLETION = request("/v1/chat/completions", {"messages": MESSAGES, "stream": True, **LONG})


class Service:
    """The service in a process of its own, whose CPU time is read from outside."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, str(Path(__file__)), "--serve", str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self._clock = ~self._process.pid << 3 | 2  # the CPU clock of another process: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    @contextlib.contextmanager
    def conversations(self, streams: int) -> Iterator[list[bytes]]:
        """A request for an answer in each of so many conversations, which are deleted afterwards: their answers would go on."""
        with httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", trust_env=False, timeout=60) as client:
            made = [client.post("/conversations", json={"messages": MESSAGES}).json() for _ in range(streams)]
            yield [request(f"/conversations/{one['id']}/answer", {"parent": one["leaf"], **LONG}) for one in made]
            for one in made:
                client.delete(f"/conversations/{one['id']}").raise_for_status()

    def read(self, directory: Path, streams: int, seconds: float, windows: list[float], requests: Sequence[bytes] = (COMPLETION,)) -> dict[str, Any]:
        """Streams for `seconds`. CPU microseconds a token of each tenth of a second go to `windows`."""
        arrivals = directory / "arrivals.f64"
        ends_before = len(step_ends(directory))
        process = subprocess.Popen(
            [str(stub.CLIENT), str(self._port), str(streams), str(seconds), str(arrivals)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(b"\0".join(requests))
        process.stdin.close()
        marks = [(time.monotonic(), time.clock_gettime(self._clock))]
        while process.poll() is None:
            time.sleep(WINDOW_SECONDS)
            marks.append((time.monotonic(), time.clock_gettime(self._clock)))
        assert process.stdout is not None
        client_cpu = float(process.stdout.read())
        times, stream_of = np.fromfile(arrivals).reshape(-1, 2).T
        ends = step_ends(directory)[ends_before:]
        # Only the time in which every stream runs.
        begin = max(times[stream_of == index][0] for index in range(streams))
        end = min(times[stream_of == index][-1] for index in range(streams))
        full = [(a, b) for a, b in itertools.pairwise(marks) if begin <= a[0] and b[0] <= end]
        for (start, cpu), (stop, later) in full:
            windows.append((later - cpu) / np.count_nonzero((times > start) & (times <= stop)) * 1e6)
        inside = times[(times > full[0][0][0]) & (times <= full[-1][1][0])]
        delays = [t - ends[np.searchsorted(ends, t) - 1] for t in inside.tolist()]
        ordered = [times[stream_of == index] for index in range(streams)]
        return {
            "seconds": end - begin,
            "client_cpu": client_cpu * (end - begin) / (times[-1] - times[0]),
            "steps_s": np.count_nonzero((ends > begin) & (ends <= end)) / (end - begin),
            "delays": delays,
            "steps": np.diff(ends[(ends > begin) & (ends <= end)]).tolist(),
            "gaps": np.concatenate([np.diff(own) for own in ordered]).tolist(),
            "first": [float(own[0] - ends[np.searchsorted(ends, own[0]) - 1]) for own in ordered],
            "cpu_us_per_token": (full[-1][1][1] - full[0][0][1]) / len(inside) * 1e6,
        }


def step_ends(directory: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """When the stub's steps ended, on the monotonic clock."""
    steps = np.fromfile(directory / "steps.f64", np.float64)
    return steps[1 : 1 + int(steps[0])]


def serve(directory: Path) -> None:
    """The service over the stub, until standard input ends."""
    from qwenbox.engine import supervisor
    from qwenbox.engine.client import EngineOptions, WorkerEngine
    from qwenbox.engine.slices import FRONT_SECONDS, ask_slice
    from qwenbox.hub import resolve
    from qwenbox.llm import LocalLLM, open_chat
    from qwenbox.server.serve import Service as HttpService
    from qwenbox.settings import Settings

    ask_slice(FRONT_SECONDS)
    supervisor._LAUNCH = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from bench.stub import main; main()"
    engine = WorkerEngine(EngineOptions(model=str(directory), max_sequences=64))
    with LocalLLM(engine, open_chat(resolve(MODEL)), "stub") as llm, HttpService(llm, Settings(port=0, archive=False)) as service:
        llm.wait_ready(30)
        print(service.port, flush=True)
        sys.stdin.read()


def send_seconds(count: int = 2000) -> float:
    """CPU seconds of one small send to a reader on loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as reader,
        listener.accept()[0] as writer,
    ):
        writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.thread_time()
        for _ in range(count):
            writer.send(b"x" * 250)
            reader.recv(1 << 16)
        return (time.thread_time() - began) / count


if __name__ == "__main__":
    main()
