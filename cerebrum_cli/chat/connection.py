"""Connections to the session database: opening, checking and copying it, and what its errors mean."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.chat.schema import create_tables, enable_wal, require_known_version
from cerebrum_cli.chat.session import printable_name
from cerebrum_cli.core.errors import SessionError, UnwritableSessions

BUSY_TIMEOUT_S = 10.0  # for another process's transaction
NO_ACCESS = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
NO_SPACE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
DAMAGE = ("malformed", "not a database", "vtable constructor", "already exists", "decode", "no such", "FOREIGN KEY")
READ_ERRORS = (sqlite3.Error, UnicodeDecodeError)
PRIMARY_CODE = 0xFF  # of an extended result code


class DatabaseSummary(NamedTuple):
    """Contents of an intact database; its version is 0 while it is empty."""

    sessions: int
    messages: int
    version: int


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database; create or migrate it if necessary. Raises SessionError."""
    create_private(path)
    with translated(path):
        database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            require_known_version(database, path)
            enable_wal(database, BUSY_TIMEOUT_S)
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA secure_delete = ON")  # deleted text must not remain in the file
            create_tables(database)
        except BaseException:
            database.close()
            raise
    return _configured(database)


def copy_to_memory(source: sqlite3.Connection | None) -> sqlite3.Connection:
    """Copy a database, or start an empty one, in memory."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    if source:
        source.backup(database)
    create_tables(database)
    return _configured(database)


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read, with its directory, unless it exists.

    SQLite creates the files beside it with the same permissions. Raises UnwritableSessions.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableSessions(f"{error.filename}: {error.strerror}", "make it writable, or use --no-log") from error
    with contextlib.suppress(OSError):  # opening it reports the error
        path.touch(mode=0o600, exist_ok=False)


def check_integrity(path: Path) -> DatabaseSummary | None:
    """Check the whole database without changing it, and summarize its contents; None if the file does not exist.

    Raises SessionError if it is damaged, or another program's.
    """
    if not path.exists():
        return None
    # An existing log may hold changes, which closing a writable connection would write into the file. Without a log
    # SQLite creates one, and only a writable connection removes it again.
    mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with translated(path), contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        return _summarize(database, path)


def session_error(path: Path, error: Exception) -> SessionError:
    """SessionError for an error of SQLite: UnwritableSessions without permission or space."""
    problem = one_line(str(error))
    if any(sign in problem for sign in DAMAGE):
        return _damaged(path, problem)
    code = getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE
    if code in NO_ACCESS:
        return UnwritableSessions(f"{path}: {problem}", "make sure that it is a readable and writable file")
    if code in NO_SPACE:
        return UnwritableSessions(f"{path}: {problem}", "free disk space")
    return SessionError(f"{path}: {problem}", "close other programs that use the file, then try again")


def one_line(problem: str) -> str:
    return " ".join(printable_name(problem).split())  # SQLite quotes the statement of a damaged schema


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SessionError for an error of SQLite."""
    try:
        yield
    except READ_ERRORS as error:
        raise session_error(path, error) from error


def _summarize(database: sqlite3.Connection, path: Path) -> DatabaseSummary:
    version = require_known_version(database, path)
    (problem,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if problem != "ok":
        raise _damaged(path, one_line(problem))
    if row := database.execute("PRAGMA foreign_key_check").fetchone():
        raise _damaged(path, f"a row of {row[0]} refers to a missing row of {row[2]}")
    if not version:
        if database.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
            raise _damaged(path, "it belongs to another program")
        return DatabaseSummary(0, 0, 0)
    counts = (database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("sessions", "messages"))
    (sessions,), (messages,) = counts
    return DatabaseSummary(sessions, messages, version)


def _damaged(path: Path, problem: str) -> SessionError:
    recover = f"sqlite3 {shlex.quote(str(path))} .recover > saved.sql"
    return SessionError(
        f"{path} is damaged: {problem}",
        f"recover what is readable: {recover}; then move the file and its -wal elsewhere to start a new one",
    )


def _configured(database: sqlite3.Connection) -> sqlite3.Connection:
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    return database
