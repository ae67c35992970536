"""The session database: a tree that forgets nothing, in one file, whoever else uses it or is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.sessions import schema, store
from cerebrum_cli.sessions.rows import ReplyMetadata, Session, StoredMessage
from cerebrum_cli.sessions.schema import MIGRATIONS, migrate
from cerebrum_cli.sessions.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "sessions.db"


@pytest.fixture
def sessions(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as opened:
        yield opened


def talk(sessions: Store, session: Session, *texts: str) -> Session:
    """Say texts in a session, user and assistant in turn."""
    asked = len(sessions.messages(session)) % 2
    for number, text in enumerate(texts, asked):
        session = sessions.add_message(session, Message("assistant" if number % 2 else "user", text))
    return session


def texts(messages: list[StoredMessage]) -> list[str]:
    return [stored.message.content for stored in messages]


def found(sessions: Store, text: str) -> list[tuple[str, str]]:
    return [(hit.session.name, hit.message.message.content) for hit in sessions.search(text)]


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


# Sessions, and what is said in them.


def test_an_empty_database_holds_no_sessions(sessions: Store) -> None:
    assert (sessions.summaries(), sessions.latest(), sessions.find("a"), sessions.children(None)) == (
        [],
        None,
        None,
        [],
    )
    assert (sessions.search("a"), sessions.unused_name("a")) == ([], "a")


def test_nothing_is_made_before_something_is_asked(path: Path) -> None:
    Store(path).close()
    assert not path.parent.exists()


def test_what_was_said_is_there_for_the_next_process(sessions: Store, path: Path) -> None:
    led: dict[str, Any] = {"model": "a", "format": "chatml", "params": {"stop": ["\n"], "top_p": 0.95}}
    made = sessions.create("sums", "chat", system_prompt="Be brief.", **led)
    assert (made.name, made.origin, made.leaf) == ("sums", "chat", None)
    session = talk(sessions, made, "2 + 2?", "Four.")
    sessions.close()
    with contextlib.closing(Store(path)) as reopened:
        assert reopened.find("sums") == session
        assert (session.system_prompt, session.model, session.format, session.params) == ("Be brief.", *led.values())
        conversation = Conversation(system_prompt="Be brief.").user("2 + 2?").assistant("Four.")
        assert reopened.conversation(session) == conversation
        assert made.created == session.created < session.updated


def test_a_name_is_found_exactly(sessions: Store) -> None:
    made = {name: sessions.create(name, "ask") for name in ("a", "A", "a b", "ä", "a%", "日本", "😀", "x" * 1000)}
    assert {name: sessions.find(name) for name in made} == made
    assert [sessions.find(name) for name in ("b", "aa", "_", "\udcff")] == [None] * 4


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\nb", "a\t", "\x1b[2J", "a\u2028b", "\u200b", "a\0b"])
def test_a_name_that_could_not_be_typed_again_is_refused(sessions: Store, name: str) -> None:
    session = sessions.create("a", "chat")
    attempts: tuple[Callable[[], object], ...] = (
        lambda: sessions.create(name, "chat"),
        lambda: sessions.update_session(session, name=name),
    )
    for attempt in attempts:
        with pytest.raises(SessionError) as caught:
            attempt()
        assert caught.value.message == f"{name!r} is no name for a session"
        assert caught.value.message.isprintable()
        assert "one line" in caught.value.hint
    assert sessions.names() == ["a"]


def test_a_name_that_is_no_text_is_kept_as_one(sessions: Store) -> None:
    assert sessions.unused_name("a\udcff") == "a\ufffd"
    session = sessions.create("a\udcff", "chat")
    assert (session.name, sessions.unused_name("a\udcff")) == ("a\ufffd", "a\ufffd-2")
    assert sessions.find("a\udcff") == session
    assert sessions.update_session(session, name="b\udcff").name == "b\ufffd"


def test_a_session_of_any_name_there_once_could_be_is_gone_on_from(sessions: Store, path: Path) -> None:
    sessions.create("a", "chat")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE sessions SET name = ' a\n'")
    session = sessions.find(" a\n")
    assert session
    assert texts(sessions.messages(sessions.update_session(talk(sessions, session, "one"), model="m"))) == ["one"]


def test_a_name_is_given_once(sessions: Store) -> None:
    session, other = sessions.create("a", "chat"), sessions.create("b", "chat")
    attempts: tuple[Callable[[], object], ...] = (
        lambda: sessions.create("a", "import"),
        lambda: sessions.update_session(other, name="a"),
    )
    for attempt in attempts:
        with pytest.raises(SessionError, match=r"^there is a session a already$") as caught:
            attempt()
        assert caught.value.hint.startswith("choose another")
    assert (sessions.find("a"), sessions.find("b")) == (session, other)


def test_a_free_name_is_the_wanted_one_or_that_with_a_number(sessions: Store) -> None:
    for name in ("a", "a-2", "a-4", "b-2", "100%", "_", "日本😀"):
        sessions.create(name, "ask")
    wanted = ("a", "a-2", "b", "c", "100%", "100", "_", "%", "日本😀", "日本")
    free = ["a-3", "a-2-2", "b", "c", "100%-2", "100", "_-2", "%", "日本😀-2", "日本"]
    assert [sessions.unused_name(name) for name in wanted] == free


def test_what_a_session_is_led_with_can_be_changed(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat", system_prompt="x", model="m"), "hello")
    led = sessions.update_session(session, name="b", system_prompt=None, model="n", format="raw", params={"top_k": 1})
    assert led == sessions.find("b")
    assert (led.id, led.system_prompt, led.model, led.format, led.params) == (
        session.id,
        None,
        "n",
        "raw",
        {"top_k": 1},
    )
    assert (led.leaf, sessions.find("a")) == (session.leaf, None)


def test_sessions_are_listed_with_the_last_changed_first(sessions: Store) -> None:
    a, b, c = (sessions.create(name, "chat") for name in "abc")
    assert sessions.latest() == c
    b = talk(sessions, b, "first", "second")
    a = talk(sessions, a, "hello")
    sessions.update_message(b, Message("assistant", "third"), ReplyMetadata())
    listed = [(summary.session.name, summary.messages, summary.first) for summary in sessions.summaries()]
    assert listed == [("b", 2, "first"), ("a", 1, "hello"), ("c", 0, "")]
    assert sessions.names() == ["b", "a", "c"]
    assert sessions.summaries()[1].session == a
    latest = sessions.latest()
    assert latest is not None
    assert latest.id == b.id


WHOLE = ReplyMetadata(
    reasoning="2 und 2 — 四 😀",
    finish_reason="stop",
    model="owner/repo:Q4_0",
    format="chatml",
    params={"temperature": 0.1, "top_k": 40, "stop": ["\n\n", "ä"], "max_tokens": None},
    seed=2**32 - 2,
    timings={"load_s": 1.0000000000000002, "prefill_tokens": 16},
)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message("user", "Hello"), ReplyMetadata()),
        (Message("assistant", "Four.", (1, 2, 128_255, 2**31 - 1, 0)), WHOLE),
        (
            Message("assistant", "", ()),
            ReplyMetadata(reasoning="", finish_reason="cancelled", params={}, timings={}, seed=0),
        ),
        (Message("assistant", "Four.", None), ReplyMetadata(finish_reason="length")),
        (Message("user", " \r\n\t ä é 日本語 😀👩‍👩‍👧 \u2028\ufeff\U0010ffff\x01 "), ReplyMetadata()),
        (Message("user", "ä😀 " * 2**18), ReplyMetadata(reasoning="z" * 2**20)),
        (Message("assistant", "a" * 2**20, tuple(range(2**18))), WHOLE),
    ],
    ids=("plain", "all", "empty", "no tokens", "unicode", "long", "long with tokens"),
)
def test_a_message_comes_back_as_it_was(sessions: Store, path: Path, message: Message, said: ReplyMetadata) -> None:
    session = sessions.add_message(sessions.create("a", "chat"), message, said)
    sessions.close()
    with contextlib.closing(Store(path)) as reopened:
        [stored] = reopened.messages(session)
        assert (stored.message, stored.metadata) == (message, said)
        assert (stored.id, stored.parent) == (session.leaf, None)
        assert session.created <= stored.created <= session.updated


def test_a_reply_that_goes_on_is_one_message(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "Count.", "")
    before = sessions.messages(session)[-1]
    sessions.update_message(session, Message("assistant", "One, two", (1, 2)), ReplyMetadata())
    sessions.update_message(session, Message("assistant", "One, two, three.", (1, 2, 3)), WHOLE)
    after = sessions.messages(session)
    assert [stored.message for stored in after] == [
        Message("user", "Count."),
        Message("assistant", "One, two, three.", (1, 2, 3)),
    ]
    assert (after[1].id, after[1].parent, after[1].created) == (before.id, before.parent, before.created)
    assert after[1].metadata == WHOLE
    assert sessions.children(after[0].id) == after[1:]


# The tree.


def test_moving_back_and_saying_again_keeps_both_answers(sessions: Store) -> None:
    first = talk(sessions, sessions.create("a", "chat"), "2 + 2?", "Five.")
    [question, _] = sessions.messages(first)
    back = sessions.move(first, question.id)
    assert (back.leaf, back == sessions.find("a")) == (question.id, True)
    assert texts(sessions.messages(back)) == ["2 + 2?"]
    again = talk(sessions, back, "Four.", "Sure?")
    assert texts(sessions.messages(again)) == ["2 + 2?", "Four.", "Sure?"]
    assert texts(sessions.children(question.id)) == ["Five.", "Four."]
    assert texts(sessions.messages(sessions.move(again, first.leaf))) == ["2 + 2?", "Five."]


def test_a_session_moved_back_to_its_beginning_can_be_asked_anew(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two")
    session = talk(sessions, sessions.move(session, None), "three")
    assert texts(sessions.messages(session)) == ["three"]
    assert texts(sessions.children(None)) == ["one", "three"]


def test_a_fork_shares_what_was_said_before(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two", "three", "four")
    begun = sessions.messages(session)[1]
    fork = talk(sessions, sessions.create("b", "chat", leaf=begun.id), "other three")
    session = talk(sessions, session, "five")
    assert texts(sessions.messages(fork)) == ["one", "two", "other three"]
    assert texts(sessions.messages(session)) == ["one", "two", "three", "four", "five"]
    assert sessions.messages(fork)[:2] == sessions.messages(session)[:2]
    assert texts(sessions.children(begun.id)) == ["three", "other three"]
    assert len(sessions.children(None)) == 1


def test_removing_a_session_takes_what_no_other_session_leads_to(sessions: Store, path: Path) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two", "three", "four")
    [_, begun, question, _] = sessions.messages(session)
    session = talk(sessions, sessions.move(session, question.id), "another four")
    fork = talk(sessions, sessions.create("b", "chat", leaf=begun.id), "other three")
    alone = talk(sessions, sessions.create("c", "chat"), "one")
    assert sessions.remove(session) == 3
    assert sessions.find("a") is None
    assert texts(sessions.messages(fork)) == ["one", "two", "other three"]
    assert texts(sessions.children(begun.id)) == ["other three"]
    assert (sessions.remove(fork), texts(sessions.messages(alone))) == (3, ["one"])
    assert (sessions.remove(alone), sessions.summaries()) == (1, [])
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]


def test_removing_one_of_two_sessions_at_the_same_message_takes_nothing(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two")
    fork = sessions.create("b", "chat", leaf=session.leaf)
    assert sessions.remove(session) == 0
    assert texts(sessions.messages(fork)) == ["one", "two"]
    assert found(sessions, "two") == [("b", "two")]


def test_removing_a_session_takes_the_first_questions_it_was_moved_back_from(sessions: Store, path: Path) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "a secret", "two")
    session = talk(sessions, sessions.move(session, None), "three")
    sessions.remove(session)
    assert rows(path, "SELECT content FROM messages") == []


def test_removing_a_session_that_was_moved_back_to_its_beginning_leaves_nothing(sessions: Store, path: Path) -> None:
    session = sessions.move(talk(sessions, sessions.create("a", "chat"), "a secret"), None)
    sessions.remove(session)
    assert rows(path, "SELECT content FROM messages") == []


def stored_bytes(path: Path) -> bytes:
    """Return all that is in the database's folder."""
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_what_was_removed_cannot_be_read_in_the_file(sessions: Store, path: Path) -> None:
    session = talk(sessions, sessions.create("about-giraffes", "chat"), "a secret zebra", "elephants secretly")
    kept = talk(sessions, sessions.create("kept", "chat"), "an okapi")
    sessions.update_message(
        session, Message("assistant", "elephants secretly, and a walrus"), ReplyMetadata(reasoning="hippos")
    )
    words = (b"giraffes", b"secret", b"zebra", b"elephant", b"walrus", b"hippos")
    assert all(word in stored_bytes(path) for word in words)
    with contextlib.closing(Store(path)) as other:  # a chat that is open
        assert len(other.summaries()) == 2
        sessions.remove(session)
        sessions.vacuum()
        assert [word for word in words if word in stored_bytes(path)] == []
        assert found(other, "okapi") == [("kept", "an okapi")]
        assert texts(other.messages(kept)) == ["an okapi"]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("seed", [17, 18])
def test_no_page_keeps_a_piece_of_what_was_moved_to_another(sessions: Store, path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for step in range(12):
        with sessions.transaction():
            session, word = sessions.create(f"n{step:02}", "chat"), f"n{step:02}x"
            for _ in range(chance.choice((1, 2, 5, 40))):
                text = " ".join(f"{word}{number}" for number in range(chance.choice((1, 20, 300))))
                session = talk(sessions, session, text)
        if step % 3 == 2:
            name = chance.choice(sessions.names())
            gone = sessions.find(name)
            assert gone
            sessions.remove(gone)
            sessions.vacuum()
            assert name.encode() not in stored_bytes(path)


def test_what_cannot_be_scrubbed_is_told_and_the_next_removal_does_it(
    sessions: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.05)
    session, other = talk(sessions, sessions.create("a", "chat"), "zebra"), sessions.create("b", "chat")
    sessions.remove(session)
    with contextlib.closing(Store(path)) as writer, writer.transaction():
        with pytest.raises(SessionError, match=r"^what was removed may still be read in .*sessions\.db: ") as caught:
            sessions.vacuum()
        assert "the next removal tries again" in caught.value.hint
    sessions.remove(other)
    sessions.vacuum()
    assert b"zebra" not in stored_bytes(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda sessions, session: sessions.add_message(session, Message("user", "more")),
        lambda sessions, session: sessions.update_message(session, Message("user", "more"), ReplyMetadata()),
        lambda sessions, session: sessions.move(session, None),
        lambda sessions, session: sessions.update_session(session, name="b"),
    ],
    ids=("add_message", "update_message", "move", "update_session"),
)
@pytest.mark.parametrize("said", [(), ("one", "two")], ids=("empty", "with messages"))
def test_a_session_that_was_removed_meanwhile_cannot_be_changed(
    sessions: Store, path: Path, said: tuple[str, ...], change: Callable[[Store, Session], object]
) -> None:
    session = talk(sessions, sessions.create("a", "chat"), *said)
    sessions.remove(session)
    with pytest.raises(SessionError) as caught:
        change(sessions, session)
    assert "FOREIGN KEY" not in caught.value.message
    assert rows(path, "SELECT content FROM messages") == []


# Search.

ODD = 'cats AND dogs OR "mice" NOT near(birds) col:umn ^caret -minus +plus star* {brace} semi; it\'s 50% C++ ÉTÉ'


@pytest.mark.parametrize(
    ("query", "finds"),
    [
        ("cats", True),
        ("dogs cats", True),
        ("CATS Dogs", True),
        ("été", True),
        ("cats birds mice", True),
        ("cats lions", False),
        ("cat", False),
        ("cat*", False),
        ("AND", True),
        ("cats AND lions", False),
        ("lions OR cats", False),
        ("cats NOT dogs", True),
        ("NOT near", True),
        ("near(birds", True),
        ("NEAR(cats dogs)", False),
        ("col:umn", True),
        ("content:cats", False),
        ("^caret", True),
        ("^dogs", True),
        ("-minus", True),
        ("-cats", True),
        ("+plus", True),
        ("star*", True),
        ('"mice"', True),
        ('"cats', True),
        ("{brace}", True),
        ("semi;", True),
        ("it's", True),
        ("50%", True),
        ("C++", True),
        ("日本", False),
        ("", False),
        (" \n\t", False),
        ("\ufffd", False),
        ("\udcff", False),
        *((mark, False) for mark in ('"', '""', "'", "*", "(", ")", "^", ":", "-", "{", "\\", ";", "😀")),
    ],
)
def test_a_search_is_for_plain_words(sessions: Store, query: str, finds: bool) -> None:
    talk(sessions, sessions.create("b", "chat"), "nothing of it")
    talk(sessions, sessions.create("a", "chat"), ODD)
    assert found(sessions, query) == ([("a", ODD)] if finds else [])


def test_a_message_is_found_by_what_has_become_of_it(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "Which animal?", "elephant")
    sessions.update_message(session, Message("assistant", "giraffe"), ReplyMetadata())
    assert (found(sessions, "elephant"), found(sessions, "giraffe")) == ([], [("a", "giraffe")])
    sessions.update_message(session, Message("assistant", "giraffe"), WHOLE)
    assert found(sessions, "giraffe") == [("a", "giraffe")]


def test_what_was_removed_is_not_found(sessions: Store, path: Path) -> None:
    sessions.remove(talk(sessions, sessions.create("a", "chat"), "elephant", "giraffe"))
    talk(sessions, sessions.create("b", "chat"), "giraffe")
    assert (found(sessions, "elephant"), found(sessions, "giraffe")) == ([], [("b", "giraffe")])
    assert rows(path, "SELECT rowid FROM texts WHERE texts MATCH 'elephant'") == []


def test_a_message_is_found_once_in_the_session_last_changed(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "an elephant", "two")
    fork = sessions.create("b", "chat", leaf=session.leaf)
    assert found(sessions, "elephant") == [("b", "an elephant")]
    session = talk(sessions, session, "three")
    [hit] = sessions.search("elephant")
    assert (hit.session, hit.message.id) == (session, sessions.messages(fork)[0].id)


def test_the_best_match_comes_first_and_shows_where_it_is(sessions: Store) -> None:
    long = "word " * 500 + "an elephant stands here " + "word " * 500
    session = talk(sessions, sessions.create("a", "chat"), long, "elephant elephant")
    hits = sessions.search("elephant")
    assert [hit.message.message.content for hit in hits] == ["elephant elephant", long]
    assert "an elephant stands here" in hits[1].excerpt
    assert len(hits[1].excerpt) < 200
    assert sessions.search("elephant", limit=1) == hits[:1]
    assert hits[0].session == session


def test_answers_a_session_was_moved_back_from_do_not_use_up_a_search(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "Which animal?")
    for answer in ("an elephant", "an elephant", "an elephant"):
        last = talk(sessions, session, answer)
    assert len(sessions.children(session.leaf)) == 3
    assert [hit.message.id for hit in sessions.search("elephant", limit=1)] == [last.leaf]


def test_a_message_another_session_hangs_on_is_found_in_the_one_that_leads_to_it(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two", "three", "an elephant")
    fork = sessions.create("b", "chat", leaf=session.leaf)
    talk(sessions, sessions.move(session, sessions.messages(session)[1].id), "four")
    assert found(sessions, "elephant") == [("b", "an elephant")]
    assert found(sessions, "one") == [("a", "one")]
    sessions.move(fork, None)
    assert found(sessions, "elephant") == []


def test_a_few_of_many_messages_are_found_without_reading_the_others(sessions: Store) -> None:
    with sessions.transaction():
        session = sessions.create("a", "chat")
        for number in range(400):
            session = talk(sessions, session, f"{number} elephant " + "word " * 2000)

    def seconds(limit: int) -> float:
        begun = time.perf_counter()
        assert len(sessions.search("elephant", limit)) == limit
        return time.perf_counter() - begun

    assert min(seconds(1) for _ in range(3)) < min(seconds(400) for _ in range(3)) / 5


# Who may read it.


def modes(path: Path) -> dict[str, int]:
    """Return the rights of the database's folder, and of the files in it."""
    return {each.name: each.stat().st_mode & 0o777 for each in (path.parent, *path.parent.iterdir())}


PRIVATE = {"new": 0o700, "sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}


@pytest.fixture
def generous() -> Iterator[None]:
    """Have files made for everybody to read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous")
def test_only_its_owner_can_read_what_was_said(sessions: Store, path: Path) -> None:
    sessions.create("a", "chat")
    assert modes(path) == PRIVATE
    sessions.vacuum()
    assert modes(path) == PRIVATE


@pytest.mark.usefixtures("generous")
def test_a_database_that_others_could_read_is_closed_to_them(sessions: Store, path: Path) -> None:
    sessions.create("a", "chat")
    for file in path.parent.iterdir():
        file.chmod(0o644)
    with contextlib.closing(Store(path)) as other:
        assert other.names() == ["a"]
    assert modes(path) == PRIVATE


def test_a_database_whose_rights_are_anothers_is_opened_all_the_same(
    sessions: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    sessions.create("a", "chat")
    path.chmod(0o644)
    monkeypatch.setattr(Path, "chmod", refuse)
    with contextlib.closing(Store(path)) as other:
        assert other.names() == ["a"]


# Transactions, and other processes.


class Stopped(Exception):
    """What a test raises in the middle."""


def test_changes_made_together_all_happen_or_none(sessions: Store) -> None:
    kept = talk(sessions, sessions.create("kept", "chat"), "one")

    def change(stop: bool) -> None:
        with sessions.transaction():
            made = talk(sessions, sessions.create("made", "chat"), "elephant")
            with sessions.transaction():
                talk(sessions, sessions.move(kept, None), "another")
            sessions.remove(made)
            sessions.create("last", "chat")
            if stop:
                raise Stopped

    with pytest.raises(Stopped):
        change(stop=True)
    assert [summary.session for summary in sessions.summaries()] == [kept]
    assert (texts(sessions.children(None)), sessions.search("elephant")) == (["one"], [])
    change(stop=False)
    assert [summary.session.name for summary in sessions.summaries()] == ["last", "kept"]
    assert texts(sessions.children(None)) == ["one", "another"]


def test_a_name_that_is_taken_is_no_end_of_the_changes_around_it(sessions: Store) -> None:
    with sessions.transaction():
        sessions.create("a", "chat")
        with pytest.raises(SessionError, match="there is a session a already"):
            sessions.create("a", "chat")
        sessions.create("b", "chat")
    assert [summary.session.name for summary in sessions.summaries()] == ["b", "a"]


def test_a_reader_sees_what_was_committed_and_nothing_before(sessions: Store, path: Path) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one")
    with contextlib.closing(Store(path)) as reader:
        assert reader.find("a") == session
        with sessions.transaction():
            changed = talk(sessions, session, "elephant")
            assert (reader.find("a"), reader.search("elephant")) == (session, [])
        assert reader.find("a") == changed
        assert found(reader, "elephant") == [("a", "elephant")]


def test_a_database_that_stays_busy_is_a_session_error(
    sessions: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.05)
    with contextlib.closing(Store(path)) as other, sessions.transaction():
        assert other.summaries() == []
        with pytest.raises(SessionError) as caught:
            other.create("a", "chat")
        assert caught.value.message == f"{path}: database is locked"
        assert "end what else uses it" in caught.value.hint
    assert sessions.create("a", "chat").name == "a"


def started(script: str, *argv: str | Path) -> subprocess.Popen[str]:
    """Start a process that runs a script, which prints and reads lines."""
    head = (
        "import sys; from pathlib import Path\n"
        "from cerebrum_cli.core.conversation import Message\n"
        "from cerebrum_cli.sessions.store import Store\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, argv)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_several_processes_writing_at_once_lose_nothing(path: Path) -> None:
    script = (
        "store = Store(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(15):\n"
        "    session = store.create(f'{sys.argv[2]}-{number}', 'ask')\n"
        "    session = store.add_message(session, Message('user', f'question {sys.argv[2]} {number}'))\n"
        "    store.add_message(session, Message('assistant', f'answer {sys.argv[2]} {number}', (number,)))\n"
    )
    writers = [started(script, path, str(number)) for number in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # they wait for each other, so that the file is made by several at once
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 4
    with contextlib.closing(Store(path)) as sessions:
        kept = {each.session.name: texts(sessions.messages(each.session)) for each in sessions.summaries()}
    assert kept == {
        f"{writer}-{number}": [f"question {writer} {number}", f"answer {writer} {number}"]
        for writer in range(4)
        for number in range(15)
    }


def test_a_process_that_is_killed_leaves_every_message_it_committed(path: Path) -> None:
    script = (
        "store = Store(Path(sys.argv[1])); session = store.create(sys.argv[2], 'chat')\n"
        "for number in range(1_000_000):\n"
        "    text = f'{number} ' + 'word ' * 10_000\n"
        "    session = store.add_message(session, Message(('user', 'assistant')[number % 2], text))\n"
        "    print(number, flush=True)\n"
    )
    for kill_after in (1, 8, 21):
        writer = started(script, path, str(kill_after))
        assert writer.stdout is not None
        for _ in range(kill_after):
            writer.stdout.readline()
        writer.kill()
        committed = kill_after + len(writer.communicate()[0].split())
        with contextlib.closing(Store(path)) as sessions:
            session = sessions.find(str(kill_after))
            assert session is not None
            numbers = [int(text.split()[0]) for text in texts(sessions.messages(session))]
            assert numbers == list(range(len(numbers)))
            assert committed <= len(numbers) <= committed + 1  # killed before it could say so
            assert found(sessions, "0")[:1]
            talk(sessions, session, "it goes on")
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO texts (texts) VALUES ('integrity-check')")


# Versions.


def made(path: Path) -> dict[str, int]:
    """Return how often each table, index and trigger of the schema is in a database."""
    names = [name for (name,) in rows(path, "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")]
    return {name: names.count(name) for name in names}


def test_a_database_two_processes_open_at_once_is_made_once(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    script = (
        "import sqlite3; from cerebrum_cli.sessions.schema import migrate\n"
        "database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "database.set_trace_callback(lambda statement: print(statement.split(maxsplit=1)[0], flush=True))\n"
        "migrate(database)\n"
    )
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        openers = [started(script, path) for _ in range(2)]
        for opener in openers:  # both have seen version 0, and wait to begin
            assert opener.stdout is not None
            assert [opener.stdout.readline() for _ in range(2)] == ["PRAGMA\n", "BEGIN\n"]
        holder.execute("ROLLBACK")
    told = [opener.communicate()[0].split() for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0]
    assert sorted("CREATE" in words for words in told) == [False, True]
    assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    with contextlib.closing(Store(tmp_path / "alone.db")) as alone:
        alone.summaries()
    assert made(path) == made(tmp_path / "alone.db")
    assert {"messages", "sessions", "texts", "children", "recent", "said", "unsaid", "said_on"} <= made(path).keys()
    assert set(made(path).values()) == {1}


def test_a_step_happens_whole_or_not_at_all(path: Path, sessions: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one")
    good = "ALTER TABLE sessions ADD COLUMN note TEXT;\nCREATE TABLE notes (text TEXT);"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, good + "\nCREATE TABLE messages (id INTEGER);"))
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            migrate(database)
        assert (rows(path, "PRAGMA user_version"), "notes" in made(path)) == ([(len(MIGRATIONS),)], False)
        assert sessions.find("a") == session
        monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, good))
        assert [migrate(database), migrate(database)] == [len(MIGRATIONS) + 1] * 2
    assert rows(path, "SELECT name, note FROM sessions") == [("a", None)]


def test_a_database_of_the_first_version_goes_on_with_all_it_holds(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
        database.execute("INSERT INTO messages (session, role, content, created) VALUES (1, 'user', 'Hello?', 1.0)")
        database.execute(
            "INSERT INTO sessions (name, origin, leaf, created, updated) VALUES ('old', 'chat', 1, 1.0, 2.0)"
        )
    with contextlib.closing(Store(path)) as sessions:
        session = sessions.find("old")
        assert session
        assert (session.first, session.updated) == (None, 2.0)
        assert texts(sessions.messages(session)) == ["Hello?"]
        assert found(sessions, "hello") == [("old", "Hello?")]
        assert sessions.update_session(session, first=1).first == 1
    assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_where_the_context_begins_is_kept_until_the_conversation_is_back_before_it(sessions: Store) -> None:
    session = talk(sessions, sessions.create("a", "chat"), "one", "two", "three", "four", "five")
    path = sessions.messages(session)
    session = sessions.update_session(session, first=path[2].id)
    assert sessions.find("a") == session
    assert talk(sessions, session, "six").first == path[2].id
    assert sessions.move(session, path[3].id).first == path[2].id
    assert sessions.move(session, path[1].id).first is None
    fork = sessions.create("b", "chat", leaf=session.leaf, first=session.first)
    assert fork.first == path[2].id


# What cannot be used.


def refusals(path: Path) -> Iterator[SessionError]:
    """Yield the errors of all that can be asked of a database, each of one line what and one what to do."""
    attempts: tuple[Callable[[Store], object], ...] = (
        Store.summaries,
        Store.latest,
        lambda sessions: sessions.create("new", "chat"),
        lambda sessions: sessions.search("word"),
    )
    for attempt in attempts:
        with contextlib.closing(Store(path)) as sessions, pytest.raises(SessionError) as caught:
            attempt(sessions)
        error = caught.value
        assert error.message
        assert error.hint
        assert "\n" not in error.message + error.hint
        yield error


@pytest.fixture
def full(path: Path) -> Path:
    """Return a database of a megabyte."""
    with contextlib.closing(Store(path)) as sessions, sessions.transaction():
        session = sessions.create("a", "chat")
        for number in range(200):
            session = talk(sessions, session, f"{number} " + "word " * 1000)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is not a database\n" * 500,
        lambda data: b"hello",
        lambda data: b"X" * 100 + data[100:],
        lambda data: data[:1000],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + b"\x55" * 3996 + data[4096:],
        lambda data: data[:4096] + bytes(len(data) - 4096),
        lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
    ],
    ids=("text", "short text", "header", "first page", "half", "first page filled", "rest zero", "rest filled"),
)
def test_a_damaged_database_is_named_and_never_overwritten(full: Path, damage: Callable[[bytes], bytes]) -> None:
    damaged = damage(full.read_bytes())
    full.write_bytes(damaged)
    for error in refusals(full):
        assert error.message.startswith(f"{full}: ")
        assert error.hint == "move it away: a new one is begun"
    assert full.read_bytes() == damaged


def test_a_database_of_a_newer_cerebrum_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE sessions (something TEXT)")
        database.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    for error in refusals(path):
        assert (error.message, error.hint) == (f"{path}: written by a newer cerebrum", "update cerebrum")
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_named(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE messages (text TEXT)")
    for error in refusals(path):
        assert error.message.startswith(f"{path}: ")
        assert "move it away" in error.hint
    assert made(path) == {"messages": 1}


def test_a_directory_in_place_of_the_database_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    for error in refusals(path):
        assert error.message.startswith(f"{path}: ")
        assert "free some space" not in error.hint


def test_a_file_in_place_of_the_directory_is_named(path: Path) -> None:
    path.parent.write_bytes(b"")
    for error in refusals(path):
        assert error.message == f"{path.parent}: File exists"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("there", [False, True], ids=("without one", "with one"))
def test_a_directory_that_cannot_be_written_is_named(path: Path, there: bool) -> None:
    path.parent.mkdir()
    if there:
        with contextlib.closing(Store(path)) as sessions:
            sessions.create("a", "chat")
    path.parent.chmod(0o500)
    try:
        with contextlib.closing(Store(path)) as sessions, pytest.raises(SessionError) as caught:
            sessions.create("b", "chat")
        assert caught.value.message.startswith(f"{path}: ")
        assert "\n" not in caught.value.message + caught.value.hint
    finally:
        path.parent.chmod(0o700)
