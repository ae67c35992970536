"""Retries of requests to the Hub, with notices to the user."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.models.hub_errors import HubError

T = TypeVar("T")

MAX_WAIT_S = 600.0  # longest delay accepted from the Hub, whose rate limits last 300
_MAX_BACKOFF_S = 16.0


class Progress(Protocol):
    """Receiver of a download's progress."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Report how many bytes of a stage are done."""

    def notice(self, event: NoticeEvent) -> None:
        """Report an event to the user."""


@dataclass(slots=True)
class RetryPolicy:
    """Waits between retries: exponential backoff, or as long as the Hub asks; each error sets its number of retries."""

    progress: Progress
    sleep: Callable[[float], None] = time.sleep
    failures: int = 0

    def reset(self) -> None:
        """Restart the count after the last attempt received data."""
        self.failures = 0

    def run(self, request: Callable[[], T]) -> T:
        """Send a request, with retries."""
        while True:
            try:
                return request()
            except HubError as error:
                self.wait(error)

    def wait(self, error: HubError) -> None:
        """Sleep until the next attempt; raise the error if no retries are left."""
        self.failures += 1
        if self.failures > error.retries:
            raise error
        seconds = min(_MAX_BACKOFF_S, 2.0 ** (self.failures - 1)) if error.wait_s is None else error.wait_s
        if seconds > MAX_WAIT_S:
            raise HubError(
                f"{error.message} and asks to wait {seconds / 60:.0f} minutes", "try again after that"
            ) from error
        self.progress.notice(NoticeEvent(error.message, f"retrying in {seconds:.0f} s"))
        self.sleep(seconds)
