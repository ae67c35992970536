"""The session database. Every change is one transaction, so a process may be killed at any moment.

Several processes may use one database; each opens its own connection, on the thread that uses it.
"""

from __future__ import annotations

import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.chat.session import (
    COLUMNS,
    Messages,
    Origin,
    ReplyMetadata,
    SearchHit,
    Session,
    SessionSummary,
    message_from_row,
    message_values,
    printable_name,
    session_from_row,
    validated_name,
)
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.text import one_line, truncate, well_formed

BUSY_TIMEOUT_S = 10.0  # for another process's transaction
NO_ACCESS = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL)
NO_SPACE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
DAMAGE = ("malformed", "not a database", "already exists", "decode", "no such", "FOREIGN KEY")
READ_ERRORS = (sqlite3.Error, UnicodeDecodeError)
OR_UNSAVED = "or use --no-log"  # which needs no database
PRIMARY_CODE = 0xFF  # of an extended result code

# Messages form a tree, each row pointing to the message before it, so undo and retry delete nothing: a session names
# the end of a branch (`leaf`). Times are seconds since 1970, `params` and `timings` JSON, `tokens` the sampled ids of a
# reply, four bytes each, little-endian. A reply without a finish_reason is being generated, or its process was killed.
# `vocabulary` is a digest of the vocabulary that `tokens` are ids of. `rounds` are the parts of a reply that called
# functions, as JSON; other columns describe what follows them. `pictures` are the data: URLs of a question's pictures,
# as JSON. `first` is the oldest message still in the model's context, if earlier ones were dropped.
VERSION = 6  # of the schema
SCHEMA = (
    """CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    parent INTEGER REFERENCES messages (id),
    session INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    reasoning TEXT,
    tokens BLOB,
    rounds TEXT NOT NULL,
    pictures TEXT NOT NULL,
    finish_reason TEXT,
    model TEXT,
    format TEXT,
    vocabulary TEXT,
    params TEXT,
    seed INTEGER,
    timings TEXT,
    created REAL NOT NULL
);""",
    "CREATE INDEX children ON messages (parent);",
    """CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL CHECK (origin IN ('chat', 'ask', 'script')),
    system_prompt TEXT,
    model TEXT,
    format TEXT,
    params TEXT,
    leaf INTEGER REFERENCES messages (id),
    first INTEGER,
    created REAL NOT NULL,
    updated REAL NOT NULL
);""",
    "CREATE INDEX recent ON sessions (updated);",
)
_FIRST_MESSAGES = (  # of each session, with its number of messages
    "WITH RECURSIVE path (session, at, depth) AS (SELECT id, leaf, 1 FROM sessions WHERE leaf IS NOT NULL UNION ALL"
    " SELECT path.session, parent, depth + 1 FROM path JOIN messages ON messages.id = at WHERE parent < messages.id),"
    " firsts AS (SELECT session, at, max(depth) AS count FROM path GROUP BY session)"
    " SELECT firsts.session, count, CAST(ifnull(content, '') AS TEXT) FROM firsts JOIN messages ON messages.id = at"
)
_BRANCH = (  # messages that end at one, oldest first
    "WITH RECURSIVE path (at, depth) AS (SELECT ?, 0 UNION ALL"
    " SELECT messages.parent, depth + 1 FROM path JOIN messages ON messages.id = at WHERE parent < at)"
    " SELECT messages.* FROM path JOIN messages ON messages.id = at ORDER BY depth DESC"
)
_NEWEST_BELOW = (  # the newest reply of a session below a message, or of all that it has
    "WITH RECURSIVE below (at) AS (SELECT id FROM messages WHERE parent IS ? AND session = ? UNION ALL"
    " SELECT id FROM messages JOIN below ON parent = at WHERE id > at)"
    " SELECT max(at) FROM below JOIN messages ON messages.id = at WHERE role = 'assistant'"
)
_LATEST_MESSAGES = "SELECT *, CAST(content AS TEXT) AS text FROM messages ORDER BY id DESC"
_LATEST_FIRST = "ORDER BY updated DESC, id DESC"
EXCERPT_LENGTH, BEFORE_MATCH = 100, 30  # characters of a message found, and of those before the first word


class Store:
    """The sessions in one database file, which is created on first use; without a path, in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._database:
            self._database.close()
        self._database = None

    def create(self, name: str, origin: Origin, *, question: Message | None = None, **values: Any) -> Session:
        """Create a session with a first `question`; `values` are its other columns. Raises SessionError."""
        name, now = validated_name(name), time.time()
        row = {"name": name, "origin": origin, "params": {}, **values, "created": now, "updated": now}
        columns, places = ", ".join(row), ", ".join("?" * len(row))
        with self.transaction() as database, self._unique_name(name):
            cursor = database.execute(f"INSERT INTO sessions ({columns}) VALUES ({places})", tuple(row.values()))
            session = Session(id=cursor.lastrowid or 0, **row)
            return self.add_message(session, question) if question else session

    def find(self, name: str) -> Session | None:
        return next(iter(self._sessions("WHERE name = ?", well_formed(name))), None)

    def latest(self) -> Session | None:
        return next(iter(self._sessions(f"{_LATEST_FIRST} LIMIT 1")), None)

    def unused_name(self, base: str) -> str:
        base, used = well_formed(base), self.names()
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base}-{number}"
        return name

    def names(self) -> list[str]:
        return [name for (name,) in self._rows(f"SELECT CAST(name AS TEXT) FROM sessions {_LATEST_FIRST}")]

    def summaries(self) -> list[SessionSummary]:
        """All sessions, most recently changed first."""
        firsts = {}
        for session, count, content in self._rows(_FIRST_MESSAGES):
            firsts[session] = count, content
        return [SessionSummary(session, *firsts.get(session.id, (0, ""))) for session in self._sessions(_LATEST_FIRST)]

    def messages(self, session: Session) -> Messages:
        """The messages on a session's branch, oldest first."""
        return self._messages(_BRANCH, session.leaf)

    def undone(self, session: Session) -> Messages:
        """The messages after a session's end that were undone last, oldest first; empty if nothing was."""
        [(newest,)] = self._rows(_NEWEST_BELOW, session.leaf, session.id)
        if newest is None:
            return []
        length = len(self.messages(session))
        return self._messages(_BRANCH, newest)[length:]

    def questions(self) -> set[str]:
        return {text for (text,) in self._rows("SELECT CAST(content AS TEXT) FROM messages WHERE role = 'user'")}

    def add_message(self, session: Session, message: Message, metadata: ReplyMetadata | None = None) -> Session:
        with self.transaction() as database:
            self._update(session, updated=time.time())  # first: without the session, its messages may be missing
            cursor = database.execute(
                f"INSERT INTO messages (parent, session, created, {', '.join(COLUMNS)})"
                f" VALUES (?, ?, ?{', ?' * len(COLUMNS)})",
                (session.leaf, session.id, time.time(), *message_values(message, metadata or ReplyMetadata())),
            )
            return self.move(session, cursor.lastrowid)

    def update_message(self, session: Session, message: Message, metadata: ReplyMetadata) -> None:
        columns = ", ".join(f"{column} = ?" for column in COLUMNS)
        with self.transaction() as database:
            database.execute(
                f"UPDATE messages SET {columns} WHERE id = ?", (*message_values(message, metadata), session.leaf)
            )
            self._update(session, updated=time.time())

    def move(self, session: Session, leaf: int | None) -> Session:
        """Move a session to another branch; the messages of the previous one stay in the tree."""
        first = session.first
        with self.transaction():
            if first and all(stored.id != first for stored in self.messages(replace(session, leaf=leaf))):
                first = None  # the branch ends before it: all of it may fit again
            return self._update(session, leaf=leaf, first=first, updated=time.time())

    def update_session(self, session: Session, **values: Any) -> Session:
        """Change columns of a session: name, system_prompt, model, format, params or first."""
        if "name" in values:
            values["name"] = validated_name(values["name"])
        with self.transaction(), self._unique_name(values.get("name", "")):
            return self._update(session, **values)

    def remove(self, session: Session) -> int:
        """Delete a session with its messages, and return their number."""
        with self.transaction() as database:
            database.execute("DELETE FROM sessions WHERE id = ?", (session.id,))
            return database.execute("DELETE FROM messages WHERE session = ?", (session.id,)).rowcount

    def vacuum(self) -> None:
        """Rewrite the file: even with `secure_delete`, pages keep fragments of rows that moved to other pages."""
        database = self._opened()
        try:
            database.execute("VACUUM")
        except READ_ERRORS as error:
            raise SessionError(
                f"deleted text may remain in {self.path}: {printable_line(str(error))}",
                "free disk space or close other programs that use the file; the next deletion tries again",
            ) from error

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Find the messages that contain all words of a text, in any case, the latest first.

        A reply that was continued is found once, as its latest version.
        """
        words = well_formed(text).casefold().split()
        if not words:
            return []
        sessions = {session.id: session for session in self._sessions()}
        hits: list[SearchHit] = []
        with translated(self.path), closing(self._opened().execute(_LATEST_MESSAGES)) as rows:
            for row in rows:
                content = row["text"].casefold()
                session = sessions.get(row["session"])
                if session and all(word in content for word in words):
                    found = message_from_row(row)
                    if any(hit.message.continues(found) for hit in hits):
                        continue
                    start = max(0, content.find(words[0]) - BEFORE_MATCH)
                    excerpt = ("…" if start else "") + truncate(row["text"][start:], EXCERPT_LENGTH)
                    hits.append(SearchHit(session, found, excerpt))
                if len(hits) == limit:
                    break
        return hits

    def _sessions(self, condition: str = "", *values: object) -> list[Session]:
        return self._rows(f"SELECT * FROM sessions {condition}", *values, read=session_from_row)

    def _messages(self, query: str, *values: object) -> Messages:
        return self._rows(query, *values, read=message_from_row)

    def _rows(self, query: str, *values: object, read: Callable[[sqlite3.Row], Any] = tuple) -> list[Any]:
        with translated(self.path):
            return [read(row) for row in self._opened().execute(query, values)]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database in a transaction, or in the one that is open."""
        with translated(self.path):
            database = self._opened()
            with nullcontext() if database.in_transaction else transaction(database):
                yield database

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = open_database(self.path)
        return self._database

    def _update(self, session: Session, **values: Any) -> Session:
        """Change columns of a session, in a transaction. Raises SessionError if it was deleted."""
        columns = ", ".join(f"{column} = ?" for column in values)
        update = f"UPDATE sessions SET {columns} WHERE id = ?"
        if not self._opened().execute(update, (*values.values(), session.id)).rowcount:
            raise SessionError(f"session {session.name!r} was deleted by another process", "start a new one")
        return replace(session, **values)

    @contextmanager
    def _unique_name(self, name: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            if "sessions.name" not in str(error):
                raise
            raise SessionError(f"session {name!r} already exists", "choose another name") from error


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open the database; create it if necessary, readable only by its owner; without a path, in memory.

    SQLite creates the files beside it with the same permissions. Raises SessionError.
    """
    if path:
        with translate_os_errors(SessionError, path.parent, f", {OR_UNSAVED}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # opening it reports the error
            path.touch(mode=0o600, exist_ok=False)
    with translated(path):
        database = sqlite3.connect(path or ":memory:", timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            require_known_version(database, path)
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA secure_delete = ON")  # deleted text must not remain in the file
            prepare(database)
        except BaseException:
            database.close()
            raise
    return database


def prepare(database: sqlite3.Connection) -> None:
    """Configure a connection, and create the tables, even if several processes do so concurrently."""
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    if _version(database) == VERSION:
        return
    with transaction(database):
        if _version(database) == VERSION:  # another process was faster
            return
        for statement in SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    with database:  # commits, or rolls back
        database.execute("BEGIN IMMEDIATE")
        yield


def require_known_version(database: sqlite3.Connection, path: Path | None) -> None:
    if _version(database) not in (0, VERSION):
        problem = f"{path}: written by another version of cerebrum"
        raise SessionError(problem, "use that version, or move the file elsewhere; a new one will be created")


def _version(database: sqlite3.Connection) -> int:
    """Version of the schema, 0 for an empty file."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def check_integrity(path: Path) -> tuple[int, int] | None:
    """Check the whole database without changing it, and return its numbers of sessions and messages.

    None if the file does not exist. Raises SessionError if it is damaged, or another program's.
    """
    if not path.exists():
        return None
    uri = f"{path.absolute().as_uri()}?mode=rw"
    with translated(path), closing(sqlite3.connect(uri, uri=True)) as database:
        require_known_version(database, path)
        (problem,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if problem != "ok":
            raise _damaged(path, printable_line(problem))
        if row := database.execute("PRAGMA foreign_key_check").fetchone():
            raise _damaged(path, f"a row of {row[0]} refers to a missing row of {row[2]}")
        if _version(database):
            ((sessions, messages),) = database.execute("SELECT (SELECT count(*) FROM sessions), count(*) FROM messages")
            return sessions, messages
        if database.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
            raise _damaged(path, "it belongs to another program")
        return 0, 0


@contextmanager
def translated(path: Path | None) -> Iterator[None]:
    """Raise SessionError for an error of SQLite."""
    try:
        yield
    except READ_ERRORS as error:
        problem = printable_line(str(error))
        if path and any(sign in problem for sign in DAMAGE):
            raise _damaged(path, problem) from error
        code = getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE
        hint = "close other programs that use the file, then try again"
        if code in NO_ACCESS:
            hint = f"make sure that it is readable and writable, {OR_UNSAVED}"
        elif code in NO_SPACE:
            hint = f"free disk space, {OR_UNSAVED}"
        raise SessionError(f"{path or 'memory'}: {problem}", hint) from error


def printable_line(problem: str) -> str:
    return one_line(printable_name(problem))  # SQLite quotes the statement of a damaged schema


def _damaged(path: Path, problem: str) -> SessionError:
    recover = f"sqlite3 {shlex.quote(str(path))} .recover > saved.sql"
    return SessionError(
        f"{path} is damaged: {problem}",
        f"move it elsewhere to start a new one, {OR_UNSAVED}; to recover what is readable: {recover}",
    )
