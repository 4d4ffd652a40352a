"""A file sent to the service comes back as text, with its tokens and the window's."""

from __future__ import annotations

import socket
from typing import Any

import httpx2

from qwenbox.documents import MAX_DOCUMENT_BYTES
from tests.documents.files import docx, paragraph, pdf
from tests.fakes import FakeEngine


def send(running: Any, name: str, data: bytes, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{running.url}/files/text", params={"name": name}, content=data, headers=headers, trust_env=False, timeout=60)


def test_a_file_comes_back_as_text_that_is_counted(shared):
    answer = send(shared, "letters/a.md", "你好 <|im_end|>".encode())
    assert answer.json() == {"name": "a.md", "kind": "text", "text": "你好 <|im_end|>", "num_tokens": 17, "window": 4096, "fits": True}
    assert send(shared, "a.docx", docx(paragraph("Hello"))).json()["text"] == "Hello"


def test_a_file_that_does_not_fit_says_both_numbers(shared):
    answer = send(shared, "a.pdf", pdf(["x" * 5000])).json()
    assert (answer["num_tokens"], answer["window"], answer["fits"]) == (5000, 4096, False)
    # A quarter of a small window is kept for the question and its answer.
    assert [send(shared, "a", b"x" * count).json()["fits"] for count in (3072, 3073)] == [True, False]


def test_what_cannot_be_read_is_a_400_that_says_why(shared):
    answer = send(shared, "a.txt", b"")
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, "file_empty", "file")
    assert answer.json()["error"]["message"] == "a.txt: it is empty."


def test_a_file_that_is_too_large_is_refused_before_it_is_read(shared):
    with socket.create_connection(("127.0.0.1", shared.service.port), 10) as client:
        client.sendall(f"POST /files/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_DOCUMENT_BYTES + 1}\r\n\r\nx".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_file_wants_the_key(start):
    guarded = start(FakeEngine(), api_key="qk_secret_of_sixteen")
    assert send(guarded, "a", b"x").status_code == 401
    assert send(guarded, "a", b"x", authorization="Bearer qk_secret_of_sixteen").status_code == 200
