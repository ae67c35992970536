"""Retries of requests to the Hub: which errors are retried, how often, and after which delay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import ParamSpec, Protocol, TypeVar

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAIT_S = 600.0  # longest delay accepted from the Hub, whose rate limits last 300
_MAX_BACKOFF_S = 16.0


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


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
    failures: int = 0  # in a row

    def run(self, request: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        while True:
            try:
                return request(*arguments, **options)
            except HubError as error:
                self.wait(error)

    def wait(self, error: HubError) -> None:
        """Sleep until the next attempt; raise the error if no retries are left."""
        self.failures += 1
        if self.failures > error.retries:
            raise error
        seconds = min(_MAX_BACKOFF_S, 2.0 ** (self.failures - 1)) if error.wait_s is None else error.wait_s
        if seconds > MAX_WAIT_S:
            problem = f"{error.message} and asks to wait {seconds / 60:.0f} minutes"
            raise HubError(problem, "try again after that") from error
        self.progress.notice(NoticeEvent(error.message, f"retrying in {seconds:.0f} s"))
        sleep(seconds)
