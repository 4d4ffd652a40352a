"""Fixtures for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command import Command


@pytest.fixture
def qwenbox(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.end()


@pytest.fixture
def small(real_model: Callable[[str], Path]) -> Path:
    """The small real model."""
    return real_model("qwen2.5-coder-0.5b")
