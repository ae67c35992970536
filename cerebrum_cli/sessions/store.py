"""The session database: every change is one transaction, so that a process may end at any moment.

Several processes may use one database; each opens its own connection, on the thread that uses it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.sessions.names import validated_name
from cerebrum_cli.sessions.private import make_private_database, make_private_directory
from cerebrum_cli.sessions.removal import remove_session, vacuum
from cerebrum_cli.sessions.rows import (
    COLUMNS,
    PLACEHOLDERS,
    Origin,
    ReplyMetadata,
    SearchHit,
    Session,
    SessionSummary,
    StoredMessage,
    message_from_row,
    message_values,
    session_from_row,
)
from cerebrum_cli.sessions.schema import MIGRATIONS, enable_wal, migrate, schema_version
from cerebrum_cli.sessions.search import search_messages

BUSY_TIMEOUT_S = 10.0  # how long a change waits for another process's
_LATEST = len(MIGRATIONS)
_BEGINNINGS = (  # how many messages each session has, and the first of them
    "WITH RECURSIVE path (session, at, depth) AS (SELECT id, leaf, 1 FROM sessions WHERE leaf IS NOT NULL UNION ALL"
    " SELECT path.session, parent, depth + 1 FROM path JOIN messages ON messages.id = at WHERE parent IS NOT NULL),"
    " begun AS (SELECT session, at, max(depth) AS count FROM path GROUP BY session)"
    " SELECT begun.session, count, content FROM begun JOIN messages ON messages.id = at"
)


class Store:
    """The sessions in one database file, which is made when it is first opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the database; it is opened again when it is needed."""
        if self._database:
            self._database.close()
            self._database = None

    def create(
        self,
        name: str,
        origin: Origin,
        *,
        system_prompt: str | None = None,
        model: str | None = None,
        format: str | None = None,
        params: Mapping[str, Any] | None = None,
        leaf: int | None = None,
        first: int | None = None,
    ) -> Session:
        """Begin a session, from a message of another one where `leaf` is given.

        SessionError if the name is taken, or none.
        """
        now, name = time.time(), validated_name(name)
        with self._write() as database:
            try:
                database.execute(
                    "INSERT INTO sessions (name, origin, system_prompt, model, format, params, leaf, first,"
                    " created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, origin, system_prompt, model, format, json.dumps(params or {}), leaf, first, now, now),
                )
            except sqlite3.IntegrityError as error:
                raise self._constraint_error(error, name) from error
            return session_from_row(database.execute("SELECT * FROM sessions WHERE name = ?", (name,)).fetchone())

    def find(self, name: str) -> Session | None:
        """Return the session of exactly this name."""
        with self._read() as database:
            row = database.execute("SELECT * FROM sessions WHERE name = ?", (well_formed(name),)).fetchone()
            return session_from_row(row) if row else None

    def unused_name(self, base: str) -> str:
        """Return a name no session has: the wanted one, or that with a number after it."""
        base = well_formed(base)
        with self._read() as database:
            rows = database.execute("SELECT name FROM sessions WHERE substr(name, 1, ?) = ?", (len(base), base))
            taken = {row["name"] for row in rows.fetchall()}
        number, name = 1, base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def latest(self) -> Session | None:
        """Return the session that was last changed."""
        with self._read() as database:
            row = database.execute("SELECT * FROM sessions ORDER BY updated DESC, id DESC LIMIT 1").fetchone()
            return session_from_row(row) if row else None

    def names(self) -> list[str]:
        """Return the names of all sessions, the last changed first."""
        with self._read() as database:
            return [row["name"] for row in database.execute("SELECT name FROM sessions ORDER BY updated DESC, id DESC")]

    def summaries(self) -> list[SessionSummary]:
        """Return all sessions, the last changed first."""
        with self._read() as database:
            begun = {row["session"]: (row["count"], row["content"]) for row in database.execute(_BEGINNINGS)}
            rows = database.execute("SELECT * FROM sessions ORDER BY updated DESC, id DESC").fetchall()
            return [SessionSummary(session, *begun.get(session.id, (0, ""))) for session in map(session_from_row, rows)]

    def messages(self, session: Session) -> list[StoredMessage]:
        """Return a session's messages, from the first to the one it has come to."""
        with self._read() as database:
            return self._branch(database, session.leaf)

    def conversation(self, session: Session) -> Conversation:
        """Return a session as a conversation."""
        return Conversation(tuple(stored.message for stored in self.messages(session)), session.system_prompt)

    def children(self, message: int | None) -> list[StoredMessage]:
        """Return all answers there ever were to a message, oldest first; without one, all first questions."""
        with self._read() as database:
            rows = database.execute("SELECT * FROM messages WHERE parent IS ? ORDER BY id", (message,)).fetchall()
            return list(map(message_from_row, rows))

    def add_message(self, session: Session, message: Message, metadata: ReplyMetadata | None = None) -> Session:
        """Add a message after the one a session has come to, and return the session, which has come to it."""
        with self._write() as database:
            self._require(database, session)
            cursor = database.execute(
                f"INSERT INTO messages (parent, session, created, {', '.join(COLUMNS)})"
                f" VALUES (?, ?, ?, {PLACEHOLDERS})",
                (session.leaf, session.id, time.time(), *message_values(message, metadata or ReplyMetadata())),
            )
            return self._set_leaf(database, session, cursor.lastrowid)

    def update_message(self, session: Session, message: Message, metadata: ReplyMetadata) -> None:
        """Replace the message a session has come to by what has become of it: a reply that goes on, or has ended."""
        with self._write() as database:
            self._require(database, session)
            database.execute(
                f"UPDATE messages SET {', '.join(f'{column} = ?' for column in COLUMNS)} WHERE id = ?",
                (*message_values(message, metadata), session.leaf),
            )
            database.execute("UPDATE sessions SET updated = ? WHERE id = ?", (time.time(), session.id))

    def move(self, session: Session, leaf: int | None) -> Session:
        """Make a session come to another message; the one it had come to stays in the tree."""
        with self._write() as database:
            self._require(database, session)
            return self._set_leaf(database, session, leaf)

    def update_session(self, session: Session, **values: Any) -> Session:
        """Change what a session is led with: system_prompt, model, format, params, first; or its name."""
        if "name" in values:
            values["name"] = validated_name(values["name"])
        columns = {key: json.dumps(value) if key == "params" else value for key, value in values.items()}
        with self._write() as database:
            self._require(database, session)
            sets = ", ".join(f"{column} = ?" for column in columns)
            try:
                database.execute(f"UPDATE sessions SET {sets} WHERE id = ?", (*columns.values(), session.id))
            except sqlite3.IntegrityError as error:
                raise self._constraint_error(error, values.get("name", "")) from error
            return session_from_row(self._require(database, session))

    def remove(self, session: Session) -> int:
        """Delete a session and the messages that were said in it, but for those others hang on; return how many went.

        Messages of sessions that are gone already go with the last one that needed them.
        """
        with self._write() as database:
            return remove_session(database, session.id)

    def vacuum(self) -> None:
        """Write the file anew, so that nothing of what was removed can be read in it."""
        try:
            vacuum(self._connection())
        except sqlite3.Error as error:
            what = f"what was removed may still be read in {self._path}: {error}"
            raise SessionError(
                what, "free some space, or end what else uses it; the next removal tries again"
            ) from error

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Return the messages that hold all words of a text, the best first, each in the session last changed."""
        with self._read() as database:
            return search_messages(database, text, limit)

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._error(error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes made meanwhile one: all of them happen, or none."""
        with self._write():
            yield

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._read() as database:
            if database.in_transaction:
                yield database
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                make_private_directory(self._path.parent)
            except OSError as error:
                raise SessionError(
                    f"{error.filename}: {error.strerror}", "make room for it, or use --no-log"
                ) from error
            make_private_database(self._path)
            database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                database.row_factory = sqlite3.Row
                if schema_version(database) > _LATEST:
                    raise SessionError(f"{self._path}: written by a newer cerebrum", "update cerebrum")
                enable_wal(database, BUSY_TIMEOUT_S)
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("PRAGMA secure_delete = ON")  # what is removed is not to be read in the file
                migrate(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _error(self, error: sqlite3.Error) -> SessionError:
        said = str(error)
        do = "free some space, or end what else uses it"
        if any(sign in said for sign in ("malformed", "not a database", "vtable constructor", "already exists")):
            do = "move it away: a new one is begun"
        elif "unable to open" in said or "readonly" in said:
            do = "see to it that it is a file that can be written to"
        return SessionError(f"{self._path}: {said}", do)

    def _constraint_error(self, error: sqlite3.IntegrityError, name: str) -> SessionError:
        if "sessions.name" in str(error):
            return SessionError(f"there is a session {name} already", "choose another name")
        return self._error(error)

    def _require(self, database: sqlite3.Connection, session: Session) -> sqlite3.Row:
        row: sqlite3.Row | None = database.execute("SELECT * FROM sessions WHERE id = ?", (session.id,)).fetchone()
        if row is None:
            raise SessionError(f"the session {session.name} is gone: somebody has removed it", "begin another")
        return row

    def _set_leaf(self, database: sqlite3.Connection, session: Session, leaf: int | None) -> Session:
        now, first = time.time(), session.first
        if first is not None and all(stored.id != first for stored in self._branch(database, leaf)):
            first = None  # the conversation is back before it: all of it may fit again
        values = (leaf, first, now, session.id)
        database.execute("UPDATE sessions SET leaf = ?, first = ?, updated = ? WHERE id = ?", values)
        return replace(session, leaf=leaf, first=first, updated=now)

    def _branch(self, database: sqlite3.Connection, leaf: int | None) -> list[StoredMessage]:
        rows = database.execute(
            "WITH RECURSIVE path (at, depth) AS (SELECT ?, 0 UNION ALL"
            " SELECT messages.parent, depth + 1 FROM path JOIN messages ON messages.id = at WHERE at IS NOT NULL)"
            " SELECT messages.* FROM path JOIN messages ON messages.id = at ORDER BY depth DESC",
            (leaf,),
        ).fetchall()
        return list(map(message_from_row, rows))
