"""Work on all processors: NumPy and the native library let go of the interpreter's lock while they compute.

One pool for all of it, and BLAS with one thread in each of the pool's: pieces are fixed, so that results do not depend on the processors, and
nobody spins while he waits for another.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

_A = TypeVar("_A")
_T = TypeVar("_T")

THREADS = len(os.sched_getaffinity(0))
ELEMENTS = 1 << 18
"""Of a piece of rows: it and what is computed beside it stay in the second-level cache."""

PRODUCT = 1 << 20
"""Of rows that are multiplied by a factor, which is packed anew for each piece."""


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "quantize")


def one_thread_each() -> AbstractContextManager[Any]:
    """Within it a product in NumPy uses the thread that asks for it, and no other."""
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def in_order(function: Callable[[_A], _T], items: Iterable[_A]) -> Iterator[_T]:
    """The results of the function, which must not come here again, in order. Few are computed before they are asked for: they may be large."""
    begun: deque[Future[_T]] = deque()
    for item in items:
        begun.append(_pool().submit(function, item))
        if len(begun) > THREADS:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def pieces(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def by_rows(function: Callable[[slice], _T], shape: tuple[int, ...], elements: int = ELEMENTS) -> list[_T]:
    """The results of the function for successive pieces of the rows of a matrix, in order."""
    rows, columns = shape
    return list(in_order(function, pieces(rows, max(1, elements // columns))))
