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
from cerebrum_cli.sessions.names import checked_name
from cerebrum_cli.sessions.private import private_database, private_folder
from cerebrum_cli.sessions.removal import remove, scrub
from cerebrum_cli.sessions.rows import (
    COLUMNS,
    MARKS,
    Hit,
    Origin,
    ReplyMetadata,
    Session,
    StoredMessage,
    Summary,
    row_values,
    session_of,
    stored_message,
)
from cerebrum_cli.sessions.schema import MIGRATIONS, migrate, version_of, write_ahead
from cerebrum_cli.sessions.search import search

BUSY_S = 10.0  # how long a change waits for another process's
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
        now, name = time.time(), checked_name(name)
        with self._changing() as database:
            try:
                database.execute(
                    "INSERT INTO sessions (name, origin, system_prompt, model, format, params, leaf, first,"
                    " created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, origin, system_prompt, model, format, json.dumps(params or {}), leaf, first, now, now),
                )
            except sqlite3.IntegrityError as error:
                raise self._taken(error, name) from error
            return session_of(database.execute("SELECT * FROM sessions WHERE name = ?", (name,)).fetchone())

    def find(self, name: str) -> Session | None:
        """Return the session of exactly this name."""
        with self._reading() as database:
            row = database.execute("SELECT * FROM sessions WHERE name = ?", (well_formed(name),)).fetchone()
            return session_of(row) if row else None

    def free_name(self, wanted: str) -> str:
        """Return a name no session has: the wanted one, or that with a number after it."""
        wanted = well_formed(wanted)
        with self._reading() as database:
            rows = database.execute("SELECT name FROM sessions WHERE substr(name, 1, ?) = ?", (len(wanted), wanted))
            taken = {row["name"] for row in rows.fetchall()}
        number, name = 1, wanted
        while name in taken:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def latest(self) -> Session | None:
        """Return the session that was last changed."""
        with self._reading() as database:
            row = database.execute("SELECT * FROM sessions ORDER BY updated DESC, id DESC LIMIT 1").fetchone()
            return session_of(row) if row else None

    def names(self) -> list[str]:
        """Return the names of all sessions, the last changed first."""
        with self._reading() as database:
            return [row["name"] for row in database.execute("SELECT name FROM sessions ORDER BY updated DESC, id DESC")]

    def sessions(self) -> list[Summary]:
        """Return all sessions, the last changed first."""
        with self._reading() as database:
            begun = {row["session"]: (row["count"], row["content"]) for row in database.execute(_BEGINNINGS)}
            rows = database.execute("SELECT * FROM sessions ORDER BY updated DESC, id DESC").fetchall()
            return [Summary(session, *begun.get(session.id, (0, ""))) for session in map(session_of, rows)]

    def messages(self, session: Session) -> list[StoredMessage]:
        """Return a session's messages, from the first to the one it has come to."""
        with self._reading() as database:
            return self._path_to(database, session.leaf)

    def conversation(self, session: Session) -> Conversation:
        """Return a session as a conversation."""
        return Conversation(tuple(stored.message for stored in self.messages(session)), session.system_prompt)

    def children(self, message: int | None) -> list[StoredMessage]:
        """Return all answers there ever were to a message, oldest first; without one, all first questions."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM messages WHERE parent IS ? ORDER BY id", (message,)).fetchall()
            return list(map(stored_message, rows))

    def add_message(self, session: Session, message: Message, said: ReplyMetadata | None = None) -> Session:
        """Add a message after the one a session has come to, and return the session, which has come to it."""
        with self._changing() as database:
            self._present(database, session)
            cursor = database.execute(
                f"INSERT INTO messages (parent, session, created, {', '.join(COLUMNS)}) VALUES (?, ?, ?, {MARKS})",
                (session.leaf, session.id, time.time(), *row_values(message, said or ReplyMetadata())),
            )
            return self._moved(database, session, cursor.lastrowid)

    def update_message(self, session: Session, message: Message, said: ReplyMetadata) -> None:
        """Replace the message a session has come to by what has become of it: a reply that goes on, or has ended."""
        with self._changing() as database:
            self._present(database, session)
            database.execute(
                f"UPDATE messages SET {', '.join(f'{column} = ?' for column in COLUMNS)} WHERE id = ?",
                (*row_values(message, said), session.leaf),
            )
            database.execute("UPDATE sessions SET updated = ? WHERE id = ?", (time.time(), session.id))

    def move(self, session: Session, leaf: int | None) -> Session:
        """Make a session come to another message; the one it had come to stays in the tree."""
        with self._changing() as database:
            self._present(database, session)
            return self._moved(database, session, leaf)

    def update_session(self, session: Session, **values: Any) -> Session:
        """Change what a session is led with: system_prompt, model, format, params, first; or its name."""
        if "name" in values:
            values["name"] = checked_name(values["name"])
        columns = {key: json.dumps(value) if key == "params" else value for key, value in values.items()}
        with self._changing() as database:
            self._present(database, session)
            sets = ", ".join(f"{column} = ?" for column in columns)
            try:
                database.execute(f"UPDATE sessions SET {sets} WHERE id = ?", (*columns.values(), session.id))
            except sqlite3.IntegrityError as error:
                raise self._taken(error, values.get("name", "")) from error
            return session_of(self._present(database, session))

    def remove(self, session: Session) -> int:
        """Delete a session and the messages that were said in it, but for those others hang on; return how many went.

        Messages of sessions that are gone already go with the last one that needed them.
        """
        with self._changing() as database:
            return remove(database, session.id)

    def scrub(self) -> None:
        """Write the file anew, so that nothing of what was removed can be read in it."""
        try:
            scrub(self._opened())
        except sqlite3.Error as error:
            what = f"what was removed may still be read in {self._path}: {error}"
            raise SessionError(
                what, "free some space, or end what else uses it; the next removal tries again"
            ) from error

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Return the messages that hold all words of a text, the best first, each in the session last changed."""
        with self._reading() as database:
            return search(database, text, limit)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._opened()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make all changes made meanwhile one: all of them happen, or none."""
        with self._changing():
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
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

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                private_folder(self._path.parent)
            except OSError as error:
                raise SessionError(
                    f"{error.filename}: {error.strerror}", "make room for it, or use --no-log"
                ) from error
            private_database(self._path)
            database = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            try:
                database.row_factory = sqlite3.Row
                if version_of(database) > _LATEST:
                    raise SessionError(f"{self._path}: written by a newer cerebrum", "update cerebrum")
                write_ahead(database, BUSY_S)
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("PRAGMA secure_delete = ON")  # what is removed is not to be read in the file
                migrate(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _unusable(self, error: sqlite3.Error) -> SessionError:
        said = str(error)
        do = "free some space, or end what else uses it"
        if any(sign in said for sign in ("malformed", "not a database", "vtable constructor", "already exists")):
            do = "move it away: a new one is begun"
        elif "unable to open" in said or "readonly" in said:
            do = "see to it that it is a file that can be written to"
        return SessionError(f"{self._path}: {said}", do)

    def _taken(self, error: sqlite3.IntegrityError, name: str) -> SessionError:
        if "sessions.name" in str(error):
            return SessionError(f"there is a session {name} already", "choose another name")
        return self._unusable(error)

    def _present(self, database: sqlite3.Connection, session: Session) -> sqlite3.Row:
        row: sqlite3.Row | None = database.execute("SELECT * FROM sessions WHERE id = ?", (session.id,)).fetchone()
        if row is None:
            raise SessionError(f"the session {session.name} is gone: somebody has removed it", "begin another")
        return row

    def _moved(self, database: sqlite3.Connection, session: Session, leaf: int | None) -> Session:
        now, first = time.time(), session.first
        if first is not None and all(stored.id != first for stored in self._path_to(database, leaf)):
            first = None  # the conversation is back before it: all of it may fit again
        values = (leaf, first, now, session.id)
        database.execute("UPDATE sessions SET leaf = ?, first = ?, updated = ? WHERE id = ?", values)
        return replace(session, leaf=leaf, first=first, updated=now)

    def _path_to(self, database: sqlite3.Connection, leaf: int | None) -> list[StoredMessage]:
        rows = database.execute(
            "WITH RECURSIVE path (at, depth) AS (SELECT ?, 0 UNION ALL"
            " SELECT messages.parent, depth + 1 FROM path JOIN messages ON messages.id = at WHERE at IS NOT NULL)"
            " SELECT messages.* FROM path JOIN messages ON messages.id = at ORDER BY depth DESC",
            (leaf,),
        ).fetchall()
        return list(map(stored_message, rows))
