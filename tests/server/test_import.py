"""Conversations out of files, through the real service: our own exports, those of other programs, what is none; and who is told of what changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.server import conversations
from tests.engine.fakes import eventually
from tests.server.conftest import Running
from tests.server.test_conversations import Client, script


def node(parent: str | None, role: str, *parts: Any, form: str = "text", **more: Any) -> dict[str, Any]:
    """As ChatGPT writes one."""
    return {"parent": parent, "message": {"author": {"role": role}, "content": {"content_type": form, "parts": [*parts]}, **more}}


CHATGPT = {
    "title": "Sea  and\nsky",
    "create_time": 1700000000.5,
    "update_time": 1700000100,
    "current_node": "d",
    "mapping": {
        "root": {"id": "root", "message": None, "parent": None, "children": ["s"]},
        "s": node("root", "system", "be nice"),
        "a": node("s", "user", "Why is the sea blue?", create_time=1700000001),
        "h": node("a", "assistant", form="thoughts"),
        "b": node("h", "assistant", "Because of the sky.", metadata={"model_slug": "gpt-x"}),
        "c": node("h", "assistant", "Another answer."),
        "d": node("b", "user", {"asset": "x"}, "And this?", form="multimodal_text"),
    },
}
OPEN_WEBUI = {
    "title": "计算",
    "created_at": 1710000000,
    "chat": {
        "history": {
            "currentId": "2",
            "messages": {
                "1": {"id": "1", "parentId": None, "role": "user", "content": "三加四？", "timestamp": 1710000001},
                "2": {
                    "id": "2",
                    "parentId": "1",
                    "role": "assistant",
                    "content": '<details type="reasoning" done="true" duration="2">\n<summary>Thought</summary>\n> 3 + 4\n> = 7\n</details>\n七。',
                    "model": "qwen3",
                },
            },
        }
    },
}


@pytest.fixture
def client(start: Callable[..., Running], tmp_path: Path) -> Iterator[Client]:
    running = start(data_dir=tmp_path)
    running.engine.script = script("Seven.")
    client = Client(running)
    yield client
    client.http.close()


def take(client: Client, content: Any) -> httpx2.Response:
    return client.http.post("/conversations/import", content=content if isinstance(content, bytes) else json.dumps(content).encode())


def whole(client: Client, title: str) -> dict[str, Any]:
    (id,) = [one["id"] for one in client("GET", "")["conversations"] if one["title"] == title]
    return dict(client("GET", f"/{id}"))


def shape(conversation: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Messages without the ids, which are new."""
    number = {message["id"]: at for at, message in enumerate(conversation["messages"])}
    return [(number.get(one["parent"]), one["role"], one["content"], one.get("reasoning"), one.get("model")) for one in conversation["messages"]]


def test_an_export_comes_back_with_all_its_branches_and_several_at_once(client: Client) -> None:
    id, question = client.question("three and four?")
    first = client.answer(id, question)[0]["qwenbox"]["message"]
    client.answer(id, question)
    client("PATCH", f"/{id}", title="Sums", leaf=first)
    export = client("GET", f"/{id}/export")
    client("DELETE", f"/{id}")
    assert take(client, [export, {**export, "title": "Again"}]).json() == {"taken": 2, "refused": []}
    for title in ("Sums", "Again"):
        back = whole(client, title)
        assert shape(back) == shape(export) and len(back["messages"]) == 3
        assert [message["id"] for message in back["messages"]].index(back["leaf"]) == 1
        assert (back["created"], back["updated"]) == (export["created"], export["updated"])


def test_conversations_of_chatgpt_and_open_webui_are_taken_with_thoughts_models_and_times(client: Client) -> None:
    assert take(client, [CHATGPT, OPEN_WEBUI]).json() == {"taken": 2, "refused": []}
    sea, sum = whole(client, "Sea and sky"), whole(client, "计算")
    assert shape(sea) == [
        (None, "user", "Why is the sea blue?", None, None),
        (0, "assistant", "Because of the sky.", None, "gpt-x"),
        (1, "user", "And this?", None, None),
        (0, "assistant", "Another answer.", None, None),
    ]
    assert sea["leaf"] == sea["messages"][2]["id"]
    assert (sea["created"], sea["updated"], sea["messages"][0]["created"]) == (1700000000.5, 1700000100, 1700000001)
    assert shape(sum) == [(None, "user", "三加四？", None, None), (0, "assistant", "七。", "3 + 4\n= 7", "qwen3")]
    assert [one["title"] for one in client("GET", "?query=sea")["conversations"]] == ["Sea and sky"]
    chunks = client.answer(sea["id"], sea["leaf"])  # it goes on
    assert chunks[0]["qwenbox"]["parent"] == sea["leaf"]


DEEP = b"[" * 500 + b"]" * 500
OURS = {"format": "qwenbox conversation", "version": 1}
CIRCLE = {"mapping": {"a": {"parent": "b"}, "b": {"parent": "a"}, "c": {"parent": "c"}}}


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (5, "no conversation"),
        ({"title": ["x"]}, "no export of qwenbox, ChatGPT or Open WebUI"),
        ({"format": "qwenbox conversation", "version": 2, "title": "New"}, "use a newer one"),
        ({**OURS, "messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({**OURS, "messages": [{"id": "1", "parent": "9", "role": "user", "content": ""}]}, "a parent stands before"),
        ({**OURS, "messages": [{"role": "user", "content": ""}] * 5000}, "messages"),
        ({**OURS, "created": -1.0}, "created"),
        ({"mapping": {str(n): node(str(n - 1), "user", "x") for n in range(5000)}}, "messages"),
    ],
)
def test_what_is_none_is_named_with_the_reason_and_keeps_nothing_else_out(client: Client, hostile: Any, reason: str) -> None:
    answer = take(client, [hostile, OPEN_WEBUI]).json()
    assert answer["taken"] == 1 and len(answer["refused"]) == 1
    assert reason in answer["refused"][0]["reason"]
    assert [one["title"] for one in client("GET", "")["conversations"]] == ["计算"]


def test_hostile_files_are_refused_and_odd_ones_become_what_they_can(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_IMPORT_BYTES", 100_000)
    for body, status in ((b"{", 400), (b"\xff", 400), (DEEP, 400), (b"[" + b"0," * 3000 + b"0]", 400), (b" " * 200_000, 413)):
        assert take(client, body).status_code == status
    odd = {
        "mapping": {"a": 5, "b": {"message": {"author": "x", "content": {"parts": 7}, "create_time": "soon", "metadata": []}}},
        "title": "x" * 5000,
    }
    script = {**OPEN_WEBUI, "title": "<script>alert(1)</script>"}
    assert take(client, [CIRCLE, odd, script]).json()["taken"] == 3
    listed = client("GET", "")["conversations"]
    assert [len(one["title"]) for one in listed] == [len(script["title"]), 200, 0]


def test_another_window_is_told_which_conversations_have_changed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def news(after: int | str = "") -> dict[str, Any]:
        return dict(client("GET", f"/news?after={after}"))

    at = news()["at"]
    assert news(at) == {"at": at, "changed": []}
    id, question = client.question("three and four?")
    assert news(at)["changed"] == [id]
    at = news()["at"]
    client.answer(id, question)
    eventually(lambda: client("GET", f"/{id}")["title"] == "A Title")
    assert news(at)["changed"] == [id]
    at = news()["at"]
    assert take(client, OPEN_WEBUI).json()["taken"] == 1
    other = whole(client, "计算")["id"]
    client("PATCH", f"/{id}", title="Sums")
    client("DELETE", f"/{other}")
    assert news(at)["changed"] == [other, id] and news(at - 1_000_000_000)["changed"] is None and news(at + 1_000_000_000)["changed"] is None
    assert client("GET", "/news?after=x", 400)["error"]["param"] == "after"
