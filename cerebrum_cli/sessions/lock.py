"""One process at a time leads a session: a lock that dies with its process, however that ends."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.sessions.private import make_private_database, make_private_directory
from cerebrum_cli.sessions.rows import Session


class SessionLock:
    """A lock on one session at most; `directory` holds an empty file for each that was led and is not removed.

    It is SQLite's own: a transaction that is never ended on a database that is never written. That locks on every
    system and file system the sessions' database does, and is loaded already.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: tuple[int, sqlite3.Connection] | None = None

    def acquire(self, session: Session) -> None:
        """Lock a session, and let go of the one before. SessionError where another process leads it."""
        if self._held and self._held[0] == session.id:
            return
        taken = self._locked(session)
        self.release()
        self._held = session.id, taken

    def release(self) -> None:
        """Let go of what is locked, if anything."""
        if self._held:
            self._held[1].close()
            self._held = None

    def discard(self) -> None:
        """Let go of what is locked, and remove its file: the session is gone."""
        if self._held:
            with contextlib.suppress(OSError):
                self._path_of(self._held[0]).unlink(missing_ok=True)
            self.release()

    def _path_of(self, session: int) -> Path:
        return self._directory / f"{session}.lock"

    def _locked(self, session: Session) -> sqlite3.Connection:
        path = self._path_of(session.id)
        database = None
        try:
            make_private_directory(self._directory)
            make_private_database(path)
            database = sqlite3.connect(path, timeout=0, isolation_level=None)
            database.execute("BEGIN EXCLUSIVE")
        except (OSError, sqlite3.Error) as error:
            if database:
                with contextlib.suppress(sqlite3.Error):
                    database.close()
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                what = f"the session {session.name} is open in another process"
                raise SessionError(what, "leave it there first, or use another session") from error
            raise SessionError(f"{path}: {error}", "see to it that it can be written to") from error
        return database
