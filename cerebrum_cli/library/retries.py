"""When to repeat a request to the Hub that failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import ParamSpec, TypeVar

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.hub_requests import HubError

MAX_WAIT_S = 600.0  # the rate limits of the Hub last 300
MAX_BACKOFF_S = 16.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class RetryPolicy:
    """Delays before retries: exponential backoff, or as long as the Hub asks; each error sets its number of retries."""

    progress: Progress
    failures: int = 0  # in a row

    def run(self, request: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        while True:
            try:
                return request(*arguments, **keywords)
            except HubError as error:
                sleep(self.delay(error))

    def delay(self, error: HubError) -> float:
        """Seconds until the next attempt, after a notice; raise the error if there is none, or it would be too late."""
        seconds = min(MAX_BACKOFF_S, 2.0**self.failures) if error.wait_s is None else error.wait_s
        self.failures += 1
        if self.failures > error.retries or seconds > MAX_WAIT_S:
            raise error
        self.progress.notice(NoticeEvent(error.message, f"retrying in {seconds:.0f} s"))
        return seconds
