"""What makes a model in the cache trustworthy: digests, the manifest written after they matched, and names that stay in their directory."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError

MANIFEST = "manifest.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_BLOCK = 1 << 20

Advance = Callable[[int], None]
"""Told the bytes of the current file or part that are there, or that have been read."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was verified when a model was put into the cache, and where it came from."""

    model: str
    source: str
    revision: str
    files: Mapping[str, FileDigest]


def is_plain_name(name: str) -> bool:
    """Whether a file name from outside is one path component of harmless characters."""
    return _PLAIN_NAME.fullmatch(name) is not None


def sha256_of(path: Path, advance: Advance | None = None) -> str:
    return _digest_of(path, hashlib.sha256(), advance)


def git_digest_of(path: Path, advance: Advance | None = None) -> str:
    """The name that git gives the content: SHA-1 over a header with the length, and the bytes."""
    return _digest_of(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), advance)


def _digest_of(path: Path, digest: hashlib._Hash, advance: Advance | None) -> str:
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if advance is not None:
                advance(done)
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Last of all files, and all of them on the disk: a directory with a manifest is complete."""
    path = directory / MANIFEST
    path.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    for name in [*manifest.files, MANIFEST]:
        flush(directory / name)
    flush(directory)


def read_manifest(directory: Path) -> Manifest | None:
    """None where there is none that can be read: then the model counts as not pulled."""
    try:
        raw: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        files = {str(name): FileDigest(int(entry["size"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
        return Manifest(str(raw["model"]), str(raw["source"]), str(raw["revision"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_complete(directory: Path) -> bool:
    """Whether every file that was verified is still there with its size; quick, for every start."""
    manifest = read_manifest(directory)
    try:
        return manifest is not None and all((directory / name).stat().st_size == entry.size for name, entry in manifest.files.items())
    except OSError:
        return False


def check_digest(path: Path, expected: str, digest: Callable[[Path, Advance | None], str], way_out: str, advance: Advance | None = None) -> None:
    """Raises DownloadError, and removes the file, where it is not the one that was announced."""
    found = digest(path, advance)
    if found != expected:
        path.unlink()
        raise DownloadError(f"{path.name}: the digest is {found}, expected {expected}; the file was thrown away. {way_out}", code="download_damaged")


def flush(path: Path) -> None:
    """Onto the disk, also the entries of a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
