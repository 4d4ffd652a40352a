"""What does a streamed token cost the front? CPU time of its event loop over an engine without a model, in microseconds a token.

The ceiling is one `send` system call a token, printed beside it. `python bench/front.py [--streams 8] [--step-ms 4]`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwenbox.llm import LocalLLM  # noqa: E402
from qwenbox.server.serve import Service  # noqa: E402
from qwenbox.settings import Settings  # noqa: E402
from tests.fakes import FakeEngine, Script, byte_chat  # noqa: E402

# In a process of its own, so that only the front's CPU time is counted; argv: port, streams, tokens.
CLIENT = """
import json, socket, sys, threading
port, streams, tokens = map(int, sys.argv[1:])
body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": tokens}).encode()
def read():
    with socket.create_connection(("127.0.0.1", port)) as s:
        head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n"
        s.sendall(head % len(body) + body)
        while s.recv(1 << 20):
            pass
threads = [threading.Thread(target=read) for _ in range(streams)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    engine = FakeEngine(script=Script("x y" * asked.tokens), context_length=1 << 20, num_pages=1 << 15, step_seconds=asked.step_ms / 1000)
    seconds = []
    with LocalLLM(engine, byte_chat(), "tiny") as llm, Service(llm, Settings(port=0)) as service:
        clock = time.pthread_getcpuclockid(next(thread.ident for thread in threading.enumerate() if thread.name == "qwenbox-http") or 0)
        for _ in range(asked.repeat):
            before = time.clock_gettime(clock)
            subprocess.run([sys.executable, "-c", CLIENT, str(service.port), str(asked.streams), str(asked.tokens)], check=True)
            seconds.append(time.clock_gettime(clock) - before)
    token = sorted(seconds)[len(seconds) // 2] / (asked.streams * asked.tokens)
    call = send_seconds()
    print(f"{asked.streams} streams, a step of {asked.step_ms} ms: {token * 1e6:.1f} us of CPU a token; one send alone is {call * 1e6:.1f} us")
    print(
        json.dumps({"streams": asked.streams, "step_ms": asked.step_ms, "cpu_us_per_token": round(token * 1e6, 1), "send_us": round(call * 1e6, 1)})
    )


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
