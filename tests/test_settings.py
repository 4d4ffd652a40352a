from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from qwenbox.errors import UsageError
from qwenbox.settings import Settings, describe, is_stated, keep_setting, load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("QWENBOX_", "HF_", "XDG_")):
            monkeypatch.delenv(name)


def test_without_anything_given_the_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.model, settings.offline) == ("127.0.0.1", 8080, "qwen2.5-coder-1.5b", False)
    assert settings.cache_dir == Path.home() / ".cache" / "qwenbox"


def test_the_command_line_beats_the_environment_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENBOX_PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings({"port": None}).port == 9000
    assert load_settings({"port": 9001}).port == 9001


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENBOX_PORT", "")
    assert load_settings().port == 8080


def test_the_variables_of_other_tools_are_honoured_after_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = load_settings()
    assert (settings.hub_endpoint, settings.offline, settings.cache_dir) == ("https://mirror.example", True, tmp_path / "qwenbox")
    monkeypatch.setenv("QWENBOX_HUB_ENDPOINT", "https://other.example")
    monkeypatch.setenv("QWENBOX_OFFLINE", "no")
    settings = load_settings()
    assert (settings.hub_endpoint, settings.offline) == ("https://other.example", False)


def test_a_relative_xdg_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert load_settings().cache_dir == Path.home() / ".cache" / "qwenbox"


def test_an_unknown_variable_is_named_with_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENBOX_CACHE", "/x")
    with pytest.raises(UsageError, match="unknown environment variable QWENBOX_CACHE; did you mean QWENBOX_CACHE_DIR"):
        load_settings()


def test_an_unknown_override_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="unknown setting 'max_queu'; did you mean max_queue"):
        load_settings({"max_queu": 1})


def test_variables_of_the_test_suite_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENBOX_TEST_REQUIRE", "1")
    load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "x", "QWENBOX_PORT: 'x' is not a whole number"),
        ("PORT", "65536", "QWENBOX_PORT: 65536 must be at least 0 and at most 65535"),
        ("PORT", "1.5", "not a whole number"),
        ("THREADS", "0", "QWENBOX_THREADS: 0 must be at least 1"),
        ("KV_GB", "nan", "must be at least 0.001"),
        ("KV_GB", "inf", "must be at least 0.001"),
        ("REQUEST_TIMEOUT", "-1", "must be at least 0.1"),
        ("OFFLINE", "maybe", "'maybe' is not one of 1, 0, true, false"),
        ("WEIGHTS", "int5", "'int5' is not one of stored, bf16, int8, int4; did you mean int"),
        ("LOG_LEVEL", "warn", "did you mean warning"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_rule(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(f"QWENBOX_{variable}", value)
    with pytest.raises(UsageError, match=message):
        load_settings()


def test_settings_are_also_found_under_the_names_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("MODEL_NAME", "qwen3-8b"), ("GPU_MEMORY_UTIL", "0.8"), ("LOG_LEVEL", "DEBUG")):
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert (settings.model, settings.memory_util, settings.log_level) == ("qwen3-8b", 0.8, "debug")
    monkeypatch.setenv("QWENBOX_MODEL", "qwen3-0.6b")
    assert load_settings().model == "qwen3-0.6b"


def test_values_from_python_are_checked_like_texts() -> None:
    for name, value in [("port", True), ("port", 1.5), ("host", 5), ("max_sequences", 0), ("cache_dir", 3)]:
        with pytest.raises(UsageError, match=name):
            load_settings({name: value})


def test_the_key_does_not_show_in_the_representation() -> None:
    assert "hunter2" not in repr(load_settings({"api_key": "hunter2"}))


def test_the_document_and_the_table_agree() -> None:
    assert describe() in (ROOT / "docs" / "settings.md").read_text()
    assert all(f"`{entry.name}`" in describe() for entry in fields(Settings))


def test_what_was_chosen_is_kept_and_gives_way_to_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWENBOX_STATE_DIR", str(tmp_path / "state"))
    assert not is_stated("model", tmp_path / "state")
    keep_setting(tmp_path / "state", "model", "qwen3-8b")
    keep_setting(tmp_path / "state", "port", "9000")
    assert is_stated("model", tmp_path / "state")
    assert (load_settings().model, load_settings().port) == ("qwen3-8b", 9000)
    monkeypatch.setenv("QWENBOX_MODEL", "qwen3-4b")
    assert load_settings().model == "qwen3-4b"
    assert load_settings({"model": "x.gguf"}).model == "x.gguf"
    monkeypatch.delenv("QWENBOX_MODEL")
    keep_setting(tmp_path / "state", "model", None)
    assert not is_stated("model", tmp_path / "state")
    assert load_settings().port == 9000


@pytest.mark.parametrize("content", ["{", "[]", '{"modle": "x"}', '{"port": "many"}', '{"state_dir": "/"}'])
def test_a_damaged_file_of_choices_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    monkeypatch.setenv("QWENBOX_STATE_DIR", str(tmp_path))
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UsageError, match=r"settings\.json"):
        load_settings()
