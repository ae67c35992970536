"""Ctrl-C, SIGTERM and SIGHUP as a request to end, so that what was said so far can be kept."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from cerebrum_cli.ground.errors import Interrupted

# SIGHUP is what a terminal sends that is closed; Windows knows none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """While this is entered the first signal calls `cancel`; a second one ends the process at once.

    Until `talking` is set nothing has been said that could be kept, so the first signal raises Interrupted on the
    spot: a template, which is a program, may run for ever. Leaving raises it too, whatever else was on its way.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._old: dict[int, Any] = {}
        self.signum: int | None = None
        self.talking = False

    def __enter__(self) -> Interrupts:
        self._old = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.signum is not None and not isinstance(error, Interrupted):
            raise Interrupted(self.signum) from error

    def _take(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)  # whatever keeps the first from being obeyed does not keep this one
        self.signum = signum
        self._cancel()
        if not self.talking:
            raise Interrupted(signum)


@contextlib.contextmanager
def interruptible(do: str) -> Iterator[None]:
    """Raise Interrupted, saying what to do, where a signal ends what is done here: at once, and as Ctrl-C does."""
    signals: list[int] = []

    def take(signum: int, _: FrameType | None) -> None:
        signals.append(signum)
        raise KeyboardInterrupt  # no `except Exception` of a library stops it

    old = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signals[0] if signals else signal.SIGINT, do) from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
