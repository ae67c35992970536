"""Ctrl-C, SIGTERM and SIGHUP as a request to end, so that what was said so far can be kept."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from cerebrum_cli.core.errors import Interrupted

# SIGHUP is what a terminal sends that is closed; Windows knows none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class CancelOnInterrupt:
    """What signals do to a reply or to a model that is loaded: each calls `cancel`.

    Until `talking` is set nothing has been said that could be kept, so a signal raises Interrupted on the spot: a
    template, which is a program, may run for ever. Leaving raises it too, whatever else was on its way.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self.signum: int | None = None
        self.talking = False

    def __enter__(self) -> CancelOnInterrupt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.signum is not None and not isinstance(error, Interrupted):
            raise Interrupted(self.signum) from error

    def take(self, signum: int) -> None:
        """Obey a signal."""
        self.signum = signum
        self._cancel()
        if not self.talking:
            raise Interrupted(signum)


class Interrupts(CancelOnInterrupt):
    """While this is entered the first signal cancels; a second one ends the process at once."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__(cancel)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        restore(self._old)
        super().__exit__(kind, error, at)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)  # whatever keeps the first from being obeyed does not keep this one
        self.take(signum)


@contextlib.contextmanager
def interruptible(do: str) -> Iterator[None]:
    """Raise Interrupted, saying what to do, where a signal ends what is done here: at once, and as Ctrl-C does.

    A second one is too much: what the first has ended is being tidied up. A third ends the process.
    """
    signals: list[int] = []

    def take(signum: int, _: FrameType | None) -> None:
        is_first, is_third = not signals, len(signals) > 1  # asked before another one can come in between
        signals.append(signum)
        if is_third:
            os._exit(128 + signum)
        if is_first:
            raise KeyboardInterrupt  # no `except Exception` of a library stops it

    old = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signals[0] if signals else signal.SIGINT, do) from None
    finally:
        restore(old)


def restore(handlers: dict[int, Any]) -> None:
    """Give signals back the handlers they had."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
