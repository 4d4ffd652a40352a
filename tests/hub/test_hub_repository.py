from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from huggingface_hub import hf_hub_download

from qwenbox import hub
from qwenbox.errors import DownloadError, NotFoundError
from qwenbox.hub import sources
from qwenbox.hub.catalogue import Entry, Repository
from qwenbox.hub.session import guarded
from qwenbox.hub.sources import HuggingFace, ModelScope, first_reachable
from qwenbox.settings import Settings, child_environment
from tests.hub.conftest import FILES, WANTED
from tests.hub.fake_hub import REPOSITORY, REVISION, WAIT_SECONDS, Fake, serving
from tests.pace import least_seconds

WEIGHTS = "model.safetensors"
PULL = """
import sys
from qwenbox import hub
from qwenbox.hub.catalogue import Entry, Repository
from qwenbox.settings import Settings
print(hub.pull(Entry("tiny", Repository(sys.argv[1]), ""), Settings(cache_dir=__import__("pathlib").Path(sys.argv[2]), hub_endpoint=sys.argv[3])))
"""


def contents(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def check_pulled(path: Path) -> None:
    assert contents(path) == WANTED
    assert all((path / name).read_bytes() == FILES[name] for name in WANTED if name != "manifest.json")
    assert contents(path.parents[1] / "partial") == ["tiny.lock"]


def test_a_pull_brings_the_data_files_and_only_them_with_a_manifest(entry: Entry, settings: Settings, fake: Fake) -> None:
    progress: list[tuple[str, int, int]] = []
    path = hub.pull(entry, settings, lambda phase, done, total: progress.append((phase, done, total)))
    check_pulled(path)
    total = sum(len(FILES[name]) for name in WANTED if name != "manifest.json")
    assert progress[-1] == ("verifying", total, total)
    assert progress == sorted(progress)  # all of one phase, then all of the other
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["revision"], manifest["source"]) == (REVISION, f"{fake.url}/{REPOSITORY}")
    assert manifest["files"][WEIGHTS]["size"] == len(FILES[WEIGHTS])


def test_a_model_that_is_there_is_found_without_the_network(entry: Entry, settings: Settings, fake: Fake) -> None:
    assert hub.pulled(entry, settings) is None
    path = hub.pull(entry, settings)
    fake.requests.clear()
    assert hub.pulled(entry, settings) == path
    assert hub.pull(entry, replace(settings, offline=True)) == path
    assert fake.requests == []


def test_a_damaged_model_is_noticed_and_pulled_again(entry: Entry, settings: Settings, fake: Fake) -> None:
    path = hub.pull(entry, settings)
    with (path / WEIGHTS).open("r+b") as file:
        file.write(b"damage")
    check_pulled(hub.pull(entry, settings))
    (path / WEIGHTS).write_bytes(b"short")
    assert hub.pulled(entry, settings) is None
    check_pulled(hub.pull(entry, settings))


def test_offline_says_what_to_do(entry: Entry, settings: Settings, fake: Fake) -> None:
    with pytest.raises(DownloadError, match="offline is set; pull it once with the network"):
        hub.pull(entry, replace(settings, offline=True))
    assert fake.requests == []


def test_bodies_that_break_off_are_gone_on_with(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.cut_after = 20_000
    check_pulled(hub.pull(entry, settings))
    ranges = [headers.get("range") for path, headers in fake.requests if path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=20000-", "bytes=40000-"]


def test_a_hub_that_sends_nothing_is_given_up_and_gone_on_with_later(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.cut_after = 0
    with pytest.raises(DownloadError, match=r"config\.json: .*0 of 23 bytes are there. Run the same command again"):
        hub.pull(entry, settings)
    fake.cut_after = None
    check_pulled(hub.pull(entry, settings))


def test_errors_of_the_server_are_tried_again_and_then_reported(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.status = 503
    with pytest.raises(DownloadError, match=r"config\.json: the hub answered 503"):
        hub.pull(entry, settings)
    assert fake.fetched("resolve") == 4
    fake.status = 403
    with pytest.raises(DownloadError, match=r"config\.json: the hub answered 403"):
        hub.pull(entry, settings)
    assert fake.fetched("resolve") == 5


def partial(settings: Settings, content: bytes) -> None:
    (settings.cache_dir / "partial" / "tiny").mkdir(parents=True)
    (settings.cache_dir / "partial" / "tiny" / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    ("beginning", "behaviour"),
    [
        (FILES[WEIGHTS][:30_000], {}),
        (FILES[WEIGHTS], {}),
        (FILES[WEIGHTS] + b"too long", {}),
        (b"another revision" * 100, {}),
        (b"another revision" * 3200, {}),
        (FILES[WEIGHTS][:30_000], {"ignore_range": True}),
        (FILES[WEIGHTS][:30_000], {"content_range": "bytes 0-51199/51200"}),
        (FILES[WEIGHTS][:30_000], {"content_range": "bytes 30000-99999/100000"}),
        (FILES[WEIGHTS][:30_000], {"content_range": "nonsense"}),
    ],
)
def test_whatever_a_broken_pull_left_behind_the_next_one_ends_verified(
    entry: Entry, settings: Settings, fake: Fake, beginning: bytes, behaviour: dict[str, Any]
) -> None:
    partial(settings, beginning)
    (settings.cache_dir / "partial" / "tiny" / "stale.json").write_text("of another revision")
    for name, value in behaviour.items():
        setattr(fake, name, value)
    check_pulled(hub.pull(entry, settings))


def test_what_is_there_is_not_fetched_again(entry: Entry, settings: Settings, fake: Fake) -> None:
    partial(settings, FILES[WEIGHTS][:30_000])
    check_pulled(hub.pull(entry, settings))
    assert [headers["range"] for path, headers in fake.requests if path.endswith(WEIGHTS)] == ["bytes=30000-"]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_content_that_is_not_what_was_announced_never_becomes_a_model(entry: Entry, settings: Settings, fake: Fake, name: str) -> None:
    fake.served[name] = bytes(len(FILES[name]))
    with pytest.raises(DownloadError, match=f"{name}: the digest is [0-9a-f]+, expected [0-9a-f]+; the file was thrown away"):
        hub.pull(entry, settings)
    assert hub.pulled(entry, settings) is None
    assert not (settings.cache_dir / "models").exists()
    fake.served.clear()
    check_pulled(hub.pull(entry, settings))


def test_more_than_was_announced_is_not_written(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.served[WEIGHTS] = FILES[WEIGHTS] + bytes(10_000_000)
    with pytest.raises(DownloadError, match="sends more than the 51200 bytes"):
        hub.pull(entry, settings)
    assert sum(path.stat().st_size for path in settings.cache_dir.rglob("*")) < 1_000_000


def test_an_encoding_that_nobody_asked_for_is_refused(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.content_encoding = "gzip"
    with pytest.raises(DownloadError, match="encoded as 'gzip', unasked"):
        hub.pull(entry, settings)


HOSTILE = ["../x.json", "/etc/x.json", "a/../../x.json", "a/./b.json", "a//b.json", "C:\\x.json", "..\\x.json", "x\x00.json", "x\n.json", "", 7, None]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_name_condemns_the_repository_and_nothing_is_written(
    entry: Entry, settings: Settings, fake: Fake, tmp_path: Path, name: Any
) -> None:
    fake.listing = [*fake.true_listing(), {"rfilename": name, "size": 1, "blobId": "0" * 40}]
    with pytest.raises(DownloadError, match="hostile name"):
        hub.pull(entry, settings)
    assert contents(tmp_path) == ["cache/partial/tiny.lock"]
    assert fake.fetched("resolve") == 0


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ([{"rfilename": "config.json", "size": -1, "blobId": "0" * 40}], "without a size"),
        ([{"rfilename": "config.json", "size": True, "blobId": "0" * 40}], "without a size"),
        ([{"rfilename": "config.json", "size": 5}], "without a digest"),
        ([{"rfilename": "config.json", "size": 5, "blobId": "../../x"}], "without a digest"),
        ([{"rfilename": "config.json", "size": 5, "lfs": {"sha256": "../x", "size": 5, "pointerSize": 134}}], "a sha256 that is none"),
        ([{"rfilename": "config.json", "size": 5, "blobId": "0" * 40}, {"rfilename": "Config.json", "size": 5, "blobId": "0" * 40}], "twice"),
        ([{"rfilename": f"f{n}.json", "size": 0, "blobId": "0" * 40} for n in range(1001)], "more than 1000 files"),
        ([{"rfilename": "x" * 300 + ".json", "size": 5, "blobId": "0" * 40}], r"no config\.json"),
        ([], r"no config\.json"),
        ([{"name": "config.json"}], "a listing of another form"),
        ([5], "a listing of another form"),
        (b"[]", "a listing of another form"),
        (b'{"id": "x", "sha": "main", "siblings": []}', "a revision that is no commit"),
        (b"<html>sign in</html>", "does not answer with JSON"),
        (b"[" * 100_000, "does not answer with JSON"),
        (b" " * (17 << 20), "more than 16777216 bytes"),
    ],
)
def test_a_listing_that_cannot_be_trusted_is_refused(
    entry: Entry, settings: Settings, fake: Fake, tmp_path: Path, listing: Any, message: str
) -> None:
    fake.listing = listing
    with pytest.raises(DownloadError, match=message):
        hub.pull(entry, settings)
    assert contents(tmp_path) == ["cache/partial/tiny.lock"]


def test_a_repository_that_the_hub_does_not_have_is_an_error(settings: Settings) -> None:
    with pytest.raises(DownloadError, match=r"has no repository Qwen/None for you \(404\)\. Choose another model.* set HF_ENDPOINT"):
        hub.pull(Entry("none", Repository("Qwen/None"), ""), settings)


def test_terms_that_one_has_to_agree_to_are_named(settings: Settings, fake: Fake) -> None:
    fake.refused = frozenset({"Qwen/Terms"})
    with pytest.raises(DownloadError, match=r"Qwen/Terms is given only to those who agree to its terms: agree there, and set HF_TOKEN"):
        hub.pull(Entry("terms", Repository("Qwen/Terms"), ""), settings)


def test_the_fake_hub_is_one_to_huggingface_hub_too(fake: Fake, tmp_path: Path) -> None:
    path = hf_hub_download(REPOSITORY, WEIGHTS, revision=REVISION, endpoint=fake.url, token=False, cache_dir=tmp_path)
    assert Path(path).read_bytes() == FILES[WEIGHTS]


# --- tokens and redirects ---


def test_the_token_goes_to_the_hub_and_never_to_where_it_redirects(entry: Entry, settings: Settings, fake: Fake) -> None:
    with serving(Fake(files=dict(FILES))) as elsewhere:
        fake.redirect = elsewhere.url
        check_pulled(hub.pull(entry, replace(settings, hub_token="secret")))
        without = [path for path, headers in fake.requests if headers.get("authorization") != "Bearer secret"]
        assert without == ["/"]  # who only looks whether it is there
        assert elsewhere.fetched("resolve") == 3
        assert not any("authorization" in headers or "secret" in str(headers) for _, headers in elsewhere.requests)


def test_a_redirect_that_goes_round_is_given_up(entry: Entry, settings: Settings, fake: Fake) -> None:
    fake.redirect = fake.url
    with pytest.raises(DownloadError, match="redirect"):
        hub.pull(entry, settings)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://169.254.169.254/latest/meta-data", "the private address 169.254.169.254; refused"),
        ("https://127.0.0.1/x", "the private address 127.0.0.1"),
        ("https://[::1]/x", "the private address ::1"),
        ("https://localhost/x", "the private address localhost"),
        ("https://10.0.0.8/x", "the private address 10.0.0.8"),
        ("http://cdn.example/x", "redirects to cdn.example without encryption"),
    ],
)
def test_a_public_hub_cannot_send_us_to_a_private_address_or_to_plain_http(location: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.host)
        return httpx2.Response(302, headers={"Location": location})

    mine = httpx2.Client(transport=httpx2.MockTransport(handle), follow_redirects=True)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: mine)
    with guarded() as session, pytest.raises(DownloadError, match=message):
        session.get("https://hub.example/file")
    assert seen == ["hub.example"]


# --- hubs that do not answer ---


@contextmanager
def silent() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_hub_costs_at_most_two_seconds(entry: Entry, settings: Settings) -> None:
    with silent() as url:

        def pull() -> None:
            said = f"no model hub can be reached within 2 seconds .{url}.*set HF_ENDPOINT or pip's index to a mirror"
            with pytest.raises(DownloadError, match=said):
                hub.pull(entry, replace(settings, hub_endpoint=url))

        assert least_seconds(pull, 2.8) < 2.8


def test_a_name_that_is_looked_up_for_ever_costs_at_most_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def lookup(*args: Any, **options: Any) -> list[Any]:
        never.wait(WAIT_SECONDS)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    def reach() -> None:
        with pytest.raises(DownloadError, match="no answer"):
            first_reachable([HuggingFace("https://hub.example"), ModelScope("https://other.example")])

    assert least_seconds(reach, 2.8) < 2.8
    never.set()


def test_a_refused_connection_is_reported_at_once(entry: Entry, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def pull() -> None:
        with pytest.raises(DownloadError, match="refused"):
            hub.pull(entry, replace(settings, hub_endpoint=f"http://127.0.0.1:{port}"))

    assert least_seconds(pull, 1.5) < 1.5


def test_where_the_first_hub_does_not_answer_modelscope_does(entry: Entry, settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as url:
        monkeypatch.setattr(sources, "HUGGING_FACE", url)
        path = hub.pull(entry, replace(settings, hub_endpoint=None, modelscope_endpoint=fake.url))
    check_pulled(path)
    assert fake.fetched("/api/v1/models/") == 4
    assert json.loads((path / "manifest.json").read_text())["revision"].startswith("master-")


# --- interruption ---


TOTAL = sum(len(FILES[name]) for name in WANTED if name != "manifest.json")


def pull_and_kill(settings: Settings, fake: Fake, sent: int) -> None:
    """A pull in a process of its own, killed when the hub has sent so many bytes."""
    fake.sent, fake.stall_after = 0, sent
    fake.stalled.clear()
    fake.released.clear()
    command = [sys.executable, "-c", PULL, REPOSITORY, str(settings.cache_dir), fake.url]
    with subprocess.Popen(command, env=child_environment(PYTHONPATH=os.pathsep.join(sys.path)), stdout=subprocess.DEVNULL) as process:
        assert fake.stalled.wait(WAIT_SECONDS)
        process.send_signal(signal.SIGKILL)
    fake.released.set()
    fake.stall_after = None


@pytest.mark.parametrize("sent", [0, 1, 25_000, TOTAL - 1_000])
def test_a_pull_that_was_killed_is_gone_on_with(entry: Entry, settings: Settings, fake: Fake, sent: int) -> None:
    pull_and_kill(settings, fake, sent)
    assert hub.pulled(entry, settings) is None
    check_pulled(hub.pull(entry, settings))


@pytest.mark.long
def test_fifty_pulls_killed_anywhere_one_after_the_other_leave_nothing_that_is_not_verified(entry: Entry, settings: Settings, fake: Fake) -> None:
    random = Random(7)
    for run in range(50):
        target = settings.cache_dir / "partial" / "tiny" / WEIGHTS
        there = target.stat().st_size if target.exists() else 0
        pull_and_kill(settings, fake, random.randrange(TOTAL - there))
        assert hub.pulled(entry, settings) is None
        if run % 7 == 6:
            check_pulled(hub.pull(entry, settings))
            shutil.rmtree(settings.cache_dir)


def test_a_full_disk_is_named_and_the_pull_goes_on_when_there_is_room(entry: Entry, settings: Settings, fake: Fake) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    command = [sys.executable, "-c", limit + PULL, REPOSITORY, str(settings.cache_dir), fake.url]
    done = subprocess.run(command, env=child_environment(PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 1
    assert "is full; free some space, or set QWENBOX_CACHE_DIR" in done.stderr
    fake.requests.clear()
    check_pulled(hub.pull(entry, settings))
    assert [headers["range"] for path, headers in fake.requests if path.endswith(WEIGHTS)] == ["bytes=20000-"]


def test_the_space_is_looked_at_before_anything_is_fetched(entry: Entry, settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(DownloadError, match=r"has 0\.00 GB free, 0\.07 GB are needed"):
        hub.pull(entry, settings)
    assert fake.fetched("resolve") == 0


def test_a_cache_that_cannot_be_written_is_named(entry: Entry, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="set QWENBOX_CACHE_DIR to a directory that can be written"):
        hub.pull(entry, replace(settings, cache_dir=tmp_path / "file"))


def test_of_two_pulls_at_once_one_fetches_and_both_return_the_model(entry: Entry, settings: Settings, fake: Fake) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(hub.pull(entry, settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(paths) == 4
    check_pulled(paths[0])
    assert fake.fetched(WEIGHTS) == 1


# --- names ---


def test_a_path_is_taken_as_it_is(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert hub.resolve(str(tmp_path), settings) == tmp_path
    assert hub.resolve(str(tmp_path / "x.gguf"), settings) == tmp_path / "x.gguf"


def test_an_unknown_name_lists_what_exists_and_the_nearest(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match=r"no model 'qwen3-9b'; did you mean qwen3-8b\? .*qwen2\.5-coder-0\.5b.*qwen3-30b-a3b"):
        hub.resolve("qwen3-9b", settings)
    with pytest.raises(NotFoundError, match=r"no model '/no/such/file\.gguf'"):
        hub.resolve("/no/such/file.gguf", settings)


def test_a_name_of_the_catalogue_may_also_be_its_repository() -> None:
    assert hub.find("Qwen/Qwen3-8B") is hub.find("qwen3-8b") is hub.find("Qwen3-8B")


def test_resolve_pulls_what_is_missing_once(settings: Settings, fake: Fake, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hub.CATALOGUE, "tiny", entry)
    check_pulled(hub.resolve("tiny", settings))
    fake.requests.clear()
    check_pulled(hub.resolve("tiny", settings))
    assert fake.requests == []
