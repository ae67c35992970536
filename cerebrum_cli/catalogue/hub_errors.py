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

    def __init__(self, what: str, do: str, retries: int = 0, wait: float | None = None) -> None:
        super().__init__(what, do)
        self.retries = retries
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Token:
    """The user's token: where it is kept, and whether there is one."""

    place: str
    is_there: bool


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer with an error status; headers in any case, as their container looks them up.

    `subject` begins with the repository's id. An answer that `came_from_store` is not the Hub's own, but that of the
    store of large files it sends clients to, with addresses that are good for an hour.
    """

    subject: str
    status: int
    headers: Mapping[str, str]
    came_from_store: bool
    endpoint: str
    token: Token

    @property
    def repo_id(self) -> str:
        """The repository that was asked for."""
        return "/".join(self.subject.split("/")[:2])

    def error(self) -> CerebrumError:
        """Return what it means."""
        status, again = self.status, "pull again later"
        if self.came_from_store and status in (401, 403, 404):
            return HubError(f"the Hub's store refuses the address the Hub gave ({status})", again, retries=2)
        if meant := self._by_code() or self._by_rights():
            return meant
        if status == 429:
            return HubError("the Hub asks for fewer requests (429)", again, retries=5, wait=wait_s(self.headers))
        if status == 408 or status >= 500:
            return HubError(f"the Hub is in trouble ({status})", again, retries=5, wait=wait_s(self.headers))
        return HubError(f"the Hub answered {status} for {self.subject}", again)

    def _by_code(self) -> CerebrumError | None:
        """Return what the Hub's own code says."""
        code, page = self.headers.get("X-Error-Code"), f"{self.endpoint}/{self.repo_id}"
        if code == "GatedRepo":
            do = f"accept them at {page}, then set HF_TOKEN to a token of your account, or: hf auth login"
            if self.token.is_there:
                do = f"accept them at {page} with the account whose token is in {self.token.place}"
            return HubError(f"{self.repo_id} is gated: its owner asks you to accept terms first", do)
        if code == "RevisionNotFound":
            return ModelNotFound(f"{self.repo_id} has no such revision", f"see its branches and tags: {page}/tree/main")
        if code == "EntryNotFound":
            return ModelNotFound(f"{self.subject} is not in this revision", f"see what is: {page}/tree/main")
        return None

    def _by_rights(self) -> CerebrumError | None:
        """Return what is wrong with who asks."""
        message, place = self.headers.get("X-Error-Message", ""), self.token.place
        if self.status == 401 and "credentials in Authorization" in message:
            do = "set it to a valid one, or unset it" if place == "HF_TOKEN" else "replace it: hf auth login"
            return HubError(f"the Hub does not accept the token in {place}", do)
        if self.status in (401, 404):
            do = "check the spelling"
            if not self.token.is_there:
                do += "; for a private one set HF_TOKEN, or: hf auth login"
            return ModelNotFound(f"{self.repo_id}: there is no such repository on the Hub, or it is private", do)
        if self.status == 403:
            do = (
                f"give the token in {place} the right to read it"
                if self.token.is_there
                else "set HF_TOKEN to one that may"
            )
            return HubError(f"the Hub refuses {self.subject}: {message or 'forbidden'}", do)
        return None


def wait_s(headers: Mapping[str, str]) -> float | None:
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


def silence(host: str, error: BaseException) -> HubError:
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
    while below := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(below)
    what, do, retries = next(row[1:] for row in causes if any(isinstance(link, row[0]) for link in chain))
    return HubError(f"{host}: {what}", f"{do}, then pull again", retries=retries)
