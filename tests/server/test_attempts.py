"""A client that gives up and asks again gets one answer's worth of work, also where a proxy hides that it has gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from qwenbox.types import GenerationPlan
from tests.engine.fakes import eventually
from tests.fakes import Script, byte_tokenizer_ids
from tests.server.conftest import Running

HELLO: Any = [{"role": "user", "content": "Hi"}]


@contextmanager
def proxy(port: int) -> Iterator[int]:
    """The port of a proxy that never tells the service of a client that has left."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", port))
            kept.extend((client, upstream))
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for one in kept:
            one.close()


def ask(port: int, *, stream: bool, **headers: str) -> None:
    """Waits a little, twice; without its answer, as the engine is paused."""
    url = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", timeout=0.5, max_retries=1) as client, pytest.raises(openai.APITimeoutError):
        list(client.chat.completions.create(model="tiny", messages=HELLO, stream=stream, extra_headers=headers))


@pytest.fixture
def paused(start) -> Iterator[Running]:
    """A service that says nothing until the test is over."""
    running = start()
    running.engine.pause()
    yield running
    running.engine.resume()


@pytest.mark.parametrize(("stream", "name"), [(True, "Idempotency-Key"), (False, "x-request-id")])
def test_a_retry_begins_when_what_ran_for_the_attempt_before_is_cancelled(paused, stream, name):
    engine = paused.engine
    cancelled_before: list[list[str]] = []

    def reply(plan: GenerationPlan) -> list[int]:
        cancelled_before.append(list(engine.cancelled))
        return byte_tokenizer_ids("Hello")

    engine.script = Script(reply=reply)
    with proxy(paused.service.port) as port:
        ask(port, stream=stream, **{name: "one"})
        assert [plan.attempt for plan in engine.plans] == [0, 1]
        assert cancelled_before == [[], [engine.plans[0].request_id]]
        assert engine.cancelled == cancelled_before[1]


def test_without_a_name_the_same_words_may_be_two_requests(paused):
    with proxy(paused.service.port) as port:
        ask(port, stream=False)
        assert len(paused.engine.plans) == 2
        assert paused.engine.cancelled == []


def test_two_requests_of_one_name_do_not_end_each_other(paused):
    with proxy(paused.service.port) as port:
        threads = [threading.Thread(target=ask, args=(port,), kwargs={"stream": False, "x-request-id": "all"}) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(paused.engine.plans) == 2)
        for thread in threads:
            thread.join()
        first, second = [plan.request_id for plan in paused.engine.plans if plan.attempt == 0]
        assert first not in paused.engine.cancelled
        assert second not in paused.engine.cancelled
