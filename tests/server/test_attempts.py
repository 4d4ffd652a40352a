"""A client that gives up and asks again gets one answer's worth of work, also where a proxy hides that it has gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import openai
import pytest

from qwenbox.types import GenerationPlan
from tests.engine.fakes import eventually
from tests.fakes import Script, byte_tokenizer_ids
from tests.server.conftest import Running

HELLO: Any = [{"role": "user", "content": "Hi"}]


class Proxy:
    """Never tells the service of a client that has left. Its clients give up when it says so: their connections break."""

    def __init__(self, port: int) -> None:
        self._service = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._clients: list[socket.socket] = []
        self._upstreams: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._service))
            self._clients.append(client)
            self._upstreams.append(upstream)
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    def give_up(self) -> None:
        """Breaks the connections of its clients."""
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for one in (*self._clients, *self._upstreams):
            one.close()


class Asked(threading.Thread):
    """Somebody whose client asks a second time when it had to give up, and gets no answer, as the engine is paused."""

    def __init__(self, proxy: Proxy, *, stream: bool, **headers: str) -> None:
        super().__init__()
        self._url, self._stream, self._headers = f"http://127.0.0.1:{proxy.port}/v1", stream, headers
        self.error: openai.APIConnectionError | None = None
        self.start()

    def run(self) -> None:
        with openai.OpenAI(base_url=self._url, api_key="none", timeout=60, max_retries=1) as client:
            try:
                list(client.chat.completions.create(model="tiny", messages=HELLO, stream=self._stream, extra_headers=self._headers))
            except openai.APIConnectionError as error:
                self.error = error


@pytest.fixture
def paused(start) -> Iterator[Running]:
    """A service that says nothing until the test is over."""
    running = start()
    running.engine.pause()
    yield running
    running.engine.resume()


@pytest.fixture
def proxy(paused: Running) -> Iterator[Proxy]:
    proxy = Proxy(paused.service.port)
    yield proxy
    proxy.close()


def give_up_twice(running: Running, proxy: Proxy, *people: Asked) -> None:
    """All ask, give up, ask again and give up."""
    for number in (1, 2):
        eventually(lambda number=number: len(running.engine.plans) == number * len(people))
        proxy.give_up()
    for one in people:
        one.join(60)
        assert one.error is not None


@pytest.mark.parametrize(("stream", "name"), [(True, "Idempotency-Key"), (False, "x-request-id")])
def test_a_retry_begins_when_what_ran_for_the_attempt_before_is_cancelled(paused, proxy, stream, name):
    engine = paused.engine
    cancelled_before: list[list[str]] = []

    def reply(plan: GenerationPlan) -> list[int]:
        cancelled_before.append(list(engine.cancelled))
        return byte_tokenizer_ids("Hello")

    engine.script = Script(reply=reply)
    give_up_twice(paused, proxy, Asked(proxy, stream=stream, **{name: "one"}))
    assert [plan.attempt for plan in engine.plans] == [0, 1]
    assert cancelled_before == [[], [engine.plans[0].request_id]]
    assert engine.cancelled == cancelled_before[1]


def test_without_a_name_the_same_words_may_be_two_requests(paused, proxy):
    give_up_twice(paused, proxy, Asked(proxy, stream=False))
    assert len(paused.engine.plans) == 2
    assert paused.engine.cancelled == []


def test_two_requests_of_one_name_do_not_end_each_other(paused, proxy):
    give_up_twice(paused, proxy, *(Asked(proxy, stream=False, **{"x-request-id": "all"}) for _ in range(2)))
    first, second = [plan.request_id for plan in paused.engine.plans if plan.attempt == 0]
    assert first not in paused.engine.cancelled
    assert second not in paused.engine.cancelled
