"""Session locks: one process at a time writes to a session, and a lock ends with its process."""

from __future__ import annotations

import contextlib
from io import FileIO
from pathlib import Path

from cerebrum_cli.chat.session import Session
from cerebrum_cli.core.errors import SessionError, UnwritableSessions
from cerebrum_cli.core.locks import lock_file


class SessionLock:
    """A lock on at most one session; `directory` holds an empty file for each session that was locked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: tuple[int, FileIO] | None = None

    def acquire(self, session: Session) -> None:
        """Lock a session and release the previous one. Raises SessionError if another process holds the lock."""
        if self._held and self._held[0] == session.id:
            return
        path = self._lock_file(session.id)
        busy = SessionError(
            f'session "{session.name}" is open in another process', "close it there, or use another session"
        )
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = lock_file(path, busy, mode=0o600, is_required=False)
        except OSError as error:
            raise UnwritableSessions(f"{path}: {error.strerror}", "make sure that it is writable") from error
        self.release()
        self._held = session.id, file

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
