"""The session database. Every change is one transaction, so a process may be killed at any moment.

Several processes may use one database; each opens its own connection, on the thread that uses it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.chat.database import (
    READ_ERRORS,
    open_database,
    printable_line,
    transaction,
    translated,
)
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
    session_from_row,
    validated_name,
)
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed

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
            database.execute(f"INSERT INTO sessions ({columns}) VALUES ({places})", tuple(row.values()))
            [session] = self._sessions("WHERE name = ?", name)
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
        """Find the messages that contain all words of a text, in any case, the latest first."""
        words = well_formed(text).casefold().split()
        if not words:
            return []
        sessions = {session.id: session for session in self._sessions()}
        hits = []
        with translated(self.path), closing(self._opened().execute(_LATEST_MESSAGES)) as rows:
            for row in rows:
                content = row["text"].casefold()
                session = sessions.get(row["session"])
                if session and all(word in content for word in words):
                    start = max(0, content.find(words[0]) - BEFORE_MATCH)
                    hits.append(SearchHit(session, message_from_row(row), row["text"][start : start + EXCERPT_LENGTH]))
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
