"""Bounds on seconds that a machine with other work must not break: the least of a few measurements is compared."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 5


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def least_seconds(act: Callable[[], object], enough: float, tries: int = TRIES) -> float:
    """The shortest that `act` took; it is not repeated once it took less than `enough`. Who is slow by itself is slow each time."""
    least = seconds_of(act)
    for _ in range(tries - 1):
        if least < enough:
            break
        least = min(least, seconds_of(act))
    return least
