"""The store in a thread of its own, for an event loop that nothing may block."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArchiveError
from .store import Store

log = logging.getLogger("qwenbox.archive")

FILE = "conversations.sqlite3"
Result = TypeVar("Result")


class Archive:
    """`folder` None: conversations live in memory, until the process ends.

    A file that cannot be opened or written is an ArchiveError of the call, and the next call tries again: the service goes on without it.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE
        self.error: ArchiveError | None = None
        """Why the last call failed, for those who ask how the service is."""
        self._store: Store | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qwenbox-archive")
        self._thread.submit(self._try, lambda store: None)

    def close(self) -> None:
        """When what was begun is done."""
        self._thread.submit(self._end)
        self._thread.shutdown()

    async def do(self, work: Callable[[Store], Result]) -> Result:
        """`work` with the store, in its thread. Raises ArchiveError, or what `work` raises of ours."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def delete(self, id: str) -> None:
        """Deletes a conversation, and whenever there is nothing else to do a piece of what the index knows of it."""
        await self.do(lambda store: store.delete(id))
        self._thread.submit(self._tidy, True)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[Store], Result]) -> Result:
        try:
            if self._store is None:
                self._store = Store(self.path)
            result = work(self._store)
        except (sqlite3.Error, OSError, ArchiveError) as error:
            self._shut()  # whatever state it is in: the next call begins anew
            told = error if isinstance(error, ArchiveError) else self._refusal(error)
            if self.error is None or self.error.message != told.message:
                log.error("%s", told.message)
            self.error = told
            raise told from None
        if self.error is not None:
            log.info("conversations are kept again")
            self.error = None
        return result

    def _try(self, work: Callable[[Store], Any]) -> None:
        """At the start: how it went stands in `error`."""
        with suppress(ArchiveError):
            self._run(work)

    def _tidy(self, begin: bool) -> None:
        with suppress(ArchiveError, RuntimeError):  # RuntimeError: the archive is closing
            if self._run(lambda store: store.tidy(begin)):
                self._thread.submit(self._tidy, False)

    def _shut(self) -> None:
        # One in memory is all there is of it: its errors are no reason to lose it.
        if self.path is not None:
            self._end()

    def _end(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _refusal(self, error: sqlite3.Error | OSError) -> ArchiveError:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            way = "Free some space; what was confirmed before is kept."
            return ArchiveError(f"The conversation could not be written to {self.path}: {error}. {way}", code="archive_full")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            way = "Move the file away to begin anew; `sqlite3 FILE .recover` reads what is left of it."
            return ArchiveError(f"The conversations in {self.path} are damaged: {error}. {way}", code="archive_damaged")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return ArchiveError(f"Another program holds the conversations in {self.path}; try again.", code="archive_busy")
        way = "Choose another folder with --data-dir, or keep conversations in memory only with --no-archive."
        return ArchiveError(f"Conversations cannot be kept in {self.path}: {error}. {way}")
