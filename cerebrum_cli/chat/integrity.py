"""Read-only integrity check of the session database, so that a damaged file can still be recovered."""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.chat.names import printable_name
from cerebrum_cli.chat.schema import require_known_version
from cerebrum_cli.core.errors import SessionError

BUSY_TIMEOUT_S = 5.0


class DatabaseSummary(NamedTuple):
    """Contents of an intact database; its version is 0 while it is empty."""

    sessions: int
    messages: int
    version: int


def check_integrity(path: Path) -> DatabaseSummary | None:
    """Check the whole database and summarize its contents; None if the file does not exist.

    Raises SessionError if it is damaged, or another program's.
    """
    if not path.exists():
        return None
    # An existing log may hold changes, which closing a writable connection would write into the file. Without a log
    # SQLite creates one, and only a writable connection removes it again.
    mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
            return _summarize(database, path)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _session_error(path, str(error)) from error


def _summarize(database: sqlite3.Connection, path: Path) -> DatabaseSummary:
    version = require_known_version(database, path)
    (problem,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if problem != "ok":
        raise _damaged(path, problem)
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
        f"{path} is damaged: {' '.join(printable_name(problem).split())}",
        f"recover what is readable: {recover}; then move the file and its -wal elsewhere to start a new one",
    )


def _session_error(path: Path, problem: str) -> SessionError:
    if any(sign in problem for sign in ("unable to open", "readonly", "disk I/O")):
        return SessionError(f"{path}: {problem}", "make sure that it is a readable and writable file")
    if "locked" in problem:
        return SessionError(f"{path} is locked by another program", "close that program and try again")
    return _damaged(path, problem)
