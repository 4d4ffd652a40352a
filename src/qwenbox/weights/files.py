"""A weight file in memory: mapped, never copied, and no view reaches beyond what was there when it was opened."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import AnyArray, ByteArray, Tensor

_KINDS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


class StoredArray(NamedTuple):
    """An array of a safetensors file; `data` is flat and of exactly the size that type and shape need."""

    dtype: str
    shape: tuple[int, ...]
    data: ByteArray

    def tensor(self, name: str) -> Tensor:
        """A tensor of the numbers themselves. Raises UnsupportedModelError for integers."""
        if self.dtype not in _KINDS:
            raise UnsupportedModelError(f"tensor {name!r} has the unsupported type {self.dtype[:40]}; supported are {', '.join(_KINDS)}")
        return Tensor(name, _KINDS[self.dtype], self.shape, self.data)


class _Mapped(mmap.mmap):
    """A mapped file that can also be read."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """A file, and its folder where there is none: it is there whole, or what it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def location(data: AnyArray) -> tuple[int, int] | None:
    """The descriptor of the mapped file that `data` is part of, open as long as `data` lives, and where it begins there; None otherwise."""
    at = _place(data)
    return None if at is None else (at[0].descriptor, at[1])


def read_ahead(data: AnyArray) -> None:
    """Asks the system to have this part of a mapped file in its cache soon; does nothing for other arrays."""
    _advise(data, mmap.MADV_WILLNEED)


def release(data: AnyArray) -> bool:
    """Takes this part of a mapped file out of the process; false, and nothing is done, for other arrays.

    The pages stay in the system's cache as long as there is room, and are mapped again when somebody looks at them.
    """
    return _advise(data, mmap.MADV_DONTNEED)


def _place(data: AnyArray) -> tuple[_Mapped, int] | None:
    whole = data
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole.base, memoryview) or not isinstance(whole.base.obj, _Mapped):
        return None
    return whole.base.obj, data.ctypes.data - whole.ctypes.data


def _advise(data: AnyArray, advice: int) -> bool:
    at = _place(data)
    if at is None:
        return False
    start = at[1] // mmap.PAGESIZE * mmap.PAGESIZE
    at[0].madvise(advice, start, at[1] + data.nbytes - start)
    return True


def map_file(path: Path) -> ByteArray:
    """A read-only uint8 view of the whole file; it and every slice of it keep the mapping alive. Raises ModelFormatError."""
    try:
        # O_NONBLOCK: the open of a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        mapped = None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError(f"{path}: not a regular file")
            if status.st_size == 0:
                raise ModelFormatError(f"{path}: the file is empty")
            mapped = _Mapped(descriptor, status.st_size, access=mmap.ACCESS_READ)
            mapped.descriptor = descriptor
            return np.frombuffer(mapped, np.uint8)
        finally:
            if mapped is None:
                os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{path}: cannot be read: {error}") from error
