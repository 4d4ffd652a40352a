"""Fixtures for all tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from qwenbox import hub
from qwenbox.settings import load_settings

LONGEST = (
    *("test_cpp_sanitized", "test_real_models", "test_real_text", "test_clients", "test_cpp_aarch64", "test_forms", "test_cpp", "test_real_batching"),
    *("test_page", "test_tagged_calls", "test_cli_bench", "test_cli_serve", "test_serve_faults", "test_cli_run", "test_conversations_page"),
    *("test_models_real", "test_whole_page", "test_hub_repository", "test_worker", "test_bench_scripts", "test_native_operations"),
    *("test_dropped_files", "test_hub_packages"),
)
"""Files of tests, by `--durations`."""


# The same code gets the same verdict: the same examples each time, and no bound on their seconds.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure() -> None:
    for name in ("MODEL_NAME", "GPU_MEMORY_UTIL", "LOG_LEVEL"):
        os.environ.pop(name, None)  # other programs are set by these too
    os.environ["HF_HOME"] = "/nowhere"  # its models, which services list, are this machine's and not the tests'
    # A shell starts what runs behind it with Ctrl-C ignored, and programs that we start would inherit that: some tests press it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of files that run beside each other those that take longest begin, and those that keep the others waiting end."""
    lonely = {item.path for item in items if item.get_closest_marker("alone")}
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path in lonely, rank.get(item.path.stem, len(rank))))


def pytest_collection_finish(session: pytest.Session) -> None:
    """A file that cannot be read ends it all: beside each other, the tests of the others would run first, for minutes."""
    if session.testsfailed:
        session.shouldstop = f"errors while {session.testsfailed} files were read"


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test's conversations are kept among ours."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """`real_model("qwen2.5-coder-0.5b")`: the verified file in the cache. Without it the test is skipped, or fails if QWENBOX_TEST_REQUIRE=1."""
    settings = load_settings()  # before a test changes the environment

    def find(name: str) -> Path:
        path = hub.pulled(hub.find(name), settings)
        if path is None:
            message = f"{name} is not in {settings.cache_dir}; fetch it with `make models`"
            if os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


@pytest.fixture(scope="module", autouse=True)
def no_worker_stays() -> Iterator[None]:
    """A worker that a file of tests leaves behind holds memory beside all that follow: somebody has not closed it."""
    yield
    workers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now
            workers += [child] if any("qwenbox.engine.worker" in word for word in child.cmdline()) else []
    _, stay = psutil.wait_procs(workers, timeout=30)
    assert not stay


@pytest.fixture(autouse=True)
def room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Shared by the tests that run beside each other; one that is marked `alone` has it to itself."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent
    with (folder / "room").open("w") as room:
        with (folder / "door").open("w") as door:  # who waits for the whole room keeps the others out
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield
