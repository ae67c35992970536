"""Why a request got no reply: what statuses, bodies and broken connections mean."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import CerebrumError

RETRY_LATER = (408, 429, 503)
BUSY_S = 1.0  # of a busy server that does not state for how long
MAX_BUSY_S = 60.0  # one that is busy for longer is lost
# Parts of messages that concern the request, though the status is 500, or missing within a stream.
REFUSALS = ("validation error", "context length", "context window", "tools param requires")
PROBLEMS = ("error", "message", "detail", "msg")  # keys of an error's body: OpenAI's and FastAPI's


@dataclass(eq=False)
class ExchangeError(Exception):
    """A request that got no reply; the reason is in the server's words, if it gives one."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class LostServerError(ExchangeError):
    """No reply, or a damaged one. If the request `was_sent`, it may be the cause."""

    was_sent: bool = True


@dataclass(eq=False)
class BusyServerError(ExchangeError):
    """The server takes no more requests for so many seconds."""

    retry_after: float


@dataclass(eq=False)
class RequestError(ExchangeError):
    """A status of 400 to 499, or 501."""

    status: int


@dataclass(eq=False)
class RefusedRequestError(Exception):
    """The server will never answer this request."""

    error: CerebrumError


def failure(status: int, body: Any, retry_after: float | None = None) -> ExchangeError:
    """Error for an HTTP status and the JSON of a response, or of an event in the middle of a stream."""
    message = stated_problem(body) or f"status {status}"
    delay = BUSY_S if retry_after is None else retry_after
    if status in RETRY_LATER and delay <= MAX_BUSY_S:
        return BusyServerError(message, max(delay, BUSY_S))
    if status == 500 and any(sign in message.lower() for sign in REFUSALS):
        status = 400
    if status not in RETRY_LATER and (400 <= status < 500 or status == 501):
        return RequestError(message, status)
    return LostServerError(message)


def stated_problem(body: Any) -> str:
    """What the body of an error says; empty if it is not in one of the usual places."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list):
        return "; ".join(filter(None, map(stated_problem, body)))
    if not isinstance(body, dict):
        return ""
    places = (stated_problem(body.get(key)) for key in PROBLEMS)
    return next(filter(None, places), "")


def require_success(reply: Any) -> Any:
    """A reply or an event, unless it states an error although the status is 200."""
    if isinstance(reply, dict) and (reply.get("error") or reply.get("object") == "error"):
        raise stated_failure(reply)
    return reply


def stated_failure(body: Any) -> ExchangeError:
    """The error that a body states although its status is 200; some give the status as its code."""
    status = 500
    for place in (body, body.get("error") if isinstance(body, dict) else None):
        code = place.get("code") if isinstance(place, dict) else None
        if re.fullmatch(r"[1-5]\d\d", str(code), re.ASCII):
            status = int(str(code))
    return failure(status, body)


def connection_problem(error: BaseException) -> str:
    """The system's words for why there is no connection, from the causes of an error."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, BaseExceptionGroup):  # one for each address of a host
            cause = cause.exceptions[0]
        elif isinstance(cause, ssl.SSLError):
            return str(cause)
        elif isinstance(cause, OSError) and (cause.errno or 0) > 0:
            return os.strerror(cause.errno or 0)
        else:
            cause = cause.__cause__ or cause.__context__
    return str(error)
