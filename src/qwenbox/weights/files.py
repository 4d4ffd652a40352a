"""A weight file in memory: mapped, never copied, and no view reaches beyond what was there when it was opened."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np

from ..errors import ModelFormatError
from ..types import ByteArray


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
