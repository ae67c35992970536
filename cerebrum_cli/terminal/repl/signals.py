"""Handle Ctrl-C, SIGTERM and SIGHUP during a chat.

Ctrl-C stops the running reply or command but not the chat; a second one ends a process that does not react.
The first SIGTERM or SIGHUP exits the chat and later ones are ignored: a closing terminal sends two, and saving takes
time.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.core.signals import exit_process
from cerebrum_cli.terminal.interrupts import CancelOnInterrupt, install_handlers, restore_handlers
from cerebrum_cli.terminal.streams import Streams, discard_closed

SignalAction = Callable[[int], None]
"""Called with a signal's number from its handler."""


class Signals:
    """Signal handlers of a chat. `exit_signal` is the SIGTERM or SIGHUP received, raised as Interrupted on exit.

    Outside the contexts below a signal is only recorded.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._previous_handlers: dict[int, Any] = {}
        self._action: SignalAction = ignore
        self.exit_signal: int | None = None

    def __enter__(self) -> Signals:
        self._previous_handlers = install_handlers(self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        restore_handlers(self._previous_handlers)
        if self.exit_signal is not None:
            raise Interrupted(self.exit_signal) from None  # also instead of an error caused by the lost terminal

    @contextlib.contextmanager
    def acting(self, action: SignalAction) -> Iterator[None]:
        """Use an action for signals in this context, including an exit signal already received."""
        previous, self._action = self._action, action
        try:
            if self.exit_signal is not None:
                action(self.exit_signal)
            yield
        finally:
            self._action = previous

    def running_command(self) -> contextlib.AbstractContextManager[None]:
        return self.acting(raise_interrupted)

    @contextlib.contextmanager
    def generating(self, cancel: Callable[[], None]) -> Iterator[CancelOnInterrupt]:
        """Cancel generation or loading; a second Ctrl-C exits the process immediately."""
        with CancelOnInterrupt(cancel) as canceler, self.acting(self._exiting_on_second(canceler.handle)):
            yield canceler

    def exiting(self) -> contextlib.AbstractContextManager[None]:
        """Let saving finish; a second Ctrl-C exits the process immediately."""
        return self.acting(self._exiting_on_second(ignore))

    def _exiting_on_second(self, action: SignalAction) -> SignalAction:
        pressed = False

        def act(signum: int) -> None:
            nonlocal pressed
            if signum == signal.SIGINT:
                if pressed:
                    exit_process(128 + signum)
                pressed = True
            action(signum)

        return act

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if signum != signal.SIGINT:
            if self.exit_signal is not None:
                return
            self.exit_signal = signum
            discard_closed(self._streams)
        self._action(signum)


def ignore(_: int) -> None:
    """Do nothing: exit signals are recorded anyway."""


def raise_interrupted(signum: int) -> None:
    raise Interrupted(signum)


def raise_at_prompt(signum: int) -> None:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted(signum)


def ignore_ctrl_c(signum: int) -> None:
    """Leave Ctrl-C to another program that has the terminal; raise Interrupted for other signals."""
    if signum != signal.SIGINT:
        raise Interrupted(signum)
