"""Why a request got no reply: what statuses and bodies of servers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.engine.requests import Request

RETRY_LATER = (408, 429, 503)
NO_CREDIT = "insufficient_quota"  # the type or code of an error with status 429 that no waiting ends
NO_CREDIT_STATUS = 402
BUSY_S = 1.0  # of a busy server that does not state for how long
MAX_BUSY_S = 60.0  # one that is busy for longer is lost
PROBLEMS = ("error", "message", "detail", "msg")  # keys of an error's body: OpenAI's and FastAPI's
TOO_LONG = ("exceeds the available context size", "context length", "context window", "max_tokens must be at least 1")
REFUSED_HINT = "check the settings of the request, and the server's log"


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
class UnreadableReplyError(LostServerError):
    """A reply with status 200 that is not what was asked for."""


@dataclass(eq=False)
class BusyServerError(ExchangeError):
    """The server is busy for `retry_after` seconds."""

    retry_after: float


@dataclass(eq=False)
class RequestError(ExchangeError):
    """A status of 400 to 499, or 501: the server refuses the request."""

    status: int

    def explain(self, request: Request, server: str) -> CerebrumError:
        if any(sign in self.reason for sign in TOO_LONG):
            return PromptTooLong(f"{server}: {self}", "shorten the prompt, or give the server a larger context")
        if request.ask.grammar and "grammar" in self.reason.lower():
            return GrammarError(self.reason, "simplify the schema or grammar")
        return EndpointError(f"{server}: {self}", REFUSED_HINT)


def failure(status: int, body: Any, retry_after: str = "") -> ExchangeError:
    """Error for an HTTP status, the JSON or the text of a body, and the header for a busy server."""
    reason = stated_problem(body) or f"status {status}"
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and NO_CREDIT in (error.get("type"), error.get("code")):
        status = NO_CREDIT_STATUS
    delay = max(BUSY_S, float(retry_after) if retry_after.isdecimal() else 0.0)
    if status in RETRY_LATER and delay <= MAX_BUSY_S:
        return BusyServerError(reason, delay)
    if status not in RETRY_LATER and (400 <= status < 500 or status == 501):
        return RequestError(reason, status)
    return LostServerError(reason)


def require_success(reply: Any) -> Any:
    """A reply or an event, unless it states an error although the status is 200; its code may be a status."""
    if not (isinstance(reply, dict) and reply.get("error")):
        return reply
    error = reply["error"]
    code = error.get("code") if isinstance(error, dict) else None
    raise failure(code if isinstance(code, int) else 500, reply)


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
