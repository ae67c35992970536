"""Error responses of the Hub and failed connections as errors with hints."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError
from cerebrum_cli.models.reference import RepositoryKind

_RATE_LIMIT = re.compile(r"\br=0\b.*?\bt=(\d+)")  # header `RateLimit: "api";r=0;t=55`: seconds to reset


class HubError(PullError):
    """The Hub did not respond as expected. `retries` is how often to retry, `wait_s` the delay it asks for."""

    def __init__(self, problem: str, hint: str, retries: int = 0, wait_s: float | None = None) -> None:
        super().__init__(problem, hint)
        self.retries = retries
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Token:
    """The user's token: where it is stored, and whether it is set."""

    location: str
    is_set: bool


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An HTTP error response; lookups in `headers` ignore case.

    `subject` begins with the repository's id. `from_storage` marks responses of the large-file storage that the Hub
    redirects to, whose URLs are valid for an hour.
    """

    subject: str
    kind: RepositoryKind
    status: int
    headers: Mapping[str, str]
    from_storage: bool
    endpoint: str
    token: Token

    @property
    def repo_id(self) -> str:
        return "/".join(self.subject.split("/")[:2])

    def error(self) -> CerebrumError:
        status, hint = self.status, "try again later"
        if self.from_storage and status in (401, 403, 404):
            return HubError(f"the Hub's storage rejected the download URL ({status})", hint, retries=2)
        if error := self._from_error_code() or self._from_access():
            return error
        if status == 429:
            return HubError(
                "the Hub is rate-limiting requests (429)", hint, retries=5, wait_s=retry_after_s(self.headers)
            )
        if status == 408 or status >= 500:
            return HubError(
                f"the Hub reported a server error ({status})", hint, retries=5, wait_s=retry_after_s(self.headers)
            )
        return HubError(f"the Hub responded {status} for {self.subject}", hint)

    def _from_error_code(self) -> CerebrumError | None:
        """Error for the Hub's own error code."""
        path = f"datasets/{self.repo_id}" if self.kind == "dataset" else self.repo_id
        code, page = self.headers.get("X-Error-Code"), f"{self.endpoint}/{path}"
        if code == "GatedRepo":
            hint = f"accept them at {page}, then set HF_TOKEN, or run: hf auth login"
            if self.token.is_set:
                hint = f"accept them at {page} with the account of the token in {self.token.location}"
            return HubError(f"{self.repo_id} is gated: you must accept its terms first", hint)
        if code == "RevisionNotFound":
            return ModelNotFound(f"{self.repo_id} has no such revision", f"see its branches at {page}/tree/main")
        if code == "EntryNotFound":
            return ModelNotFound(f"{self.subject} is not in this revision", f"see its files at {page}/tree/main")
        return None

    def _from_access(self) -> CerebrumError | None:
        message, location = self.headers.get("X-Error-Message", ""), self.token.location
        if self.status == 401 and "credentials in Authorization" in message:
            hint = "set it to a valid one, or unset it" if location == "HF_TOKEN" else "replace it: hf auth login"
            return HubError(f"the Hub rejected the token in {location}", hint)
        if self.status in (401, 404):
            hint = "check the spelling"
            if not self.token.is_set:
                hint += "; for a private repository set HF_TOKEN, or run: hf auth login"
            return ModelNotFound(f"{self.repo_id}: no such repository on the Hub, or it is private", hint)
        if self.status == 403:
            hint = (
                f"allow the token in {location} to read it"
                if self.token.is_set
                else "set HF_TOKEN to a token with access"
            )
            return HubError(f"the Hub denied access to {self.subject}: {message or 'forbidden'}", hint)
        return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from the Hub's rate limit header, or from Retry-After as seconds or a date."""
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
