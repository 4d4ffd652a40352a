from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from qwenbox import hub
from qwenbox.cli.pull import pull
from qwenbox.errors import NotFoundError, QwenboxError
from qwenbox.hub.catalogue import Entry
from qwenbox.settings import Settings
from tests.hub.conftest import FILES, WANTED
from tests.hub.fake_hub import Fake

APP = typer.Typer()
APP.command()(pull)


@pytest.fixture(autouse=True)
def _environment(settings: Settings, entry: Entry, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENBOX_CACHE_DIR", str(settings.cache_dir))
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setitem(hub.CATALOGUE, "tiny", entry)


def test_pull_prints_the_path_alone_on_stdout(settings: Settings) -> None:
    result = CliRunner().invoke(APP, ["tiny"])
    assert result.exit_code == 0
    assert result.stdout == f"{settings.cache_dir / 'models' / 'tiny'}\n"


def test_pull_with_json_prints_one_line_of_it(settings: Settings) -> None:
    result = CliRunner().invoke(APP, ["tiny", "--json"])
    line = json.loads(result.stdout)
    assert result.stderr == ""
    assert line["model"] == "tiny"
    assert line["path"] == str(settings.cache_dir / "models" / "tiny")
    assert line["bytes"] == sum(len(FILES[name]) for name in WANTED if name != "manifest.json")
    assert line["seconds"] >= 0


def test_pull_of_an_unknown_model_is_a_not_found_error() -> None:
    result = CliRunner().invoke(APP, ["tinny"])
    assert isinstance(result.exception, NotFoundError)
    assert "did you mean tiny?" in result.exception.message


def test_a_fingerprint_of_a_model_that_does_not_load_is_an_error_behind_a_whole_pull(settings: Settings) -> None:
    result = CliRunner().invoke(APP, ["tiny", "--fingerprint"])
    assert isinstance(result.exception, QwenboxError), "the fake hub's files are no model"
    assert (settings.cache_dir / "models" / "tiny" / "manifest.json").is_file()
