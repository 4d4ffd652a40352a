"""The drawing of who may import whom, kept true by walking the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "qwenbox"

LEVELS = [
    {"types", "errors"},
    {"settings", "metrics", "confinement"},
    {"kernels", "weights", "hub"},
    {"model", "chat"},
    {"engine"},
    {"generation"},
    {"llm", "wire", "archive"},
    {"evaluate", "documents", "quantize"},
    {"server"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, at the top or inside functions, relative imports resolved."""
    package = ("qwenbox", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> Iterator[str]:
    for name in imported_modules(ast.parse(path.read_text(encoding="utf-8")), path):
        # The package itself, for its place and version; what it offers (LLM) is for users.
        if name not in ("qwenbox", "qwenbox.__version__") and name.split(".")[0] == "qwenbox":
            yield name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path: Path) -> None:
    here = part_of(path)
    for there in imported_parts(path):
        assert there in LEVEL, f"{path}: {there} has no place in the drawing"
        if here == "__main__":
            continue
        assert LEVEL[there] < LEVEL[here] or there == here, f"{path}: {here} may not import {there}"


def test_every_part_has_a_level() -> None:
    assert {part_of(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "settings.py"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_settings_reads_the_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
        assert name not in {"environ", "environb", "getenv", "putenv"}, f"{path}: line {getattr(node, 'lineno', '?')}"


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "torch", "transformers", "requests"}
FORBIDDEN_CALLS = {"eval", "exec", "system", "popen"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_executes_data(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imported_modules(tree, path)} & FORBIDDEN_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert called not in FORBIDDEN_CALLS, f"{path}:{node.lineno} calls {called}"
            assert not any(word.arg == "shell" for word in node.keywords), f"{path}:{node.lineno} uses a shell"
