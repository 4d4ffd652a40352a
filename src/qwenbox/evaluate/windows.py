"""Token ids in windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwenbox.errors import UsageError


@dataclass(frozen=True, slots=True)
class Window:
    """A run of tokens, of which those at `first` and later are scored (the others are context, and were scored before)."""

    ids: list[int]
    first: int


def windows(ids: Iterable[int], size: int, stride: int) -> Iterator[Window]:
    """Windows of `size` ids that advance by `stride`; every id but the very first is scored exactly once.

    A scored id has at least `size - stride` ids before it, or all there are.
    """
    if not 0 < stride < size:
        raise UsageError(f"a window of {size} tokens cannot advance by {stride}: the stride must be at least 1 and less than the window")
    source = iter(ids)
    window = list(itertools.islice(source, size))
    first = 1
    while len(window) > first:
        yield Window(window, first)
        fresh = list(itertools.islice(source, stride))
        if not fresh:
            return
        window = window[len(window) - (size - stride) :] + fresh
        first = size - stride
