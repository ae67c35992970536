"""Session locks: one process at a time writes to a session, and a lock ends with its process."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from cerebrum_cli.chat.connection import create_private
from cerebrum_cli.chat.session import Session
from cerebrum_cli.core.errors import SessionError, UnwritableSessions


class SessionLock:
    """A lock on at most one session; `directory` holds an empty file for each session that was locked.

    A lock is an open exclusive transaction on an otherwise empty SQLite database: it works on every system and file
    system the session database works on, and needs no further import.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: tuple[int, sqlite3.Connection] | None = None

    def acquire(self, session: Session) -> None:
        """Lock a session and release the previous one. Raises SessionError if another process holds the lock."""
        if self._held and self._held[0] == session.id:
            return
        connection = self._lock(session)
        self.release()
        self._held = session.id, connection

    def release(self) -> None:
        if self._held:
            self._held[1].close()
            self._held = None

    def discard(self) -> None:
        """Release the lock and delete its file, once the session is deleted."""
        if self._held:
            with contextlib.suppress(OSError):
                self._lock_file(self._held[0]).unlink(missing_ok=True)
            self.release()

    def _lock_file(self, session_id: int) -> Path:
        return self._directory / f"{session_id}.lock"

    def _lock(self, session: Session) -> sqlite3.Connection:
        path = self._lock_file(session.id)
        connection = None
        try:
            create_private(path)
            connection = sqlite3.connect(path, timeout=0, isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
        except (OSError, sqlite3.Error) as error:
            if connection:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise SessionError(
                    f'session "{session.name}" is open in another process', "close it there, or use another session"
                ) from error
            raise UnwritableSessions(f"{path}: {error}", "make sure that it is writable") from error
        return connection
