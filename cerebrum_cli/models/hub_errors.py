"""Error responses of the Hub and failed connections as errors with hints, and which of them are retried."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import sleep
from typing import NamedTuple, Protocol, TypeVar

from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent

T = TypeVar("T")

MAX_WAIT_S = 600.0  # longest delay accepted from the Hub, whose rate limits last 300
_MAX_BACKOFF_S = 16.0
_RATE_LIMIT = re.compile(r"\br=0\b.*?\bt=(\d+)")  # header `RateLimit: "api";r=0;t=55`: seconds to reset


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


class Token(NamedTuple):
    """The user's token: where it is stored, and whether it is set."""

    location: str
    is_set: bool


def response_error(
    subject: str, page: str, status: int, headers: Mapping[str, str], token: Token, from_storage: bool
) -> CerebrumError:
    """Error for an HTTP error response; lookups in `headers` ignore case.

    `subject` begins with the id of the repository, whose web `page` it is. `from_storage` marks responses of the
    large-file storage that the Hub redirects to, whose URLs are valid for an hour.
    """
    repo_id, hint = "/".join(subject.split("/")[:2]), "try again later"
    message, code = headers.get("X-Error-Message", ""), headers.get("X-Error-Code")
    if from_storage and status in (401, 403, 404):
        return HubError(f"the Hub's storage rejected the download URL ({status})", hint, retries=2)
    if code == "GatedRepo":
        hint = f"accept them at {page}, then set HF_TOKEN, or run: hf auth login"
        if token.is_set:
            hint = f"accept them at {page} with the account of the token in {token.location}"
        return HubError(f"{repo_id} is gated: you must accept its terms first", hint)
    if code == "RevisionNotFound":
        return ModelNotFound(f"{repo_id} has no such revision", f"see its branches at {page}/tree/main")
    if code == "EntryNotFound":
        return ModelNotFound(f"{subject} is not in this revision", f"see its files at {page}/tree/main")
    if status == 401 and "credentials in Authorization" in message:
        hint = "set it to a valid one, or unset it" if token.location == "HF_TOKEN" else "replace it: hf auth login"
        return HubError(f"the Hub rejected the token in {token.location}", hint)
    if status in (401, 404):
        private = "" if token.is_set else "; for a private repository set HF_TOKEN, or run: hf auth login"
        return ModelNotFound(
            f"{repo_id}: no such repository on the Hub, or it is private", f"check the spelling{private}"
        )
    if status == 403:
        hint = f"allow the token in {token.location} to read it" if token.is_set else "set HF_TOKEN to one with access"
        return HubError(f"the Hub denied access to {subject}: {message or 'forbidden'}", hint)
    if status in (408, 429) or status >= 500:
        problem = "is rate-limiting requests" if status == 429 else "reported a server error"
        return HubError(f"the Hub {problem} ({status})", hint, retries=5, wait_s=retry_after_s(headers))
    return HubError(f"the Hub responded {status} for {subject}", hint)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from the Hub's rate limit header, or from Retry-After."""
    if limit := _RATE_LIMIT.search(headers.get("RateLimit", "")):
        return float(limit[1])
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() else None


def connection_error(host: str, error: BaseException) -> HubError:
    """Error for a request without a response, by the causes of the exception."""
    import socket
    import ssl

    causes: tuple[tuple[type[BaseException], str, str, int], ...] = (  # the first match wins
        (socket.gaierror, "cannot resolve the host name", "check the network, and HF_ENDPOINT if it is set", 1),
        (ssl.SSLError, "cannot verify its certificate", "check the clock, or set SSL_CERT_FILE for a proxy", 0),
        (TimeoutError, "timed out", "check the network, or raise HF_HUB_DOWNLOAD_TIMEOUT", 5),
        (ConnectionRefusedError, "connection refused", "check the network, and HF_ENDPOINT if it is set", 1),
        (BaseException, "connection lost", "check the network", 5),
    )
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    problem, hint, retries = next(row[1:] for row in causes if any(isinstance(link, row[0]) for link in chain))
    return HubError(f"{host}: {problem}", f"{hint}, then try again", retries=retries)


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
        sleep(seconds)
