"""Connections to the session database: for writing, for reading what cannot be written, and to a copy in memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.chat.names import printable_name
from cerebrum_cli.chat.pending import fold_pieces
from cerebrum_cli.chat.private import make_private_database, make_private_directory
from cerebrum_cli.chat.schema import create_tables, enable_wal, require_known_version
from cerebrum_cli.core.errors import SessionError, UnwritableSessions

UNWRITABLE = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
DAMAGE = ("malformed", "not a database", "vtable constructor", "already exists", "decode", "no such", "FOREIGN KEY")
READ_ERRORS = (sqlite3.Error, UnicodeDecodeError)
PRIMARY_CODE = 0xFF  # of an extended result code


def open_database(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Open the database for writing; create it if necessary. Raises SessionError."""
    try:
        make_private_directory(path.parent)
    except OSError as error:
        raise UnwritableSessions(f"{error.filename}: {error.strerror}", "make it writable, or use --no-log") from error
    make_private_database(path)
    with _translated(path):
        database = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
        try:
            require_known_version(database, path)
            enable_wal(database, timeout_s)
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA secure_delete = ON")  # deleted text must not remain in the file
            create_tables(database)
            fold_pieces(_configured(database))
        except BaseException:
            database.close()
            raise
    return database


def open_read_only(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Open a database that cannot be written; an empty one if there is none. Raises SessionError."""
    if not path.exists() and (path.parent.is_dir() or not path.parent.exists()):
        return copy_to_memory(None)
    log = path.with_name(f"{path.name}-wal")
    # SQLite shares a log with other processes through a file that it cannot create here. Without a log it needs none.
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    with _translated(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=timeout_s, isolation_level=None
        )
        try:
            if not require_known_version(database, path):  # it was created, but never written
                database.close()
                return copy_to_memory(None)
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


def session_error(path: Path, error: Exception) -> SessionError:
    """SessionError for an error of SQLite: UnwritableSessions without permission or space."""
    problem = one_line(error)
    hint = "free disk space, or close other programs that use the file"
    if any(sign in problem for sign in DAMAGE):
        hint = "move the file elsewhere; a new one will be created"
    elif "unable to open" in problem or "readonly" in problem:
        hint = "make sure that it is a writable file"
    is_unwritable = getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE in UNWRITABLE
    return (UnwritableSessions if is_unwritable else SessionError)(f"{path}: {problem}", hint)


def one_line(error: Exception) -> str:
    return " ".join(printable_name(str(error)).split())  # SQLite quotes the statement of a damaged schema


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise session_error(path, error) from error


def _configured(database: sqlite3.Connection) -> sqlite3.Connection:
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    return database
