"""How the progress of work on files is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cerebrum_cli.core.events import NoticeEvent

OnProgress = Callable[[int, int], None]  # receives the bytes done and the total


class Progress(Protocol):
    """Receiver of a download's progress."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Report how many bytes of a stage are done."""

    def notice(self, event: NoticeEvent) -> None:
        """Report an event to the user."""
