"""What it means when the Hub refuses, or is silent, and what to do about it. Plain values in, errors out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError

_RATE_LIMIT = re.compile(r"\br=0\b.*?\bt=(\d+)")  # of the header `RateLimit: "api";r=0;t=55`: seconds until it resets


class HubError(PullError):
    """The Hub did not answer as it should. `retries` says how often to try again, `wait` after how many seconds."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Token:
    """The user's token: where it is kept, and whether there is one."""

    location: str
    is_set: bool


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An answer with an error status; headers in any case, as their container looks them up.

    `subject` begins with the repository's id. An answer that `came_from_store` is not the Hub's own, but that of the
    store of large files it sends clients to, with addresses that are good for an hour.
    """

    subject: str
    status: int
    headers: Mapping[str, str]
    from_storage: bool
    endpoint: str
    token: Token

    @property
    def repo_id(self) -> str:
        """The repository that was asked for."""
        return "/".join(self.subject.split("/")[:2])

    def error(self) -> CerebrumError:
        """Return what it means."""
        status, hint = self.status, "pull again later"
        if self.from_storage and status in (401, 403, 404):
            return HubError(f"the Hub's store refuses the address the Hub gave ({status})", hint, retries=2)
        if error := self._from_error_code() or self._from_access():
            return error
        if status == 429:
            return HubError(
                "the Hub asks for fewer requests (429)", hint, retries=5, wait_s=retry_after_s(self.headers)
            )
        if status == 408 or status >= 500:
            return HubError(f"the Hub is in trouble ({status})", hint, retries=5, wait_s=retry_after_s(self.headers))
        return HubError(f"the Hub answered {status} for {self.subject}", hint)

    def _from_error_code(self) -> CerebrumError | None:
        """Return what the Hub's own code says."""
        code, page = self.headers.get("X-Error-Code"), f"{self.endpoint}/{self.repo_id}"
        if code == "GatedRepo":
            hint = f"accept them at {page}, then set HF_TOKEN to a token of your account, or: hf auth login"
            if self.token.is_set:
                hint = f"accept them at {page} with the account whose token is in {self.token.location}"
            return HubError(f"{self.repo_id} is gated: its owner asks you to accept terms first", hint)
        if code == "RevisionNotFound":
            return ModelNotFound(f"{self.repo_id} has no such revision", f"see its branches and tags: {page}/tree/main")
        if code == "EntryNotFound":
            return ModelNotFound(f"{self.subject} is not in this revision", f"see what is: {page}/tree/main")
        return None

    def _from_access(self) -> CerebrumError | None:
        """Return what is wrong with who asks."""
        message, location = self.headers.get("X-Error-Message", ""), self.token.location
        if self.status == 401 and "credentials in Authorization" in message:
            hint = "set it to a valid one, or unset it" if location == "HF_TOKEN" else "replace it: hf auth login"
            return HubError(f"the Hub does not accept the token in {location}", hint)
        if self.status in (401, 404):
            hint = "check the spelling"
            if not self.token.is_set:
                hint += "; for a private one set HF_TOKEN, or: hf auth login"
            return ModelNotFound(f"{self.repo_id}: there is no such repository on the Hub, or it is private", hint)
        if self.status == 403:
            hint = (
                f"give the token in {location} the right to read it"
                if self.token.is_set
                else "set HF_TOKEN to one that may"
            )
            return HubError(f"the Hub refuses {self.subject}: {message or 'forbidden'}", hint)
        return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds the Hub asks to wait: by its rate limit, by Retry-After as seconds or as a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if limit := _RATE_LIMIT.search(headers.get("RateLimit", "")):
        return float(limit[1])
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def connection_error(host: str, error: BaseException) -> HubError:
    """Return what a request without an answer means, by what stands at the bottom of its error."""
    import socket
    import ssl

    causes: tuple[tuple[type[BaseException], str, str, int], ...] = (  # the first row that fits counts
        (socket.gaierror, "its name cannot be resolved", "check the network, and HF_ENDPOINT where it is set", 1),
        (ssl.SSLError, "its certificate cannot be verified", "check the clock, or tell SSL_CERT_FILE of a proxy's", 0),
        (TimeoutError, "it does not answer in time", "check the network, or raise HF_HUB_DOWNLOAD_TIMEOUT", 5),
        (ConnectionRefusedError, "it refuses the connection", "check the network, and HF_ENDPOINT where it is set", 1),
        (BaseException, "the connection is lost", "check the network", 5),
    )
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    problem, hint, retries = next(row[1:] for row in causes if any(isinstance(link, row[0]) for link in chain))
    return HubError(f"{host}: {problem}", f"{hint}, then pull again", retries=retries)
