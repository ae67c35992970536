"""Why a request got no reply: what statuses, bodies and broken connections mean."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.text import foreign_line

RETRY_LATER = (408, 429, 503)
# Parts of messages that concern the request, though the status is 500, or missing within a stream.
REFUSALS = ("validation error", "context length", "context window", "tools param requires")


@dataclass(eq=False)
class ExchangeError(Exception):
    """A request that got no reply; the reason is in the server's words, if it gives one."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class LostServerError(ExchangeError):
    """The server is lost, or where `server_works`, only this reply; if it `was_sent`, the request may be the cause."""

    was_sent: bool = True
    server_works: bool = False


@dataclass(eq=False)
class BusyServerError(ExchangeError):
    """The server takes no more requests now; `retry_after` is in seconds, None if not stated."""

    retry_after: float | None = None


@dataclass(eq=False)
class RequestError(ExchangeError):
    """A status of 400 to 499 that concerns one request, or 501."""

    status: int


@dataclass(eq=False)
class RefusedRequestError(Exception):
    """The server will never answer this request."""

    error: CerebrumError


def failure(status: int, body: Any, retry_after: float | None = None) -> Exception:
    """Error for an HTTP status and the JSON of a response, or of an event in the middle of a stream."""
    message = f"status {status}"
    if stated := _stated_problem(body):
        message = foreign_line(str(stated))
    if status in RETRY_LATER:
        return BusyServerError(message, retry_after)
    if status == 500 and any(sign in message.lower() for sign in REFUSALS):
        status = 400
    if 400 <= status < 500 or status == 501:
        return RequestError(message, status)
    return LostServerError(message)


def _stated_problem(body: Any) -> Any:
    """What the body of an error says, in one of the usual places."""
    if isinstance(body, dict):
        body = body.get("error", body)
    if isinstance(body, dict):
        return body.get("message") or body.get("detail")
    return body


def require_success(reply: Any) -> Any:
    """A reply or an event, unless it states an error although its status is 200."""
    if not isinstance(reply, dict) or reply.get("error") is None:
        return reply
    error = reply["error"]
    status = 500
    if isinstance(error, dict) and isinstance(error.get("code"), int):
        status = error["code"]
    raise failure(status, reply)


def connection_problem(error: Exception) -> str:
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None) or 0  # negative where a name has no address, and of another kind for TLS
    if number <= 0 or isinstance(cause, ssl.SSLError):
        return str(cause)
    return os.strerror(number)
