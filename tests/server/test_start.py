"""The first minute: which model a service comes to by itself. Workers are real, models are tiny and pose as the sizes of the catalogue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwenbox.hub import CATALOGUE
from qwenbox.hub.catalogue import Repository
from qwenbox.model import choice as planner
from qwenbox.model.choice import Machine
from qwenbox.server.choice import Choice
from qwenbox.server.serve import Service
from qwenbox.server.stock import Stock
from qwenbox.settings import Settings, keep_setting
from tests.hub.fake_hub import Fake, serving
from tests.hub.test_disk import places, put_into_ollama, write
from tests.tiny import tiny_gguf

OLLAMA = "registry.ollama.ai/library"
FIRST, BEST = "qwen3-0.6b-q8_0", "qwen3-4b-q4_k_m"


class Minute:
    """A service that begins with nothing but what is in a folder."""

    def __init__(self, folder: Path, *, stated: bool = False, **more: Any) -> None:
        self.settings = places(folder)
        named = {name: getattr(self.settings, name) for name in ("cache_dir", "ollama_dir", "huggingface_dir", "modelscope_dir", "lmstudio_dir")}
        self.settings = Settings(**named | {"state_dir": folder / "state", "port": 0, "archive": False, "threads": 1, **more})
        self.said: list[str] = []
        self.asked: list[tuple[str, Callable[[bool], None]]] = []
        stock = Stock(self.settings, undecided=True)
        chooses = Choice(stock, stated=stated, say=self.said.append, ask=lambda text, answer: self.asked.append((text, answer)))
        self.service = Service(None, self.settings, stock, chooses)
        self.http = httpx2.Client(base_url=self.service.url, trust_env=False, timeout=60)

    def __enter__(self) -> Minute:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.service.stop()

    def choice(self) -> dict[str, Any]:
        return self.http.get("/choice").json()

    def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not condition(now := self.choice()):
            assert time.monotonic() < deadline, now
        return now

    def settled(self) -> dict[str, Any]:
        return self.until(lambda now: now["phase"] == "settled")

    def decide(self, **body: Any) -> httpx2.Response:
        return self.http.post("/choice", json=body)

    def answer(self) -> str:
        """The model that answers."""
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        response = self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["model"])

    @property
    def kept(self) -> dict[str, Any]:
        path = self.settings.state_dir / "settings.json"
        return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 GB at 24 GB/s, where the 4B is best."""
    monkeypatch.setattr(planner, "measure", lambda threads: Machine(24_000_000_000, 24e9))


@contextmanager
def catalogue_hub() -> Iterator[Fake]:
    """Every GGUF of the catalogue, tiny."""
    entries = [entry for entry in CATALOGUE.values() if isinstance(entry.source, Repository) and entry.source.file is not None]
    more = {entry.source.name: {entry.source.file: tiny_gguf(entry.name)} for entry in entries}  # type: ignore[union-attr]
    with serving(Fake(more=more)) as fake:
        yield fake


@pytest.fixture
def hub() -> Iterator[Fake]:
    with catalogue_hub() as fake:
        yield fake


def test_a_model_of_ollama_is_served_in_place_and_nothing_goes_over_the_network(tmp_path: Path, hub: Fake) -> None:
    put_into_ollama(tmp_path / "ollama", f"{OLLAMA}/qwen3/8b", tiny_gguf())
    write(tmp_path / "ollama" / "manifests" / OLLAMA / "qwen3" / "14b", b"{")
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        now = minute.settled()
        assert (now["model"], now["because"], now["practice"]) == ("qwen3:8b", "disk", False)
        assert minute.answer() == "qwen3:8b"
        problems = {one["name"]: one["problem"] for one in now["here"]}
        assert problems["qwen3:8b"] is None
        assert "damaged" in problems["qwen3:14b"]
        offers = {offer["name"]: offer for offer in minute.until(lambda now: now["offers"])["offers"]}
        assert offers["qwen3-8b-awq"]["speed"] > 0
        assert not any(offer["verified"] for offer in offers.values())
        assert hub.requests == []
        assert minute.kept == {"model": "qwen3:8b"}
        assert {model["id"] for model in minute.http.get("/v1/models").json()["data"]} == {"qwen3:8b"}
    assert list((tmp_path / "own").rglob("*.gguf")) == []


def test_a_choice_stays_whatever_comes_later(tmp_path: Path) -> None:
    put_into_ollama(tmp_path / "ollama", f"{OLLAMA}/qwen3/0.6b", tiny_gguf("one"))
    put_into_ollama(tmp_path / "ollama", f"{OLLAMA}/qwen3/8b", tiny_gguf("another one"))
    keep_setting(tmp_path / "state", "model", "qwen3:0.6b")
    with Minute(tmp_path, stated=True, model="qwen3:0.6b", offline=True) as minute:
        assert (minute.settled()["model"], minute.settled()["because"]) == ("qwen3:0.6b", "stated")
        assert minute.answer() == "qwen3:0.6b"
        # Only a person changes it.
        assert minute.decide(model="qwen3:8b").status_code == 200
        assert minute.until(lambda now: now["switched"])["switched"] == {"from": "qwen3:0.6b", "to": "qwen3:8b"}
        assert minute.answer() == "qwen3:8b"
        assert minute.kept == {"model": "qwen3:8b"}


def test_with_a_hub_the_small_one_answers_and_a_better_one_takes_over_when_somebody_says_yes(tmp_path: Path, hub: Fake) -> None:
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        assert minute.answer() in ("auto", FIRST)  # sent when nothing was decided; it waited
        now = minute.until(lambda now: now["phase"] == "asking")
        assert (now["asked"], now["model"], minute.kept) == (BEST, FIRST, {})
        assert not hub.fetched("4B")
        assert "2.5 GB" in minute.asked[0][0]
        assert minute.decide(yes=True).status_code == 200
        assert minute.until(lambda now: now["switched"])["switched"] == {"from": FIRST, "to": BEST}
        assert minute.answer() == BEST
        assert minute.kept == {"model": BEST}
        assert any(BEST in said and "in place of" in said for said in minute.said)
        states = {model["id"]: model["qwenbox"]["state"] for model in minute.http.get("/v1/models").json()["data"]}
        assert states[BEST] == "ready"


def test_who_says_no_at_the_terminal_keeps_the_small_one_and_is_not_asked_again(tmp_path: Path, hub: Fake) -> None:
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        minute.until(lambda now: now["phase"] == "asking")
        minute.asked[0][1](False)
        assert minute.settled()["asked"] is None
        assert (minute.kept, minute.answer()) == ({"model": FIRST}, FIRST)
        assert not hub.fetched("4B")
        assert minute.decide(yes=True).status_code == 409


def test_a_choice_that_was_broken_off_is_gone_on_with_behind_what_is_here(tmp_path: Path, hub: Fake) -> None:
    put_into_ollama(tmp_path / "ollama", f"{OLLAMA}/qwen3/0.6b", tiny_gguf())
    with Minute(tmp_path, stated=True, model=BEST, hub_endpoint=hub.url) as minute:
        assert minute.until(lambda now: now["switched"])["switched"] == {"from": "qwen3:0.6b", "to": BEST}
        assert minute.answer() == BEST


def test_with_nothing_the_page_is_there_and_takes_a_path_or_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere" / "my-own.gguf", tiny_gguf())
    (tmp_path / "empty").mkdir()
    with Minute(tmp_path, offline=True) as minute:
        now = minute.until(lambda now: now["phase"] == "nothing")
        assert "offline" in now["problem"]
        assert minute.http.get("/").status_code == 200
        health = minute.http.get("/health").json()
        assert (health["state"], health["choice"]) == ("choosing", "nothing")
        assert minute.http.get("/ready").status_code == 503
        for body, param in (
            ({"path": "my-own.gguf"}, "path"),
            ({"path": "/etc/passwd"}, "path"),
            ({"folder": str(tmp_path / "empty")}, "folder"),
            ({}, "model"),
        ):
            refused = minute.decide(**body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert minute.decide(model="qwen3-9b").status_code == 404
        assert minute.decide(folder=str(tmp_path / "elsewhere")).status_code == 200
        assert [one["name"] for one in minute.choice()["here"]] == ["my-own"]
        assert minute.decide(path=str(file)).status_code == 200
        assert minute.settled()["model"] == "my-own"
        assert minute.answer() == "my-own"
        assert minute.kept["model"] == str(file)


def test_without_a_hub_the_practice_model_is_tried_and_then_a_mirror_that_somebody_names(
    tmp_path: Path, hub: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("PIP_INDEX_URL", nowhere)
    with Minute(tmp_path, hub_endpoint=nowhere) as minute:
        now = minute.until(lambda now: now["phase"] == "nothing")
        assert (now["model"], now["because"], now["practice"]) == ("qwen2.5-coder-1.5b", "index", True)
        assert "package index cannot be reached" in now["problem"]
        assert any("third party" in said and "without thinking" in said for said in minute.said)
        assert minute.decide(endpoint="ftp://x").status_code == 400
        assert minute.decide(endpoint=hub.url).status_code == 200
        assert minute.until(lambda now: now["phase"] == "asking")["model"] == FIRST
        assert minute.answer() == FIRST
        assert minute.kept == {"hub_endpoint": hub.url}
