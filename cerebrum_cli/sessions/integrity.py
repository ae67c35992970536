"""Whether the session database is whole: read and never written, so that what is damaged can still be saved."""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.sessions.schema import MIGRATIONS, schema_version

BUSY_TIMEOUT_S = 5.0  # how long another process's change is waited for


@dataclass(frozen=True, slots=True)
class DatabaseSummary:
    """What is in a whole database; 0 is the version of one in which nothing has been kept yet."""

    sessions: int
    messages: int
    version: int


def check_integrity(path: Path) -> DatabaseSummary | None:
    """Return what a database holds once all of it has been checked; None where there is none.

    Raises SessionError for one that is damaged, or not ours.
    """
    if not path.exists():
        return None
    # A log that is there may hold changes, and closing would write them into the file. Where there is none one is made,
    # and only who may write takes it away again.
    mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
            return _read(database, path)
    except sqlite3.Error as error:
        raise _unreadable(path, str(error)) from error


def _read(database: sqlite3.Connection, path: Path) -> DatabaseSummary:
    version = schema_version(database)
    if version > len(MIGRATIONS):
        raise SessionError(f"{path}: written by a newer cerebrum", "update cerebrum")
    (complaint,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if complaint != "ok":
        raise damaged(path, complaint)
    if row := database.execute("PRAGMA foreign_key_check").fetchone():
        raise damaged(path, f"a row of {row[0]} hangs on one of {row[2]} that is gone")
    if not version:
        if database.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
            raise damaged(path, "it is another program's")
        return DatabaseSummary(0, 0, 0)
    counts = (database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("sessions", "messages"))
    (sessions,), (messages,) = counts
    return DatabaseSummary(sessions, messages, version)


def damaged(path: Path, complaint: str) -> SessionError:
    """Return the error of a database that cannot be gone on with, and can perhaps be saved."""
    rescue = f"sqlite3 {shlex.quote(str(path))} .recover > saved.sql"
    do = f"save what can be read: {rescue}; then move it and its -wal away, and a new one is begun"
    return SessionError(f"{path} is damaged: {' '.join(complaint.split())}", do)


def _unreadable(path: Path, said: str) -> SessionError:
    if any(sign in said for sign in ("unable to open", "readonly", "disk I/O")):
        return SessionError(f"{path}: {said}", "see to it that it is a file that can be read and written")
    if "locked" in said:
        return SessionError(f"{path}: another program has it locked", "end what uses it, and look again")
    return damaged(path, said)
