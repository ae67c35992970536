"""Prompt history for Up and Ctrl-R: a file, or memory alone if the file cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from cerebrum_cli.core.events import NoticeEvent


class PromptHistory(FileHistory):
    """History in a file readable only by its user. After a `failure` nothing more is written to it."""

    def __init__(self, path: Path) -> None:
        self.failure: NoticeEvent | None = None
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
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._fail(error)
            return ()

    def store_string(self, string: str) -> None:
        if self.failure:
            return
        try:
            super().store_string(string)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = self.failure or NoticeEvent(
            f"prompt history is not saved: {error.filename}: {error.strerror}",
            "fix or remove that file",
        )
