"""The directory that a model is quantised into: finished layers as finished shards, and what is needed to go on after a kill.

While it is not finished there is no `config.json`, and `.quantize/` holds the state, which names every finished shard by its digest and changes
in one step, and what the next layer gets. A second run with the same settings goes on where the first one was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwenbox.errors import UsageError
from qwenbox.hub.manifest import sha256_of
from qwenbox.types import AnyArray, FloatArray
from qwenbox.weights.files import write_whole
from qwenbox.weights.safetensors import INDEX, ArrayParts, write_safetensors

STATE = ".quantize"
_SPARE = 64 << 20
"""Bytes for tokenizer, card and the like."""


class Target:
    """Opened by one process at a time. `settings` are all that the result depends on."""

    def __init__(self, path: Path, settings: Mapping[str, Any], num_shards: int) -> None:
        """Raises UsageError where the directory is in use, holds something else or was begun with other settings; then it is left as it was."""
        self.path, self._settings, self._num_shards = path, dict(settings), num_shards
        self._shards: list[dict[str, Any]] = []
        self._state = path / STATE
        self._refuse_what_is_there()
        self._made = not path.exists()
        with self.writing():
            self._state.mkdir(parents=True, exist_ok=True)
            self._lock = (self._state / "lock").open("w")
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another process is writing {path}") from None
            self._refuse_what_is_there()  # it may have been finished meanwhile
            known = _read(self._state / "state.json")
            if known is None:
                self._save()
            else:
                self._check(known)
        except UsageError:
            self._lock.close()
            raise

    def _refuse_what_is_there(self) -> None:
        if self.path.is_dir():
            names = {entry.name for entry in self.path.iterdir()}
            if not names - {STATE} or (self._state / "state.json").exists():
                return
            with contextlib.suppress(OSError):  # we may have made it, waiting for who finished
                (self._state / "lock").unlink()
                self._state.rmdir()
        elif not self.path.exists():
            return
        raise UsageError(f"{self.path} is there already; take another place, or remove it")

    def close(self) -> None:
        """What was begun stays, unless nothing of it was finished."""
        if not self._shards and [entry.name for entry in self.path.iterdir()] == [STATE]:
            shutil.rmtree(self.path if self._made else self._state)
        self._lock.close()

    @property
    def done(self) -> int:
        """Finished shards."""
        return len(self._shards)

    @property
    def reports(self) -> list[Any]:
        """What was said of each finished shard."""
        return [shard["report"] for shard in self._shards]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the finished shards, by file name."""
        return {self._name(index): shard["sha256"] for index, shard in enumerate(self._shards)}

    def check_room(self, num_bytes: int) -> None:
        """Raises UsageError where so many bytes will not fit beside what is there."""
        written = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free
        needed = num_bytes + _SPARE - written
        if needed > free:
            raise UsageError(f"{self.path} needs {needed / 1e9:.2f} GB more, but only {free / 1e9:.2f} GB are free there")

    def activations(self) -> FloatArray | None:
        """What the next layer gets, where something was kept."""
        if not self._shards or "activations" not in self._shards[-1]:
            return None
        path = self._activations(self.done)
        try:
            values: FloatArray = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}): remove {self.path} and begin again") from None
        if _digest(values) != self._shards[-1]["activations"]:
            raise UsageError(f"{path} is damaged: remove {self.path} and begin again")
        return values

    def finish_shard(self, arrays: Mapping[str, AnyArray | ArrayParts], report: Any, activations: FloatArray | None = None) -> None:
        """The next shard, what is to be said of it, and what the layer after it gets."""
        shard: dict[str, Any] = {"names": list(arrays), "report": report}
        with self.writing():
            path = self.path / self._name(self.done)
            shard["sha256"] = write_safetensors(path, arrays)
            shard["bytes"] = path.stat().st_size
            if activations is not None:
                place = self._activations(self.done + 1)
                with place.open("wb") as file:
                    np.save(file, activations)
                    file.flush()
                    os.fsync(file.fileno())
                shard["activations"] = _digest(activations)
            self._shards.append(shard)
            self._save()
            for old in self._state.glob("activations-*.npy"):
                if old != self._activations(self.done):
                    old.unlink()

    def finish(self, documents: Mapping[str, str | Path]) -> None:
        """Index, then the documents by name, texts or files to copy, `config.json` as the last; then the state goes away."""
        placed = {name: self._name(index) for index, shard in enumerate(self._shards) for name in shard["names"]}
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": placed}
        with self.writing():
            write_whole(self.path / INDEX, (json.dumps(index, indent=1) + "\n").encode())
            for name, document in sorted(documents.items(), key=lambda item: item[0] == "config.json"):
                write_whole(self.path / name, document.read_bytes() if isinstance(document, Path) else document.encode())
            shutil.rmtree(self._state)

    @property
    def num_bytes(self) -> int:
        """Of all finished shards."""
        return sum(shard["bytes"] for shard in self._shards)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Names what keeps us from writing, and the way out. Raises UsageError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UsageError(
                    f"{self.path}: no room left ({error.strerror}). {self.done} of {self._num_shards} parts are finished and kept: "
                    "make room and run the same command again"
                ) from None
            raise UsageError(f"{self.path} cannot be written: {error.strerror}") from None

    def _check(self, known: Mapping[str, Any]) -> None:
        theirs = known.get("settings")
        if not isinstance(theirs, dict) or not isinstance(known.get("shards"), list):
            raise UsageError(f"{self._state / 'state.json'} is damaged: remove {self.path} and begin again")
        differing = sorted(key for key in {*theirs, *self._settings} if theirs.get(key) != self._settings.get(key))
        if differing:
            said = ", ".join(_differing(key, theirs.get(key), self._settings.get(key)) for key in differing)
            raise UsageError(f"{self.path} was begun with other settings ({said}): use those, or remove it")
        for index, shard in enumerate(known["shards"]):
            path = self.path / self._name(index)
            if not path.is_file() or path.stat().st_size != shard["bytes"] or sha256_of(path) != shard["sha256"]:
                raise UsageError(f"{path} is missing or damaged: remove {self.path} and begin again")
        self._shards = known["shards"]

    def _save(self) -> None:
        write_whole(self._state / "state.json", json.dumps({"settings": self._settings, "shards": self._shards}).encode())

    def _name(self, index: int) -> str:
        return f"model-{index + 1:05}-of-{self._num_shards:05}.safetensors"

    def _activations(self, done: int) -> Path:
        return self._state / f"activations-{done:05}.npy"


def _differing(key: str, theirs: Any, ours: Any) -> str:
    """In words; digests say nothing to a person."""
    return f"another {key}" if key in ("model", "calibration") else f"{key} {theirs}, now {ours}"


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): remove {path.parent.parent} and begin again") from None
    return value if isinstance(value, dict) else {}


def _digest(values: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()
