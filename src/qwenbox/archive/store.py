"""Conversations in an SQLite file. Everything here blocks and belongs to one thread; `archive.py` is for everybody else.

What a method wrote is on the disk when it returns. A method that raises has changed nothing.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import orjson

from ..errors import NotFoundError, RequestError
from . import search
from .conversation import Conversation, State, StoredMessage, Summary, first_words
from .schema import Migrations, is_indexed, migrate, migrations

MAX_MESSAGES = 4096
"""Of one conversation, all branches counted."""
BUSY_SECONDS = 5.0
TIDY_PAGES = 64
_COLUMNS = "id, parent, role, content, created, reasoning, seconds, why, state, error, model, usage"


class Store:
    """`path` None: in memory, gone with the process."""

    def __init__(self, path: Path | None, steps: Callable[[sqlite3.Connection], Migrations] = migrations) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what people write is theirs alone to read
        self._path = path
        self._connection = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # FULL: a transaction that was acknowledged survives the loss of power. secure_delete: what is deleted is overwritten.
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "journal_size_limit = 16777216"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._connection.create_function("fold", 1, search.fold, deterministic=True)
            migrate(self._connection, path, steps(self._connection))
            self._indexed = is_indexed(self._connection)
            self._recover()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def list(self, query: str, limit: int, before: str | None) -> tuple[list[Summary], bool]:
        """Conversations that have `query` in their title or in a message, the last used first, from `before` on; and whether there are more."""
        turn = self._row("SELECT turn FROM conversations WHERE id = ?", before)[0] if before is not None else 2**62
        terms = search.terms_of(query)
        if not terms:
            sql = "SELECT id, title, created, updated, NULL FROM conversations WHERE turn < ? ORDER BY turn DESC LIMIT ?"
            rows = self._connection.execute(sql, (turn, limit + 1)).fetchall()
        else:
            messages, title = search.in_messages(terms, indexed=self._indexed), search.in_title(terms)
            sql = f"""
                WITH hits(conversation, number) AS (
                    SELECT messages.conversation, max(messages.number) FROM found JOIN messages ON messages.number = found.rowid
                    WHERE {messages.sql} GROUP BY messages.conversation)
                SELECT conversations.id, title, conversations.created, updated, messages.content FROM conversations
                LEFT JOIN hits ON hits.conversation = conversations.id LEFT JOIN messages ON messages.number = hits.number
                WHERE (hits.number IS NOT NULL OR ({title.sql})) AND turn < ? ORDER BY turn DESC LIMIT ?"""
            rows = self._connection.execute(sql, (*messages.values, *title.values, turn, limit + 1)).fetchall()
        found = [Summary(id, name, made, used, search.snippet(text, query) if text else "") for id, name, made, used, text in rows[:limit]]
        return found, len(rows) > limit

    def get(self, id: str) -> Conversation:
        title, titled_by, created, updated, leaf = self._row("SELECT title, titled_by, created, updated, leaf FROM conversations WHERE id = ?", id)
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM messages WHERE conversation = ? ORDER BY number", (id,))
        return Conversation(id, title, titled_by, created, updated, leaf, tuple(map(_message, rows)))

    # --- writing ------------------------------------------------------------------------------------------------------

    def create(
        self, title: str, messages: Sequence[StoredMessage] = (), leaf: str | None = None, created: float | None = None, updated: float | None = None
    ) -> Conversation:
        """A conversation, with messages where they come from elsewhere: they get ids of their own. Times in Unix seconds, otherwise now."""
        id, now = _new_id(), time.time()
        if len(messages) > MAX_MESSAGES:
            raise RequestError(f"messages: a conversation has at most {MAX_MESSAGES}.", param="messages")
        ids: dict[str | None, str | None] = {None: None}
        with self._transaction():
            titled_by = "person" if title else "words"
            questions = [message.content for message in messages if message.role == "user"]
            values = (
                id,
                title or first_words(questions[0] if questions else ""),
                titled_by,
                created or now,
                updated or created or now,
                self._next_turn(),
            )
            self._connection.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, NULL)", values)
            for message in messages:
                if message.parent not in ids:
                    raise RequestError("messages: a parent stands before its answers.", param="messages")
                ids[message.id] = self._insert(id, message, _new_id(), ids[message.parent])
            last = ids.get(leaf) if leaf is not None else list(ids.values())[-1]
            self._connection.execute("UPDATE conversations SET leaf = ? WHERE id = ?", (last, id))
        return self.get(id)

    def update(self, id: str, title: str | None = None, leaf: str | None = None) -> None:
        """Renames it, or shows another branch."""
        with self._transaction():
            self._row("SELECT id FROM conversations WHERE id = ?", id)
            if title is not None:
                self._connection.execute("UPDATE conversations SET title = ?, titled_by = 'person' WHERE id = ?", (title, id))
            if leaf is not None:
                self._check_message(id, leaf, "leaf")
                self._connection.execute("UPDATE conversations SET leaf = ? WHERE id = ?", (leaf, id))

    def delete(self, id: str) -> None:
        """Its text is overwritten in the file and in its log; `tidy` takes its pieces out of the index."""
        with self._transaction():
            self._row("SELECT id FROM conversations WHERE id = ?", id)
            self._connection.execute("DELETE FROM found WHERE rowid IN (SELECT number FROM messages WHERE conversation = ?)", (id,))
            self._connection.execute("DELETE FROM conversations WHERE id = ?", (id,))
        self._empty_log()

    def tidy(self, begin: bool = True) -> bool:
        """A step of some milliseconds that writes the index anew, without what was deleted. True: there are more of them."""
        if not self._indexed:
            return False
        before = self._connection.total_changes
        self._connection.execute("INSERT INTO found (found, rank) VALUES ('merge', ?)", (-TIDY_PAGES if begin else TIDY_PAGES,))
        more = self._connection.total_changes - before > 1  # FTS5's own sign
        if not more:
            self._empty_log()
        return more

    def give_title(self, id: str, title: str) -> bool:
        """The title that a model made, unless somebody has given one."""
        with self._transaction():
            sql = "UPDATE conversations SET title = ?, titled_by = 'model' WHERE id = ? AND titled_by = 'words'"
            return self._connection.execute(sql, (title, id)).rowcount > 0

    def add_message(
        self, conversation: str, parent: str | None, role: Literal["user", "assistant"], content: str, model: str | None = None
    ) -> StoredMessage:
        """A question, or an answer that begins. It is the end of the branch that is shown."""
        message = StoredMessage(_new_id(), parent, role, content, time.time(), state="running" if role == "assistant" else None, model=model)
        with self._transaction():
            (title,) = self._row("SELECT title FROM conversations WHERE id = ?", conversation)
            if parent is not None:
                self._check_message(conversation, parent, "parent")
            (count,) = self._row("SELECT count(*) FROM messages WHERE conversation = ?", conversation)
            if count >= MAX_MESSAGES:
                raise RequestError(f"This conversation has {MAX_MESSAGES} messages already; begin a new one.", code="conversation_full")
            self._insert(conversation, message, message.id, parent)
            sql = "UPDATE conversations SET leaf = ?, updated = ?, turn = ?, title = ? WHERE id = ?"
            values = (message.id, message.created, self._next_turn(), title or first_words(content), conversation)
            self._connection.execute(sql, values)
        return message

    def save_answer(self, id: str, content: str, reasoning: str) -> bool:
        """The text so far; False where the answer was deleted."""
        with self._transaction():
            return self._connection.execute("UPDATE messages SET content = ?, reasoning = ? WHERE id = ?", (content, reasoning, id)).rowcount > 0

    def end_answer(
        self,
        id: str,
        content: str,
        reasoning: str,
        *,
        state: State | None = None,
        seconds: float | None = None,
        why: Any = None,
        error: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> bool:
        """The whole answer, which can be found from now on."""
        with self._transaction():
            known = self._connection.execute("SELECT number, conversation FROM messages WHERE id = ?", (id,)).fetchone()
            if known is None:
                return False
            sql = "UPDATE messages SET content = ?, reasoning = ?, state = ?, seconds = ?, why = ?, error = ?, usage = ? WHERE id = ?"
            self._connection.execute(sql, (content, reasoning, state, seconds, _json(why), _json(error), _json(usage), id))
            self._connection.execute("UPDATE conversations SET updated = ? WHERE id = ?", (time.time(), known[1]))
            self._index(known[0], content)
        return True

    # --- parts --------------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Answers that a process left behind when it ended."""
        if not self._connection.execute("SELECT 1 FROM messages WHERE state = 'running'").fetchone():
            return
        with self._transaction():
            for number, content in self._connection.execute("SELECT number, content FROM messages WHERE state = 'running'").fetchall():
                self._connection.execute("UPDATE messages SET state = 'interrupted' WHERE number = ?", (number,))
                self._index(number, content)

    def _empty_log(self) -> None:
        with suppress(sqlite3.OperationalError):  # no room for it, or somebody reads: later, then
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _row(self, sql: str, id: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._connection.execute(sql, (id,)).fetchone()
        if row is None:
            raise NotFoundError("There is no such conversation; it may have been deleted.", code="conversation_not_found")
        return row

    def _check_message(self, conversation: str, id: str, param: str) -> None:
        if not self._connection.execute("SELECT 1 FROM messages WHERE id = ? AND conversation = ?", (id, conversation)).fetchone():
            raise RequestError(f"{param}: the conversation has no such message.", param=param)

    def _next_turn(self) -> int:
        (turn,) = self._connection.execute("SELECT coalesce(max(turn), 0) + 1 FROM conversations").fetchone()
        return int(turn)

    def _insert(self, conversation: str, message: StoredMessage, id: str, parent: str | None) -> str:
        values = (
            id, conversation, parent, message.role, message.content, message.reasoning, message.seconds, _json(message.why), message.state,
            _json(message.error), message.model, _json(message.usage), message.created,
        )  # fmt: skip
        names = "id, conversation, parent, role, content, reasoning, seconds, why, state, error, model, usage, created"
        number = self._connection.execute(f"INSERT INTO messages ({names}) VALUES ({', '.join('?' * len(values))})", values).lastrowid
        if message.state != "running":
            self._index(number, message.content)
        return id

    def _index(self, number: int | None, content: str) -> None:
        self._connection.execute("DELETE FROM found WHERE rowid = ?", (number,))
        self._connection.execute("INSERT INTO found (rowid, folded) VALUES (?, ?)", (number, search.fold(content)))


def _new_id() -> str:
    return secrets.token_hex(16)


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _message(row: Sequence[Any]) -> StoredMessage:
    id, parent, role, content, created, reasoning, seconds, why, state, error, model, usage = row
    parsed = (None if text is None else orjson.loads(text) for text in (why, error, usage))
    why, error, usage = parsed
    return StoredMessage(id, parent, role, content, created, reasoning, seconds, why, state, error, model, usage)
