"""The file of the session database: its schema, opening, checking and copying it, and what its errors mean."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from cerebrum_cli.chat.session import printable_name
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.text import one_line

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


def check_integrity(path: Path) -> tuple[int, int, int] | None:
    """Check the whole database without changing it, and return its numbers of sessions and messages, and version.

    None if the file does not exist, version 0 while it is empty. Raises SessionError if it is damaged,
    or another program's.
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
        if version := _version(database):
            ((sessions, messages),) = database.execute("SELECT (SELECT count(*) FROM sessions), count(*) FROM messages")
            return sessions, messages, version
        if database.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
            raise _damaged(path, "it belongs to another program")
        return 0, 0, 0


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
