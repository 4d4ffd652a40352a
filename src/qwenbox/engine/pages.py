"""Who holds which KV page. Knows page numbers only: no sequence, no token, no memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qwenbox.errors import EngineError
from qwenbox.types import PAGE_TOKENS, IntArray


def pages_for(num_tokens: int) -> int:
    """Pages that cover `num_tokens` tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class PagePool:
    """Pages numbered from 0, each with a count of its holders; a page without holders is free."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` free pages, each with one holder. The caller has looked at `num_free`."""
        if count > len(self._free):
            raise EngineError(f"{count} pages wanted, {len(self._free)} of {self.num_pages} are free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of these pages, which are held already."""
        for page in pages:
            if not self._holders[page]:
                raise EngineError(f"page {page} is free and cannot be shared")
            self._holders[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """One holder less; the last one gives the page back."""
        for page in pages:
            if not self._holders[page]:
                raise EngineError(f"page {page} is given back twice")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def check_integrity(self, tables: Iterable[IntArray]) -> None:
        """EngineError with numbers unless the holders are exactly `tables`, the page tables of everything alive."""
        held = np.zeros(self.num_pages, np.int64)
        for table in tables:
            np.add.at(held, table, 1)
        holders = np.asarray(self._holders)
        if (wrong := np.flatnonzero(held != holders)).size:
            page = int(wrong[0])
            raise EngineError(f"{wrong.size} pages have wrong counts; page {page} counts {holders[page]} holders and is in {held[page]} tables")
        free, used = len(self._free), int(np.count_nonzero(holders))
        if free + used != self.num_pages or len(set(self._free)) != free or any(self._holders[page] for page in self._free):
            raise EngineError(f"free pages ({free}) + used pages ({used}) != pages ({self.num_pages})")
