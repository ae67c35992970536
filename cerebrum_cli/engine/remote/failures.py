"""Why a request has no reply, by how that is handled: retry elsewhere, wait, refuse the request, or stop everything."""

from __future__ import annotations

from cerebrum_cli.core.errors import CerebrumError, EndpointError

DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a value raises that has not the expected shape."""


class LostServerError(Exception):
    """The server is gone or failed; another may answer. `was_sent`: it may have been this request that killed it."""

    def __init__(self, reason: str, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.was_sent = was_sent


class BusyServerError(Exception):
    """The server takes no more requests now; `retry_after` is in seconds, None if not stated."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class RefusedRequestError(Exception):
    """The server will never answer this request."""

    def __init__(self, error: CerebrumError) -> None:
        super().__init__(error.message)
        self.error = error


def no_server_error(reasons: dict[str, str], noun: str, remedy: str) -> EndpointError:
    """The error for when no server has answered for a while; `reasons` by name."""
    problems = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return EndpointError(f"no {noun} answers ({problems})", f"{remedy}, then run the same command again")
