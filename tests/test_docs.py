"""The documents say what is there: files, commands, options, links, levels, the catalogue."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qwenbox import __version__
from qwenbox.cli import app
from qwenbox.hub import CATALOGUE
from tests.test_imports import LEVELS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_in_the_documents_exist_with_their_options(page: Path) -> None:
    from typer.main import get_command

    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"(?:^    |\| )qwenbox (.+)$", text_of(page), re.MULTILINE):
        words = shlex.split(line)
        assert words[0] in commands, line
        known = {option for parameter in commands[words[0]].params for option in parameter.opts}
        for word in words[1:]:
            assert not word.startswith("--") or word in known, f"{page}: {line}: no option {word}"


def test_every_fault_names_a_test_that_there_is() -> None:
    rows = [line for line in text_of(ROOT / "docs" / "faults.md").splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", text_of(ROOT / path), re.MULTILINE), f"{path} has no {name}"


def test_the_tree_in_the_readme_names_every_file_once() -> None:
    tree = text_of(ROOT / "README.md").split("    src/qwenbox/\n")[1].split("    bench/")[0]
    named: list[str] = []
    folder = ""
    for line in tree.splitlines():
        if found := re.match(r"^ {6}([a-z]+)/ ", line):
            folder = found[1] + "/"
        elif re.match(r"^ {6}\S", line):
            folder = ""
        named += [folder + name for name in re.findall(r"([a-z_0-9]+\.py)\b", line) if f"`{name}" not in line]
    files = [str(path.relative_to(ROOT / "src" / "qwenbox")) for path in (ROOT / "src" / "qwenbox").rglob("*.py")]
    assert sorted(named) == sorted(name for name in files if not name.endswith("/__init__.py"))


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_catalogue_in_the_readme_is_the_catalogue(name: str) -> None:
    named = re.findall(r"`(qwen[0-9.]+-[a-z0-9._-]+)`", text_of(ROOT / name))
    assert sorted(set(named)) == sorted(CATALOGUE)


def test_the_levels_in_the_architecture_are_those_that_are_tested() -> None:
    rows = re.findall(r"^\| \d \| (.+) \|$", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == LEVELS[:-1]


def test_every_page_is_reachable_from_the_index() -> None:
    index = text_of(ROOT / "docs" / "index.md")
    for page in (ROOT / "docs").iterdir():
        if page.suffix in (".md", ".ipynb") and page.name != "index.md":
            assert f"({page.name})" in index


def test_the_version_stands_in_one_way() -> None:
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    assert project["version"] == __version__
    assert text_of(ROOT / "CHANGELOG.md").startswith("# Changelog\n")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pages_hold_no_private_places(page: Path) -> None:
    assert not re.search(r"/work/|/tmp/|/root/|\.\./shared", text_of(page))
