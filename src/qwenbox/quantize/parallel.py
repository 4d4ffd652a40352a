"""Rows of a matrix on all processors: NumPy lets go of the interpreter's lock while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

ELEMENTS = 1 << 18
"""Of a piece: it and what is computed beside it stay in the second-level cache. Fixed, so that sums do not depend on the processors."""


def by_rows(function: Callable[[slice], _T], rows: int, columns: int) -> list[_T]:
    """The results of the function for successive pieces of the rows, in order."""
    step = max(1, ELEMENTS // columns)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(function, (slice(start, min(start + step, rows)) for start in range(0, rows, step))))
