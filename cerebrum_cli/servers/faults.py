"""Why a request got no reply: what statuses, bodies and broken connections mean."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import CerebrumError

RETRY_LATER = (408, 429, 503)
# Parts of messages that concern the request, though the status is 500, or missing within a stream.
REFUSALS = ("validation error", "context length", "context window", "tools param requires")
# Keys of an error's body for what went wrong: OpenAI's, FastAPI's (`detail`, a list of `msg`), and others.
PROBLEMS = ("error", "message", "detail", "msg", "errors", "error_message", "error_msg")


@dataclass(eq=False)
class ExchangeError(Exception):
    """A request that got no reply; the reason is in the server's words, if it gives one."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class LostServerError(ExchangeError):
    """The server is lost, or where `server_works`, only this reply.

    If the request `was_sent`, it may be the cause. One that `timed_out` has used up the time for a row.
    """

    was_sent: bool = True
    server_works: bool = False
    timed_out: bool = False


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
    message = stated_problem(body) or f"status {status}"
    if status in RETRY_LATER:
        return BusyServerError(message, retry_after)
    if status == 500 and any(sign in message.lower() for sign in REFUSALS):
        status = 400
    if 400 <= status < 500 or status == 501:
        return RequestError(message, status)
    return LostServerError(message)


def stated_problem(body: Any) -> str:
    """What the body of an error says, in one of the usual places; empty if in none of them."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list):
        return "; ".join(filter(None, map(stated_problem, body)))
    if not isinstance(body, dict):
        return ""
    places = (stated_problem(body.get(key)) for key in PROBLEMS)
    return next(filter(None, places), "")


def stated_failure(body: Any) -> Exception:
    """The error that a body states although its status is 200; some give the status there."""
    status = 500
    for place in (body, body.get("error") if isinstance(body, dict) else None):
        code = place.get("code") if isinstance(place, dict) else None
        if re.fullmatch(r"[1-5]\d\d", str(code), re.ASCII):
            status = int(str(code))
    return failure(status, body)


def require_success(reply: Any) -> Any:
    """A reply or an event, unless it, or a choice in it, states an error although the status is 200."""
    if isinstance(reply, dict):
        choices = reply.get("choices")
        parts = [reply, *choices] if isinstance(choices, list) else [reply]
        for part in parts:
            if isinstance(part, dict) and (part.get("error") or part.get("object") == "error"):
                raise stated_failure(part)
    return reply


def connection_problem(error: Exception) -> str:
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None) or 0  # negative where a name has no address, and of another kind for TLS
    if number <= 0 or isinstance(cause, ssl.SSLError):
        return str(cause)
    return os.strerror(number)
