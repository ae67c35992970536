"""The session database: a tree of messages in one file, safe under concurrent use and killed processes."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from command_line import start_python
from disks import full_disk

from cerebrum_cli.chat import store as session_database
from cerebrum_cli.chat.session import ReplyMetadata, Session, StoredMessage
from cerebrum_cli.chat.store import Store, translated
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import SessionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "sessions.db"


@pytest.fixture
def sessions(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as store:
        yield store


def add_texts(sessions: Store, session: Session, *texts: str) -> Session:
    """Append texts to a session, user and assistant alternating."""
    first = len(sessions.messages(session)) % 2
    for number, text in enumerate(texts, first):
        session = sessions.add_message(session, Message("assistant" if number % 2 else "user", text))
    return session


def texts(messages: list[StoredMessage]) -> list[str]:
    return [stored.message.content for stored in messages]


def search_results(sessions: Store, text: str) -> list[tuple[str, str]]:
    return [(hit.session.name, hit.message.message.content) for hit in sessions.search(text)]


def selected(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def change(path: Path, statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(statements)


@pytest.mark.parametrize("name", ["", " a", "a\nb", "\x1b[2J", "a"], ids=repr)
def test_store_refuses_unprintable_names_and_names_in_use(sessions: Store, name: str) -> None:
    session, other = sessions.create("a", "chat"), sessions.create("b", "chat")
    problem = "session 'a' already exists" if name == "a" else f"invalid session name: {name!r}"
    for attempt in (partial(sessions.create, name, "chat"), partial(sessions.update_session, other, name=name)):
        with pytest.raises(SessionError) as caught:
            attempt()
        assert caught.value.message == problem
        assert caught.value.hint
    assert (sessions.find("a"), sessions.find("b")) == (session, other)


def test_unused_name_appends_a_number_if_needed(sessions: Store) -> None:
    for name in ("a", "a-2", "a-4", "b-2", "100%", "_", "日本😀"):
        sessions.create(name, "ask")
    bases = ("a", "a-2", "b", "c", "100%", "100", "_", "%", "日本😀", "日本")
    unused = ["a-3", "a-2-2", "b", "c", "100%-2", "100", "_-2", "%", "日本😀-2", "日本"]
    assert [sessions.unused_name(base) for base in bases] == unused


def test_summaries_list_the_most_recently_changed_first(sessions: Store) -> None:
    a, b, c = (sessions.create(name, "chat") for name in "abc")
    assert sessions.latest() == c
    b = add_texts(sessions, b, "first", "second")
    a = add_texts(sessions, a, "hello")
    sessions.update_message(b, Message("assistant", "third"), ReplyMetadata())
    listed = [(summary.session.name, summary.messages, summary.first) for summary in sessions.summaries()]
    assert listed == [("b", 2, "first"), ("a", 1, "hello"), ("c", 0, "")]
    assert sessions.names() == ["b", "a", "c"]
    assert sessions.summaries()[1].session == a
    assert (latest := sessions.latest()) and latest.id == b.id


METADATA = ReplyMetadata(
    finish_reason="stop",
    model="owner/repo:Q4_0",
    format="chatml",
    vocabulary="0123456789abcdef",
    params={"temperature": 0.1, "top_k": 40, "stop": ["\n\n", "ä"], "max_tokens": None},
    seed=2**32 - 2,
    timings={"load_s": 1.0000000000000002, "prefill_tokens": 16},
)


@pytest.mark.parametrize(
    ("message", "metadata"),
    [
        (Message("user", "Hello"), ReplyMetadata()),
        (Message("assistant", "Four.", (1, 2, 128_255, 2**31 - 1, 0), reasoning="2 und 2 — 四 😀"), METADATA),
        (Message("assistant", "", (), reasoning=""), ReplyMetadata("cancelled", params={}, timings={}, seed=0)),
        (Message("user", " \r\n\t ä é 日本語 😀👩‍👩‍👧 \u2028\ufeff\U0010ffff\x01 "), ReplyMetadata()),
        (Message("assistant", "a" * 2**20, tuple(range(2**18))), METADATA),
    ],
    ids=("plain", "all", "empty", "unicode", "long"),
)
def test_message_round_trip(sessions: Store, path: Path, message: Message, metadata: ReplyMetadata) -> None:
    session = sessions.add_message(sessions.create("a", "chat"), message, metadata)
    sessions.close()
    with contextlib.closing(Store(path)) as reopened:
        [stored] = reopened.messages(session)
        assert (stored.message, stored.metadata) == (message, metadata)
        assert (stored.id, stored.parent) == (session.leaf, None)
        assert session.created <= stored.created <= session.updated


def test_remove_deletes_all_messages_of_a_session(sessions: Store, path: Path) -> None:
    session = add_texts(sessions, sessions.create("a", "chat"), "one", "two", "three", "four")
    other = add_texts(sessions, sessions.create("b", "chat"), "one")
    session = add_texts(sessions, sessions.move(session, sessions.messages(session)[2].id), "another four")
    assert sessions.remove(session) == 5
    assert (sessions.find("a"), texts(sessions.messages(other))) == (None, ["one"])
    assert search_results(sessions, "one") == [("b", "one")]
    assert (sessions.remove(other), sessions.summaries()) == (1, [])
    assert selected(path, "SELECT count(*) FROM messages") == [(0,)]


def stored_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_vacuum_erases_removed_text_from_the_file(sessions: Store, path: Path) -> None:
    session = add_texts(sessions, sessions.create("about-giraffes", "chat"), "a secret zebra", "elephants secretly")
    kept = add_texts(sessions, sessions.create("kept", "chat"), "an okapi")
    sessions.update_message(
        session, Message("assistant", "elephants secretly, and a walrus", reasoning="hippos"), ReplyMetadata()
    )
    words = (b"giraffes", b"secret", b"zebra", b"elephant", b"walrus", b"hippos")
    assert all(word in stored_bytes(path) for word in words)
    with contextlib.closing(Store(path)) as other:  # an open chat
        assert len(other.summaries()) == 2
        sessions.remove(session)
        sessions.vacuum()
        assert [word for word in words if word in stored_bytes(path)] == []
        assert search_results(other, "okapi") == [("kept", "an okapi")]
        assert texts(other.messages(kept)) == ["an okapi"]
    assert selected(path, "PRAGMA integrity_check") == [("ok",)]


def test_removed_session_cannot_be_changed(sessions: Store, path: Path) -> None:
    session = add_texts(sessions, sessions.create("a", "chat"), "one", "two")
    sessions.remove(session)
    changes: tuple[Callable[[], object], ...] = (
        lambda: sessions.add_message(session, Message("user", "more")),
        lambda: sessions.update_message(session, Message("user", "more"), ReplyMetadata()),
        lambda: sessions.move(session, None),
        lambda: sessions.update_session(session, name="b"),
    )
    for change in changes:
        with pytest.raises(SessionError) as caught:
            change()
        assert "FOREIGN KEY" not in caught.value.message
    assert selected(path, "SELECT content FROM messages") == []


# Search.

TEXT = 'cats AND dogs "mice" NOT near(birds) star* 50% C++ ÉTÉ 我今天在东京吃了拉面'
FOUND = '"mice"|cats|dogs cats|CATS Dogs|été|cat|cats birds mice|NOT near|near(birds|star*|50%|%|C++|拉面|京 今天'
NOT_FOUND = "cats lions|京东|content:cats|cat? | || \n\t|\ufffd|\udcff|{|\\|😀"


def test_search_finds_all_words_of_a_text_anywhere_in_a_message(sessions: Store) -> None:
    add_texts(sessions, sessions.create("b", "chat"), "nothing of it")
    add_texts(sessions, sessions.create("a", "chat"), TEXT)
    for query in FOUND.split("|"):
        assert search_results(sessions, query) == [("a", TEXT)], query
    for query in NOT_FOUND.split("|"):
        assert search_results(sessions, query) == [], query


def test_search_lists_the_latest_first_and_excerpts_them(sessions: Store) -> None:
    long = "word " * 500 + "an elephant stands here " + "word " * 500
    session = add_texts(sessions, sessions.create("a", "chat"), "elephant elephant", long)
    hits = sessions.search("elephant")
    assert [hit.message.message.content for hit in hits] == [long, "elephant elephant"]
    assert hits[0].excerpt == "…" + long[long.index("elephant") - 30 :][:99] + "…"
    assert sessions.search("elephant", limit=1) == hits[:1]
    assert hits[0].session == session


def test_search_finds_messages_on_other_branches(sessions: Store) -> None:
    session = add_texts(sessions, sessions.create("a", "chat"), "one", "two", "three", "an elephant")
    add_texts(sessions, sessions.move(session, sessions.messages(session)[1].id), "four")
    add_texts(sessions, sessions.move(session, sessions.messages(session)[2].id), "an elephant sleeps", "elephant?")
    add_texts(sessions, sessions.move(session, sessions.messages(session)[2].id), "no elephant")
    found = ["no elephant", "elephant?", "an elephant sleeps"]  # without the version that was continued
    assert search_results(sessions, "elephant") == [("a", text) for text in found]


# Transactions and other processes.


def test_database_has_no_log_that_its_readers_share(sessions: Store, path: Path) -> None:
    """A write-ahead log needs memory that all readers share, which machines with one file system do not have."""
    add_texts(sessions, sessions.create("a", "chat"), "Why?")
    assert selected(path, "PRAGMA journal_mode") == [("delete",)]


def test_file_system_without_locks_is_unwritable(path: Path) -> None:
    error = sqlite3.OperationalError("locking protocol")
    error.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
    with pytest.raises(SessionError, match="locking protocol"), translated(path):
        raise error


def test_busy_database_is_a_session_error(sessions: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_database, "BUSY_TIMEOUT_S", 0.05)
    with contextlib.closing(Store(path)) as other, sessions.transaction():
        assert other.summaries() == []
        with pytest.raises(SessionError) as caught:
            other.create("a", "chat")
        assert caught.value.message == f"{path}: database is locked"
        assert "close other programs that use the file" in caught.value.hint
    assert sessions.create("a", "chat").name == "a"


IMPORTS = """
import sys
from pathlib import Path
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.chat.store import Store
store = Store(Path(sys.argv[1]))
"""
WRITE_SESSIONS = """
print("ready", flush=True); sys.stdin.readline()
for number in range(15):
    session = store.create(f"{sys.argv[2]}-{number}", "ask")
    session = store.add_message(session, Message("user", f"question {sys.argv[2]} {number}"))
    store.add_message(session, Message("assistant", f"answer {sys.argv[2]} {number}", (number,)))
"""
WRITE_MESSAGES = """
session = store.create("a", "chat")
for number in range(1_000_000):
    text = f"{number} " + "word " * 10_000
    session = store.add_message(session, Message(("user", "assistant")[number % 2], text))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_concurrent_writers_lose_nothing(path: Path) -> None:
    writers = [start_python(IMPORTS + WRITE_SESSIONS, path, number) for number in range(4)]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:  # released together, so that several create the file concurrently
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 4
    with contextlib.closing(Store(path)) as sessions:
        stored = {each.session.name: texts(sessions.messages(each.session)) for each in sessions.summaries()}
    assert selected(path, "PRAGMA user_version") == [(6,)]
    assert stored == {
        f"{writer}-{number}": [f"question {writer} {number}", f"answer {writer} {number}"]
        for writer in range(4)
        for number in range(15)
    }


@pytest.mark.slow
def test_killed_process_leaves_every_committed_message(path: Path) -> None:
    writer = start_python(IMPORTS + WRITE_MESSAGES, path)
    assert writer.stdout
    for _ in range(12):
        writer.stdout.readline()
    writer.kill()
    committed = 12 + len((writer.stdout.read() + writer.communicate()[0]).split())
    with contextlib.closing(Store(path)) as sessions:
        session = sessions.find("a")
        assert session
        numbers = [int(text.split()[0]) for text in texts(sessions.messages(session))]
        assert numbers == list(range(len(numbers)))
        assert committed <= len(numbers) <= committed + 1  # killed before it could print
        assert search_results(sessions, "0")[:1]
        add_texts(sessions, session, "continued")
    assert selected(path, "PRAGMA integrity_check") == [("ok",)]


# Unusable databases.

RECOVER = "or use --no-log; to recover what is readable: sqlite3 "


def errors_of(path: Path) -> Iterator[SessionError]:
    """Yield the error of each operation on a database: one line for the problem, one for the fix."""
    attempts: tuple[Callable[[Store], object], ...] = (
        Store.summaries,
        lambda sessions: sessions.create("new", "chat"),
        lambda sessions: sessions.search("word"),
    )
    for attempt in attempts:
        with contextlib.closing(Store(path)) as sessions, pytest.raises(SessionError) as caught:
            attempt(sessions)
        assert caught.value.message and caught.value.hint
        assert "\n" not in caught.value.message + caught.value.hint
        yield caught.value


def test_damaged_database_is_reported_and_never_overwritten(path: Path) -> None:
    with contextlib.closing(Store(path)) as sessions:
        add_texts(sessions, sessions.create("a", "chat"), *("word " * 1000 for _ in range(100)))
    data = path.read_bytes()
    for damaged in (b"this is not a database\n" * 500, b"X" * 100 + data[100:], data[: len(data) // 2]):
        path.write_bytes(damaged)
        for error in errors_of(path):
            assert error.message.startswith(f"{path} is damaged: ")
            assert RECOVER in error.hint
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("version", [4, 99])
def test_database_of_another_version_is_left_unchanged(path: Path, version: int) -> None:
    path.parent.mkdir()
    change(path, f"CREATE TABLE sessions (something TEXT); PRAGMA user_version = {version}")
    before = path.read_bytes()
    hint = "use that version, or move the file elsewhere; a new one will be created"
    for error in errors_of(path):
        assert (error.message, error.hint) == (f"{path}: written by another version of cerebrum", hint)
    assert path.read_bytes() == before


def test_full_disk_is_reported(path: Path) -> None:
    with full_disk():
        for error in errors_of(path):
            assert error.message in (f"{path}: disk I/O error", f"{path}: database or disk is full")
            assert error.hint.startswith("free disk space")


@pytest.mark.parametrize(("what", "damage"), rows("damaged_sessions"))
def test_values_of_another_type_are_damage(path: Path, what: str, damage: str) -> None:
    with contextlib.closing(Store(path)) as sessions:
        add_texts(sessions, sessions.create("a", "chat"), "one", "two")
        change(path, damage)
        with pytest.raises(SessionError, match=r"is damaged: (malformed (message|session) \d|Could not decode)"):
            for summary in sessions.summaries():
                sessions.messages(summary.session)


def test_messages_in_a_cycle_end(path: Path) -> None:
    with contextlib.closing(Store(path)) as sessions:
        session = add_texts(sessions, sessions.create("a", "chat"), "one", "two", "three", "four")
        change(path, "UPDATE messages SET parent = 4 WHERE id = 3; UPDATE messages SET parent = 1 WHERE id = 1")
        for leaf in (None, 1, 2, 3, 4):
            at = sessions.move(session, leaf)
            sessions.undone(at)
            assert len(sessions.messages(at)) <= 2
            sessions.summaries()
        sessions.search("three")
