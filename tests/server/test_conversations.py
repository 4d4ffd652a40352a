"""Conversations through the real service: answers outlive their readers, what was confirmed outlives the service, and a person's turn comes first."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.engine.client import EngineState
from qwenbox.errors import WorkerDiedError
from qwenbox.server import conversations, serve
from tests.engine.fakes import eventually
from tests.fakes import FakeEngine, Script, byte_tokenizer_ids
from tests.server.conftest import Running

LONG = "数到一百 counting " * 40


def is_title(prompt: Any) -> bool:
    text = bytes(id for id in prompt if id < 256).decode()
    return "title of at most six words" in text or "给这段对话起一个标题" in text


def script(answer: str, title: str = "A Title") -> Script:
    return Script(reply=lambda plan: [*byte_tokenizer_ids(title if is_title(plan.prompt_ids) else answer), *plan.stop_ids[:1]])


class Client:
    """What the page does."""

    def __init__(self, running: Running) -> None:
        self.http = httpx2.Client(base_url=running.url, timeout=120)

    def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        response = self.http.request(method, f"/conversations{path}", json=body or None)
        assert response.status_code == status, response.text
        return response.json()

    def question(self, text: str, id: str | None = None, parent: str | None = None) -> tuple[str, str]:
        """The ids of the conversation and of the question."""
        id = id or self("POST", "", 201, title="")["id"]
        return id, self("POST", f"/{id}/messages", 201, content=text, parent=parent)["id"]

    def stream(self, method: str, path: str, **body: Any) -> Iterator[dict[str, Any]]:
        with self.http.stream(method, f"/conversations{path}", json=body or None) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])

    def answer(self, id: str, parent: str, **fields: Any) -> list[dict[str, Any]]:
        return list(self.stream("POST", f"/{id}/answer", parent=parent, **fields))

    def message(self, id: str, number: int = -1) -> dict[str, Any]:
        return dict(self("GET", f"/{id}")["messages"][number])


def text_of(chunks: list[dict[str, Any]], field: str = "content") -> str:
    return "".join(choice["delta"].get(field) or "" for chunk in chunks for choice in chunk.get("choices", ()))


@pytest.fixture
def here(start: Callable[..., Running], tmp_path: Path) -> Iterator[tuple[Client, Running]]:
    running = start(data_dir=tmp_path)
    client = Client(running)
    yield client, running
    client.http.close()


def test_an_answer_streams_as_a_chat_completion_and_is_stored_with_all_that_is_known_of_it(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script = script("<think>\nHm.\n</think>\n\nSeven.")
    id, question = client.question("three and four?")
    chunks = client.answer(id, question, system="Be short.", enable_thinking=True, temperature=0.5)
    about, ended = chunks[0]["qwenbox"], chunks[-2]["qwenbox"]
    assert text_of(chunks) == "Seven." and "Hm." in text_of(chunks, "reasoning_content")
    assert chunks[-1]["usage"]["completion_tokens"] > 5 and chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert about["parent"] == question and ended["message"] == about["message"] and ended["why"]["mode"] == "on" and "state" not in ended
    plan = running.engine.plans[0]
    assert b"Be short." in bytes(id for id in plan.prompt_ids if id < 256) and plan.sampling.temperature == 0.5
    stored = client.message(id)
    assert (stored["id"], stored["content"], stored["model"]) == (about["message"], "Seven.", "tiny")
    assert stored["reasoning"].strip() == "Hm." and stored["seconds"] >= 0 and stored["usage"]["prompt_tokens"] == len(plan.prompt_ids)
    client.answer(id, client.question("and five?", id, stored["id"])[1])
    prompt = bytes(id for id in running.engine.plans[-1].prompt_ids if id < 256).decode()
    assert is_title(running.engine.plans[-1].prompt_ids) or ("three and four?" in prompt and "Seven." in prompt and "and five?" in prompt)


def test_an_answer_goes_on_when_its_reader_leaves_others_attach_and_it_is_stored_while_it_is_written(
    here: tuple[Client, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, running = here
    monkeypatch.setattr(conversations, "SAVE_SECONDS", 0.05)
    running.engine.script = script(LONG)
    running.engine.hold(lambda plan, position: position >= 100)
    id, question = client.question("count")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    while not text_of([next(stream)]):
        pass
    stream.close()
    eventually(lambda: len(client.message(id)["content"]) > 50)
    live = client.message(id)
    assert client("GET", "")["conversations"][0]["running"] is True
    assert live["state"] == "running" and live["request_id"] and LONG.startswith(live["content"])
    eventually(lambda: len(stored(running, id)) > 20)
    assert LONG.startswith(stored(running, id))
    seen: list[list[dict[str, Any]]] = [[], []]
    readers = [threading.Thread(target=lambda own: own.extend(client.stream("GET", f"/{id}/answer")), args=(one,)) for one in seen]
    for reader in readers:
        reader.start()
    running.engine.resume()
    for reader in readers:
        reader.join()
    assert [text_of(chunks) for chunks in seen] == [LONG, LONG] and stored(running, id) == LONG
    assert len(seen[0]) < len(byte_tokenizer_ids(LONG))  # what was there came in one piece
    assert client("GET", f"/{id}/answer", 404)["error"]["code"] == "no_answer_under_way"


def stored(running: Running, id: str) -> str:
    """The answer as it is in the file."""
    from qwenbox.archive.store import Store

    assert running.service.archive.path is not None
    store = Store(running.service.archive.path)
    try:
        return store.get(id).messages[-1].content
    finally:
        store.close()


@pytest.mark.parametrize("loading", [True, False])
def test_an_answer_is_ended_by_the_id_of_its_request_even_before_its_model_is_there(here: tuple[Client, Running], loading: bool) -> None:
    client, running = here
    running.engine.script = script(LONG)
    running.engine.hold(lambda plan, position: position >= 100)
    if loading:
        running.engine.state_now = EngineState("loading", 0.5)
    id, question = client.question("count")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    chunk = next(stream)
    while not loading and not text_of([chunk]):
        chunk = next(stream)
    request_id = client.message(id)["request_id"]
    assert client.http.post(f"/v1/requests/{request_id}/cancel").status_code == 200
    rest = list(stream)
    assert rest[-2]["qwenbox"]["state"] == "stopped"
    assert client.message(id)["state"] == "stopped" and client.message(id)["content"] == text_of([chunk, *rest])
    assert running.engine.cancelled[:1] == [plan.request_id for plan in running.engine.plans[:1]]
    assert client.http.post(f"/v1/requests/{request_id}/cancel").status_code == 404


def test_one_answer_at_a_time_and_only_to_questions_of_the_conversation(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script, running.engine.step_seconds = script(LONG), 0.0001
    running.engine.pause()
    id, question = client.question("count")
    other, foreign = client.question("other")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    answer = next(stream)["qwenbox"]["message"]
    assert client("POST", f"/{id}/answer", 409, parent=question)["error"]["code"] == "answer_under_way"
    for fields in ({"parent": foreign}, {"parent": answer}, {"parent": "x"}, {}, {"parent": question, "n": 2}, {"parent": question, "tools": []}):
        assert client("POST", f"/{other if fields.get('parent') == question else id}/answer", 400, **fields or {"x": 1})["error"]["param"]
    assert client("POST", f"/{id}/answer", 400, parent=question, temperature=9)["error"]["param"] == "temperature"
    running.engine.resume()
    assert text_of(list(stream)) == LONG
    client("GET", "/" + "0" * 32, 404)
    assert len(client("GET", f"/{id}")["messages"]) == 2


def test_an_answer_that_fails_keeps_its_text_and_says_why(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script = script(LONG)
    running.engine.hold(lambda plan, position: position >= 100)
    id, question = client.question("count")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    chunks = [next(stream) for _ in range(20)]
    running.engine.fail(WorkerDiedError("The worker ended while it answered."))
    chunks += list(stream)
    assert chunks[-1]["error"]["code"] == "worker_died"
    message = client.message(id)
    assert message["state"] == "error" and message["error"]["code"] == "worker_died" and message["content"] == text_of(chunks) != ""
    running.engine.resume()
    running.engine.script = script("Better.")
    again = client.answer(id, question)  # a sibling
    assert client("GET", f"/{id}")["leaf"] == again[0]["qwenbox"]["message"]
    assert [message["content"] for message in client("GET", f"/{id}")["messages"]][1:] == [message["content"], "Better."]


def test_a_title_is_made_after_the_answer_and_gives_way_to_whoever_asks(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script = script("Sure.", '**Title: "Counting slowly"**\nmore')
    running.engine.hold(lambda plan, position: is_title(plan.prompt_ids))
    id, question = client.question("count to " + "three " * 40)
    client.answer(id, question)
    assert client("GET", f"/{id}")["title"].startswith("count to three")
    running.engine.wait_for(lambda engine: any(is_title(plan.prompt_ids) for plan in engine.plans))
    plan = running.engine.plans[-1]
    assert plan.priority == 1000 and plan.thinking is not None and not plan.thinking.open
    running.engine.hold(lambda plan, position: is_title(plan.prompt_ids) or not running.engine.cancelled)
    with running.client() as other:
        other.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "me first"}])
    assert plan.request_id in running.engine.cancelled
    running.engine.resume()
    eventually(lambda: client("GET", f"/{id}")["title"] == "Counting slowly")
    client("PATCH", f"/{id}", title="  My own\n name ")
    client.answer(id, client.question("more", id, client.message(id)["id"])[1])
    assert client("GET", "?query=OWN")["conversations"][0]["title"] == "My own name"
    assert sum(is_title(plan.prompt_ids) for plan in running.engine.plans) == 2


def test_conversations_are_listed_searched_renamed_exported_taken_back_and_deleted(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script = script("递归就是自己调用自己。")
    id, question = client.question("什么是递归？")
    client.answer(id, question)
    first = client.message(id)["id"]
    client.answer(id, question)
    client("PATCH", f"/{id}", leaf=first)
    other, _ = client.question("something else")
    found = client("GET", "?query=递归")
    assert [one["id"] for one in found["conversations"]] == [id] and "递归" in found["conversations"][0]["snippet"] and not found["more"]
    assert [one["id"] for one in client("GET", "?limit=1")["conversations"]] == [other]
    assert [one["id"] for one in client("GET", f"?limit=1&before={other}")["conversations"]] == [id]
    for wrong in ("?limit=0", "?limit=x", "?query=" + "x" * 300):
        client("GET", wrong, 400)
    markdown = client.http.get(f"/conversations/{id}/export?format=markdown")
    assert markdown.headers["content-type"].startswith("text/markdown") and markdown.text.count("自己调用自己") == 1
    assert "filename*=UTF-8''" in markdown.headers["content-disposition"]
    exported = client.http.get(f"/conversations/{id}/export").json()
    again = client("POST", "", 201, **exported)
    shape = ("role", "content", "model", "usage")
    was, now = client("GET", f"/{id}"), client("GET", f"/{again['id']}")
    assert [[message.get(name) for name in shape] for message in now["messages"]] == [[m.get(name) for name in shape] for m in was["messages"]]
    place = [message["id"] for message in was["messages"]].index(was["leaf"])
    assert now["leaf"] == now["messages"][place]["id"] and now["title"] == was["title"] and now["id"] != was["id"]
    client("DELETE", f"/{id}")
    client("GET", f"/{id}", 404)
    client("DELETE", f"/{id}", 404)
    assert [one["id"] for one in client("GET", "?query=递归")["conversations"]] == [again["id"]]


def test_what_a_browser_kept_is_taken_over(here: tuple[Client, Running]) -> None:
    client, _ = here
    kept = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "reasoning": "hm", "seconds": 1.5, "why": "It was short.", "state": "stopped"},
        {"role": "user", "content": "bye"},
    ]
    made = client("POST", "", 201, messages=kept)
    assert made["title"] == "hello" and made["leaf"] == made["messages"][2]["id"]
    assert [message["parent"] for message in made["messages"]] == [None, made["messages"][0]["id"], made["messages"][1]["id"]]
    assert made["messages"][1]["why"] == "It was short." and made["messages"][1]["state"] == "stopped"
    client("POST", "", 400, messages=[{"role": "user", "content": "x", "id": "b", "parent": "a"}])
    client("POST", "", 400, messages=[{"role": "system", "content": "x"}])


def test_a_conversation_that_is_deleted_while_it_is_answered_is_gone(here: tuple[Client, Running]) -> None:
    client, running = here
    running.engine.script = script(LONG)
    running.engine.hold(lambda plan, position: position >= 100)
    id, question = client.question("count")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    next(stream)
    client("DELETE", f"/{id}")
    list(stream)
    client("GET", f"/{id}", 404)
    running.engine.wait_for(lambda engine: engine.num_running == 0)


@pytest.mark.parametrize("stuck", [False, True])
def test_an_answer_under_way_when_the_service_stops_has_some_time_to_end_and_is_there_at_the_next_start(
    start: Callable[..., Running], start_one: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    monkeypatch.setattr(serve, "DRAIN_SECONDS", 1 if stuck else 60)
    running = start_one(FakeEngine(script=script(LONG), step_seconds=0.002), data_dir=tmp_path)
    client = Client(running)
    id, question = client.question("count")
    stream = client.stream("POST", f"/{id}/answer", parent=question)
    while not text_of([next(stream)]):
        pass
    stream.close()
    if stuck:
        running.engine.pause()
    running.close()
    client.http.close()
    client = Client(start(data_dir=tmp_path))
    message = client.message(id)
    assert message["content"] and LONG.startswith(message["content"])
    assert (message.get("state"), message["content"] == LONG) == (("interrupted", False) if stuck else (None, True))
    client.http.close()


def test_a_disk_that_refuses_is_told_and_the_service_goes_on(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    running = start(data_dir=tmp_path / "file")
    client = Client(running)
    error = client("POST", "", 503, title="")["error"]
    assert "--no-archive" in error["message"] and error["code"] == "archive_failed"
    health = client.http.get("/health").json()
    assert health["status"] == "degraded" and health["conversations"]["error"]["message"] == error["message"]
    with running.client() as other:
        assert other.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}]).choices[0].message.content
    (tmp_path / "file").unlink()
    client("POST", "", 201, title="")
    assert client.http.get("/health").json()["conversations"] == {"on_disk": True}
    client.http.close()


def test_a_damaged_file_is_named_and_left_as_it_is(start: Callable[..., Running], tmp_path: Path) -> None:
    file = tmp_path / "conversations.sqlite3"
    file.write_bytes(b"This is no database. " * 500)
    client = Client(start(data_dir=tmp_path))
    error = client("GET", "", 503)["error"]
    assert error["code"] == "archive_damaged" and str(file) in error["message"]
    assert file.read_bytes() == b"This is no database. " * 500
    client.http.close()


def test_without_an_archive_conversations_live_in_memory(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start(archive=False, data_dir=tmp_path / "none")
    client = Client(running)
    id, question = client.question("hello")
    client.answer(id, question)
    assert client("GET", "?query=hello")["conversations"][0]["id"] == id
    assert client.http.get("/health").json()["conversations"] == {"on_disk": False}
    assert not (tmp_path / "none").exists()
    client.http.close()
