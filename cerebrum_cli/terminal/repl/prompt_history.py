"""What was asked before, for the keys Up and Ctrl-R: on disk, and where that fails in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from cerebrum_cli.core.events import NoticeEvent


class PromptHistory(FileHistory):
    """A file that only its user reads; `trouble` is what is wrong with it, and then no more is written to it."""

    def __init__(self, path: Path) -> None:
        self.trouble: NoticeEvent | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._fail(error)
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """Return what was asked, the last first."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._fail(error)
            return ()

    def store_string(self, string: str) -> None:
        """Keep a question on disk."""
        if self.trouble:
            return
        try:
            super().store_string(string)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.trouble = self.trouble or NoticeEvent(
            f"what is asked here will not be found by Up in later chats: {error.filename}: {error.strerror}",
            "mend or remove that file; the chat itself is kept",
        )
