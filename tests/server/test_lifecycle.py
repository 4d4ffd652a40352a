"""How a request ends when its client, its engine or the service does; what waits, and for how long."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any

import httpx2
import openai
import pytest

from qwenbox.engine.client import EngineState
from qwenbox.errors import EngineError, ModelFormatError, OverloadedError
from qwenbox.server import protocol, routes, stream
from qwenbox.wire import sse
from tests.engine.fakes import eventually
from tests.fakes import FakeEngine, Script
from tests.pace import least_seconds

HELLO: Any = [{"role": "user", "content": "Hi"}]
LONG = Script("abc" * 1000)
SLOW = {"script": LONG, "step_seconds": 0.005}


def raw(running: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A request on a socket of its own, of which nothing has been read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", running.service.port), timeout=60)
    connection.sendall(b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
    return connection


def reset(connection: socket.socket) -> None:
    """Closes with RST, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("end", [reset, socket.socket.close], ids=["rst", "fin"])
def test_a_client_that_goes_away_frees_its_place_in_a_second(start, streamed, end):
    running = start(FakeEngine(**SLOW))

    def leave() -> None:
        connection = raw(running, {"messages": HELLO, "stream": streamed})
        if streamed:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        running.engine.wait_for(lambda engine: engine.num_running == 1)
        end(connection)
        running.engine.wait_for(lambda engine: engine.num_running == 0)

    assert least_seconds(leave, 1.0) < 1.0


def test_a_client_that_goes_away_while_the_request_waits_for_its_first_token_frees_its_place(start):
    running = start(FakeEngine(**SLOW))
    running.engine.pause()

    def leave() -> None:
        connection = raw(running, {"messages": HELLO, "stream": True, "n": 4})
        running.engine.wait_for(lambda engine: engine.num_running == 4)
        reset(connection)
        running.engine.wait_for(lambda engine: engine.num_running == 0)

    assert least_seconds(leave, 1.0) < 1.0


def test_a_hundred_random_aborts_lose_nothing(start):
    running = start(FakeEngine(script=LONG, step_seconds=0.001))
    for index in range(100):
        connection = raw(running, {"messages": HELLO, "stream": index % 2 == 0, "n": 1 + index % 3})
        if index % 4 == 0:
            connection.recv(1 + index)
        reset(connection)
    running.engine.wait_for(lambda engine: engine.num_running == 0, timeout=60)
    running.engine.step_seconds = 0
    running.engine.script = Script("ok")
    with running.client() as client:
        assert client.completions.create(model="tiny", prompt="x").choices[0].text == "ok"


def slow_reader(running: Any) -> socket.socket:
    """A client that asks for far more than any buffer holds, and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", running.service.port))
    data = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 200_000, "logprobs": True, "top_logprobs": 20}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % len(data) + data)
    running.engine.wait_for(lambda engine: engine.num_running == 1)
    return connection


FLOOD = {"script": Script("x" * 200_000), "context_length": 300_000, "num_pages": 10_000, "tokens_per_step": 50}


def test_a_reader_that_is_too_slow_ends_its_own_request_and_nobody_elses(start, monkeypatch):
    monkeypatch.setattr("qwenbox.generation.MAX_UNREAD", 200)
    running = start(FakeEngine(**FLOOD))
    with slow_reader(running) as connection:
        with running.client() as client:
            for _ in range(3):
                assert client.completions.create(model="tiny", prompt="x", max_tokens=20).choices[0].text == "x" * 20
        running.engine.wait_for(lambda engine: engine.num_running == 0, timeout=60)
        assert set(running.engine.cancelled) == {running.engine.plans[0].request_id}
        received = read_to_end(connection)
    assert b"read too slowly" in received
    assert b"[DONE]" not in received


def test_a_client_that_does_not_read_at_all_is_cut_off(start, monkeypatch):
    monkeypatch.setattr(stream, "STALL_SECONDS", 0.2)
    running = start(FakeEngine(**FLOOD))
    labels = {"route": "/v1/chat/completions", "status": "200"}
    with slow_reader(running) as connection:
        eventually(lambda: running.llm.metrics.registry.get_sample_value("qwenbox_http_responses_total", labels))
        received = read_to_end(connection)
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")


# --- a model that is not there yet ---------------------------------------------------------------------------------


def test_ready_and_health_tell_phase_bytes_time_and_reason(start):
    reason = EngineError("no model hub can be reached")
    running = start(FakeEngine(state_now=EngineState("fetching", 0.25, reason, 250_000_000, 1_000_000_000, 33.34)))
    told = {"state": "fetching", "progress": 0.25, "model": "tiny", "bytes": 250_000_000, "total_bytes": 1_000_000_000, "seconds_left": 33.3}
    with httpx2.Client(base_url=running.url, trust_env=False) as http:
        response = http.get("/ready")
        assert (response.status_code, response.headers["retry-after"]) == (503, "34")
        assert response.json() == told | {"error": {"message": reason.message, "code": "engine_error"}}
        assert http.get("/health").json() == response.json() | {"status": "ok", "conversations": {"on_disk": True}}
        running.engine.state_now = EngineState("ready", 1.0)
        assert http.get("/ready").json() == {"state": "ready", "progress": 1.0, "model": "tiny", "isa": "generic", "threads": 1}


def test_ready_says_how_far_the_model_is(start):
    running = start(FakeEngine(state_now=EngineState("loading", 0.25)))
    with httpx2.Client(base_url=running.url, trust_env=False) as http:
        for path in ("/ready", "/readyz"):
            response = http.get(path)
            assert (response.status_code, response.json()["state"], response.json()["progress"]) == (503, "loading", 0.25)
            assert int(response.headers["retry-after"]) >= 1
        assert http.get("/health").status_code == http.get("/healthz").status_code == 200
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] is None
        assert http.post("/tokenize", json={"prompt": "ab"}).json()["tokens"] == [97, 98]
        running.engine.state_now = EngineState("ready", 1.0)
        assert http.get("/ready").status_code == 200
        running.engine.state_now = EngineState("failed", error=ModelFormatError("model.gguf: not a model"))
        assert http.get("/ready").json()["error"] == {"message": "model.gguf: not a model", "code": "model_format"}
        assert http.post("/v1/completions", json={"prompt": "x"}).json()["error"]["code"] == "model_format"


def test_a_request_waits_for_a_model_that_is_loading(start):
    running = start(FakeEngine(state_now=EngineState("loading")))
    answers: list[str] = []

    def ask(streamed: bool) -> None:
        with running.client() as client:
            if streamed:
                stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
                answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
            else:
                answers.append(client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message.content or "")

    threads = [threading.Thread(target=ask, args=(streamed,)) for streamed in (True, False)]
    for thread in threads:
        thread.start()
    with running.client() as client:
        client.models.list()
    running.engine.state_now = EngineState("ready", 1.0)
    for thread in threads:
        thread.join(60)
    assert answers == [Script().text] * 2


def test_a_plain_request_does_not_wait_for_ever(start, monkeypatch):
    monkeypatch.setattr(routes, "READY_SECONDS", 0.1)
    running = start(FakeEngine(state_now=EngineState("loading", 0.5)))
    with running.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.status_code == 503
    assert caught.value.code == "model_loading"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_silence_is_filled_with_comments(start, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(routes, "FIRST_SECONDS", 0.05)
    running = start()
    running.engine.pause()
    connection = raw(running, {"messages": HELLO, "stream": True})
    received = b""
    while received.count(b": keep-alive\n\n") < 3:
        received += connection.recv(65536)
    running.engine.resume()
    while b"[DONE]" not in received:
        received += connection.recv(65536)
    connection.close()


# --- engines that fail -----------------------------------------------------------------------------------------------


def test_an_overloaded_engine_is_a_status_that_says_when_to_come_back(served, monkeypatch):
    def refuse(plan: Any, deliver: Any) -> None:
        from qwenbox.engine.protocol import refusal

        deliver(refusal(plan, OverloadedError("128 requests are waiting already", retry_after=7)))

    monkeypatch.setattr(served.engine, "submit", refuse)
    with served.client() as client:
        for streamed in (True, False):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="tiny", messages=HELLO, stream=streamed)
            assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "7")


def test_a_failure_that_would_come_again_is_not_retried(served):
    served.engine.pause()
    codes: list[Any] = []

    def ask() -> None:
        with served.client(max_retries=2) as client:
            try:
                client.chat.completions.create(model="tiny", messages=HELLO)
            except openai.APIStatusError as error:
                codes.append((error.status_code, error.response.headers["x-should-retry"]))

    thread = threading.Thread(target=ask)
    thread.start()
    served.engine.wait_for(lambda engine: engine.num_running == 1)
    served.engine.fail(EngineError("the model failed"))
    thread.join(60)
    assert codes == [(500, "false")]
    assert len(served.engine.plans) == 1


def test_a_request_may_not_take_longer_than_the_setting(start, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    running = start(request_timeout=0.3)
    running.engine.pause()
    with running.client() as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
    running.engine.wait_for(lambda engine: engine.num_running == 0)


def test_a_bug_of_ours_is_a_500_that_tells_nothing(served, monkeypatch, caplog):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(served.llm, "chat_prompt", broken)
    with served.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.code == "internal_error"
    assert "secret detail" not in str(caught.value)
    assert "secret detail" in caplog.text


# --- the service stops -------------------------------------------------------------------------------------------------


def test_a_service_that_stops_lets_answers_end(start):
    running = start(FakeEngine(script=Script("abc" * 30), step_seconds=0.005))
    with running.client() as client:
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        pieces = [next(iter(stream)).choices[0].delta.content or ""]
        stopping = threading.Thread(target=running.service.stop)
        stopping.start()
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
        stopping.join(60)
    assert "".join(pieces) == "abc" * 30
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.service.port), timeout=1)


def test_answers_that_do_not_end_in_time_get_an_error_event(start, monkeypatch):
    monkeypatch.setattr("qwenbox.server.serve.DRAIN_SECONDS", 0.2)
    running = start(FakeEngine(**SLOW))
    with running.client() as client:
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        next(iter(stream))
        stopping = threading.Thread(target=running.service.stop)
        stopping.start()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        stopping.join(60)
    running.engine.wait_for(lambda engine: engine.num_running == 0)


# --- the edge ----------------------------------------------------------------------------------------------------------


def answer(running: Any, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", running.service.port), timeout=60) as connection:
        connection.sendall(data)
        return read_to_end(connection)


def test_a_head_that_is_too_large_is_refused(served):
    many = b"".join(b"x-%d: %s\r\n" % (index, b"y" * 1000) for index in range(80))
    assert answer(served, b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431")
    endless = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 400_000
    assert answer(served, endless).startswith(b"HTTP/1.1 431")
    theirs = answer(served, b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n")
    assert b'{"type":"error","error":{"type":"invalid_request_error"' in theirs
    assert answer(served, b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 431")


def test_too_many_connections_are_refused_in_our_error_body(served, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    held = [socket.create_connection(("127.0.0.1", served.service.port), timeout=60) for _ in range(2)]
    received = answer(served, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: 5\r\n" in received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "overloaded_error"
    for connection in held:
        connection.close()
    asked = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    eventually(lambda: answer(served, asked).startswith(b"HTTP/1.1 200"))  # the closed ones no longer count


def test_a_head_that_does_not_end_is_refused(served, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    for head in (b"GET /health HTTP/1.1\r\nhost: loc", b""):
        assert answer(served, head).startswith(b"HTTP/1.1 408")


def test_a_body_that_does_not_end_is_refused(served, monkeypatch):
    monkeypatch.setattr(routes, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(stream, "LINGER_SECONDS", 0.2)
    received = answer(served, b'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"prompt"')
    assert received.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_http_is_refused_in_our_error_body(served, data):
    received = answer(served, data)
    assert received.startswith(b"HTTP/1.1 400")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_two_hundred_slow_heads_do_not_keep_others_out(served):
    slow = [socket.create_connection(("127.0.0.1", served.service.port), timeout=60) for _ in range(200)]
    for connection in slow:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
    with httpx2.Client(base_url=served.url, trust_env=False) as http:
        assert http.get("/health").status_code == 200
        assert least_seconds(lambda: http.get("/health"), 1.0) < 1.0
    for connection in slow:
        connection.close()


def test_small_answers_do_not_wait_for_acknowledgements(served):
    with httpx2.Client(base_url=served.url, trust_env=False) as http:
        acknowledged = 0.04  # what the kernel waits before it does that
        assert least_seconds(lambda: http.get("/health"), 0.75 * acknowledged, tries=100) < 0.75 * acknowledged


def test_every_answer_has_a_request_id_and_keeps_a_good_one(served):
    with httpx2.Client(base_url=served.url, trust_env=False) as http:
        assert http.get("/health", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
        made = http.get("/nothing", headers={"x-request-id": 'x" evil=1'}).headers["x-request-id"]
        assert len(made) == 32
        assert http.get("/version").json() == {"version": __import__("qwenbox").__version__}
