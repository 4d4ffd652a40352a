"""A proxy before a service that writes down what a program asks."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUIET_SECONDS = 5.0
"""Without a request for so long, a turn and its background jobs are over."""
PAUSE_SECONDS = 0.05


class Recorder:
    def __init__(self, port: int, kept_headers: tuple[str, ...], is_slow: Callable[[bytes], bool] = lambda _: False) -> None:
        """`port`: of the service. Answers to bodies that `is_slow` get a pause before each piece, so that somebody can stop them."""
        self.requests: list[dict[str, Any]] = []
        self.running = 0
        self.last = time.monotonic()
        self._port, self._kept, self._is_slow = port, kept_headers, is_slow
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                recorder._pass_on(self)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _pass_on(self, client: BaseHTTPRequestHandler) -> None:
        self.running += 1
        body = client.rfile.read(int(client.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in client.headers.items() if name.lower() in self._kept}
        request: dict[str, Any] = {"method": client.command, "path": client.path, "headers": headers, "body": json.loads(body) if body else None}
        self.requests.append(request)
        service = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            service.request(client.command, client.path, body, headers)
            response = service.getresponse()
            client.send_response(response.status)
            client.send_header("content-type", response.getheader("content-type", ""))
            client.end_headers()
            while piece := response.read1(65536):
                if self._is_slow(body):
                    time.sleep(PAUSE_SECONDS)
                client.wfile.write(piece)
                client.wfile.flush()
        except OSError:
            request["left"] = True
        finally:
            service.close()
            self.running -= 1
            self.last = time.monotonic()

    def wait_quiet(self) -> None:
        wait(lambda: not self.running and time.monotonic() - self.last > QUIET_SECONDS, 120)


def wait(until: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} seconds")
        time.sleep(0.1)
