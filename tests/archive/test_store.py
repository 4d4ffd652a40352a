"""The archive's file: what was confirmed is there, whatever happens between; searches find what the slow obvious search finds."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbox.archive import schema
from qwenbox.archive.conversation import StoredMessage, first_words
from qwenbox.archive.search import fold, snippet, terms_of
from qwenbox.archive.store import Store
from qwenbox.errors import ArchiveError, NotFoundError, RequestError
from qwenbox.settings import child_environment

LETTERS = "aAbB 你好世界，递归ßÄä\"'*%_\\-ＡＢ()ǅ\n👩‍👧\0"
"""Few, so that queries hit; some that mean something to SQL and to FTS5, some that change when they are folded."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "conversations.sqlite3"


def integrity(file: Path) -> str:
    connection = sqlite3.connect(file)
    try:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def slow_search(texts: list[tuple[str, list[str]]], query: str) -> set[str]:
    """Titles of the conversations that a search finds: one text, or the title, has all the words."""
    words = fold(query).split()
    return {title for title, messages in texts if any(all(word in fold(text) for word in words) for text in [title, *messages])}


@pytest.mark.parametrize("indexed", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=4), min_size=1, max_size=5),
    queries=st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_a_search_finds_what_the_slow_search_finds(indexed: bool, texts: list[list[str]], queries: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not indexed:
            patch.setattr(schema, "has_trigrams", lambda connection: False)
        store = Store(None)
    named = [(f"t{number}{messages[0]}", messages) for number, messages in enumerate(texts)]
    for title, messages in named:
        store.create(title, [StoredMessage(str(n), str(n - 1) if n else None, "user", text, 0.0) for n, text in enumerate(messages)])
    pieces = [text[start : start + 4] for messages in texts for text in messages for start in range(0, len(text), 3)]
    for query in [*queries, *pieces]:
        found, more = store.list(query, 100, None)
        assert {summary.title for summary in found} == slow_search(named, query), repr(query)
        assert not more
    store.close()


def test_a_hostile_query_is_only_text(file: Path) -> None:
    store = Store(file)
    store.create("plain", [StoredMessage("0", None, "user", '100% sure; it\'s "quoted" AND (bracketed) NEAR/2 * col: x', 0.0)])
    for query in ('"quoted"', "100%", "it's", "AND", "(bracketed)", "NEAR/2", "*", "col:", "') OR 1=1 --"):
        found = [summary.title for summary in store.list(query, 10, None)[0]]
        assert found == ([] if "1=1" in query else ["plain"]), query
    store.close()


def test_a_snippet_shows_the_place_and_not_the_beginning() -> None:
    assert snippet("x " * 200 + "the needle is here" + " y" * 200, "NEEDLE").count("needle") == 1
    assert len(snippet("字" * 5000 + "针" + "字" * 5000, "针")) < 140
    assert snippet("short", "nowhere") == "short"
    assert terms_of("  Ｆｕｌｌ width ") == ["full", "width"]
    file = '<file name="a.txt">\nlong\n</file>\n\n'
    assert first_words(file + file + "what is it?") == "what is it?" and first_words(file) == "a.txt"
    assert first_words("a " * 100).endswith("…") and len(first_words("字" * 100)) == 61


def test_the_list_comes_in_pages_the_last_used_first_and_a_clock_set_back_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(file)
    ids = [store.create(f"number {number}").id for number in range(7)]
    monkeypatch.setattr(time, "time", lambda: 5.0)
    store.add_message(ids[2], None, "user", "again")
    expected = [2, 6, 5, 4, 3, 1, 0]
    seen, before, more = [], None, True
    while more:
        page, more = store.list("", 3, before)
        before = page[-1].id
        seen += [summary.title for summary in page]
    assert seen == [f"number {number}" for number in expected]
    with pytest.raises(NotFoundError):
        store.list("", 3, "0" * 32)
    store.close()


def test_messages_are_a_tree_and_belong_to_their_conversation(file: Path) -> None:
    store = Store(file)
    one, other = store.create(""), store.create("")
    question = store.add_message(one.id, None, "user", "first question of all")
    answer = store.add_message(one.id, question.id, "assistant", "", model="m")
    assert store.end_answer(answer.id, "so it is", "hm", seconds=1.5, why={"mode": "on"}, usage={"prompt_tokens": 3})
    edited = store.add_message(one.id, None, "user", "edited")
    got = store.get(one.id)
    assert got.title == "first question of all" and got.leaf == edited.id
    assert [message.content for message in got.branch()] == ["edited"]
    assert [message.content for message in got.branch(answer.id)] == ["first question of all", "so it is"]
    assert got.messages[1].why == {"mode": "on"} and got.messages[1].seconds == 1.5 and got.messages[1].usage == {"prompt_tokens": 3}
    for wrong in (
        lambda: store.add_message(other.id, question.id, "user", "foreign"),
        lambda: store.update(other.id, leaf=answer.id),
    ):
        with pytest.raises(RequestError):
            wrong()
    assert store.give_title(one.id, "made by a model") and store.get(one.id).titled_by == "model"
    store.update(one.id, title="mine")
    assert not store.give_title(one.id, "late") and store.get(one.id).title == "mine"
    with pytest.raises(NotFoundError):
        store.add_message("0" * 32, None, "user", "nowhere")
    store.close()


def test_what_is_deleted_is_in_no_file_and_no_search(file: Path) -> None:
    store = Store(file)
    id = store.create("", [StoredMessage("0", None, "user", "Xanthippe is my cat's name 递归来了", 0.0)]).id
    kept = store.create("", [StoredMessage("0", None, "user", "kept", 0.0)]).id
    answer = store.add_message(id, store.get(id).leaf, "assistant", "")
    store.delete(id)
    assert [summary.id for summary in store.list("", 10, None)[0]] == [kept]
    assert store.list("Xanthippe", 10, None)[0] == []
    assert not store.save_answer(answer.id, "late", "") and not store.end_answer(answer.id, "late", "")
    more = store.tidy()
    while more:
        more = store.tidy(begin=False)
    store.close()
    data = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert b"kept" in data and b"ept" in data
    for piece in ("Xanthippe", "xan", "hip", "my cat", "递归", "归来"):
        assert piece.encode() not in data, piece


def test_nobody_else_may_read_it(file: Path) -> None:
    Store(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_an_answer_that_was_left_behind_is_interrupted_and_can_be_found(file: Path) -> None:
    store = Store(file)
    id = store.create("").id
    question = store.add_message(id, None, "user", "q")
    answer = store.add_message(id, question.id, "assistant", "")
    store.save_answer(answer.id, "half of it", "")
    assert store.list("half of it", 10, None)[0] == []
    again = Store(file)
    assert again.get(id).messages[1].state == "interrupted" and again.get(id).messages[1].content == "half of it"
    assert [summary.id for summary in again.list("half of it", 10, None)[0]] == [id]
    assert store.end_answer(answer.id, "whole", "")  # a second service changed nothing for the first
    assert again.get(id).messages[1].state is None
    for one in (store, again):
        one.close()
    assert integrity(file) == "ok"


def later(connection: sqlite3.Connection) -> schema.Migrations:
    return (*schema.migrations(connection), ("ALTER TABLE conversations ADD COLUMN pinned INTEGER", "UPDATE conversations SET pinned = 0"))


def broken(connection: sqlite3.Connection) -> schema.Migrations:
    return (*schema.migrations(connection), ("ALTER TABLE conversations ADD COLUMN pinned INTEGER", "UPDATE nowhere SET x = 0"))


def test_an_older_file_is_copied_and_brought_up_and_a_newer_one_is_refused_by_name(file: Path) -> None:
    store = Store(file)
    id = store.create("old").id
    store.close()
    with pytest.raises(sqlite3.OperationalError):
        Store(file, broken)
    store = Store(file)
    assert store.get(id).title == "old"
    store.close()
    newer = Store(file, later)
    assert newer.get(id).title == "old"
    newer.close()
    copy = file.with_name("conversations-version-1.sqlite3")
    assert integrity(copy) == "ok" and stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(ArchiveError, match=r"kept by a newer qwenbox \(version 2 of the file, 1 is known here\)"):
        Store(file)
    old = Store(copy)
    assert old.get(id).title == "old"
    old.close()


WRITER = """
import sys
from pathlib import Path
from qwenbox.archive.store import Store

store = Store(Path(sys.argv[1]))
id = store.create("").id
parent = None
for number in range(100000):
    question = store.add_message(id, parent, "user", f"question {number} " + "x" * (number * 37 % 3000))
    print(id, question.id, flush=True)
    answer = store.add_message(id, question.id, "assistant", "")
    store.save_answer(answer.id, "half", "")
    store.end_answer(answer.id, f"answer {number}", "")
    print(id, answer.id, flush=True)
    parent = answer.id
    if number % 20 == 19:
        id, parent = store.create("").id, None
"""


def test_what_was_confirmed_before_a_kill_at_any_moment_is_there(file: Path) -> None:
    confirmed: list[tuple[str, str]] = []
    chance = random.Random(1)
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True, env=child_environment(PYTHONPATH=os.pathsep.join(sys.path))
        )
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 60)):
            confirmed.append(tuple(writer.stdout.readline().split()))  # type: ignore[arg-type]
        writer.send_signal(signal.SIGKILL)
        confirmed += [tuple(line.split()) for line in writer.communicate()[0].splitlines() if len(line) == 66]  # type: ignore[misc]
        store = Store(file)
        ids = {(summary.id, message.id) for summary in store.list("", 1000, None)[0] for message in store.get(summary.id).messages}
        assert set(confirmed) <= ids
        store.close()
        assert integrity(file) == "ok"


def test_a_torn_log_loses_only_what_it_tore(file: Path) -> None:
    """The end of the log is missing or wrong, as after a loss of power while it was written."""
    store = Store(file)
    ids = [store.create(f"number {number}").id for number in range(20)]
    whole = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    store.close()
    chance = random.Random(2)
    for _ in range(20):
        for path in file.parent.iterdir():
            path.unlink()
        cut = chance.randrange(len(whole["conversations.sqlite3-wal"]))
        file.write_bytes(whole[file.name])
        log = bytearray(whole["conversations.sqlite3-wal"])
        if chance.random() < 0.5:
            log[cut] ^= 1 << chance.randrange(8)
        else:
            del log[cut:]
        (file.parent / "conversations.sqlite3-wal").write_bytes(log)
        store = Store(file)
        titles = {summary.id for summary in store.list("", 100, None)[0]}
        assert titles == set(ids[: len(titles)])  # a beginning of what was written
        store.close()
        assert integrity(file) == "ok"
