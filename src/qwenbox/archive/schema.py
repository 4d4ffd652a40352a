"""The tables, and how a file of an earlier version becomes one of this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArchiveError

Migrations = Sequence[Sequence[str]]

_FIRST = (
    """CREATE TABLE conversations (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, titled_by TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
        turn INTEGER NOT NULL UNIQUE, leaf TEXT)""",
    # `turn` orders them by their last use; a clock that is set back changes nothing.
    """CREATE TABLE messages (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        parent TEXT REFERENCES messages(id) ON DELETE CASCADE, role TEXT NOT NULL, content TEXT NOT NULL, reasoning TEXT NOT NULL DEFAULT '',
        seconds REAL, why TEXT, state TEXT, error TEXT, model TEXT, usage TEXT, created REAL NOT NULL)""",
    "CREATE INDEX messages_of_conversation ON messages(conversation)",
    "CREATE INDEX messages_of_parent ON messages(parent)",
)
_TRIGRAMS = "CREATE VIRTUAL TABLE found USING fts5(folded, tokenize = 'trigram case_sensitive 1')"
_PLAIN = "CREATE TABLE found (folded TEXT NOT NULL)"
"""The same table without an index, for an SQLite that has no trigrams (before 3.34): a search reads all of it."""


def migrations(connection: sqlite3.Connection) -> Migrations:
    """The statements that lead from each version to the next; `PRAGMA user_version` counts how many of them a file has."""
    return ((*_FIRST, _TRIGRAMS if has_trigrams(connection) else _PLAIN),)


def has_trigrams(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite can index pieces of three characters, which finds Chinese too."""
    try:
        connection.execute("CREATE VIRTUAL TABLE temp.probe USING fts5(folded, tokenize = 'trigram case_sensitive 1')")
        connection.execute("DROP TABLE temp.probe")
    except sqlite3.OperationalError:
        return False
    return True


def is_indexed(connection: sqlite3.Connection) -> bool:
    """Whether this file has the index. ArchiveError where it has and this SQLite cannot read it."""
    (statement,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'found'").fetchone()
    if not statement.startswith("CREATE VIRTUAL"):
        return False
    if not has_trigrams(connection):
        raise ArchiveError(f"The conversations were kept by a newer SQLite; this one ({sqlite3.sqlite_version}) cannot search them. 3.34 can.")
    return True


def migrate(connection: sqlite3.Connection, path: Path | None, steps: Migrations) -> None:
    """Brings the file to the version of `steps`, whole or not at all; an older one is first copied beside itself. A newer one is refused by name."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise ArchiveError(
            f"The conversations in {path} were kept by a newer qwenbox (version {version} of the file, {len(steps)} is known here): "
            "use that one, or choose another folder with --data-dir."
        )
    if version == len(steps):
        return
    if version and path is not None:
        _copy(connection, path.with_name(f"{path.stem}-version-{version}{path.suffix}"))
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it while this one waited.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for step in steps[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy(connection: sqlite3.Connection, to: Path) -> None:
    to.touch(mode=0o600)
    copy = sqlite3.connect(to)
    try:
        connection.backup(copy)
    finally:
        copy.close()
