"""What is freed goes back to the system: a layer's matrices come and go, and the largest of them decides what a machine needs."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 4 << 20


def give_back_large_blocks() -> None:
    """From now on every block of 4 MiB and more is mapped by itself and unmapped when it is freed.

    glibc otherwise raises that limit to 32 MiB as soon as such a block is freed, and keeps the parts of half a layer. Nothing happens elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
