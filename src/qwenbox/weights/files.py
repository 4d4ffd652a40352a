"""A weight file in memory: mapped, never copied, and no view reaches beyond what was there when it was opened."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..types import ByteArray, Tensor

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


def map_file(path: Path) -> ByteArray:
    """A read-only uint8 view of the whole file; it and every slice of it keep the mapping alive. Raises ModelFormatError."""
    try:
        # O_NONBLOCK: the open of a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError(f"{path}: not a regular file")
            if status.st_size == 0:
                raise ModelFormatError(f"{path}: the file is empty")
            return np.frombuffer(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{path}: cannot be read: {error}") from error
