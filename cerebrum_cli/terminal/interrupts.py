"""Handle Ctrl-C, SIGTERM and SIGHUP: of a command, so that partial output can be saved, and of a chat."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

from cerebrum_cli.core.errors import CerebrumError, Interrupted
from cerebrum_cli.core.signals import exit_process, is_importing
from cerebrum_cli.terminal.streams import Streams, discard_closed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a terminal that closes sends SIGHUP
RETRY_S = 0.01  # until a signal that came during an import is sent again


@dataclass
class CancelOnInterrupt:
    """Cancel generation or loading on a signal, and raise Interrupted on exit, whatever else was raised.

    Until `generating` is set there is no partial output to save, and a signal also raises Interrupted immediately:
    a chat template is a program and may never end.
    """

    _cancel: Callable[[], None]
    signum: int | None = None
    generating: bool = False

    def __enter__(self) -> CancelOnInterrupt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.signum is not None and not isinstance(error, Interrupted):
            raise Interrupted(self.signum) from error

    def handle(self, signum: int) -> None:
        self.signum = signum
        self._cancel()
        if not self.generating:
            raise Interrupted(signum)


@dataclass
class Interrupts(CancelOnInterrupt):
    """Install signal handlers: the first signal cancels, the second exits the process immediately."""

    _previous_handlers: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Interrupts:
        self._previous_handlers = install_handlers(self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        restore_handlers(self._previous_handlers)
        super().__exit__(kind, error, at)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            exit_process(128 + signum)
        self.handle(signum)


@contextlib.contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Turn a signal in this block into Interrupted with a hint.

    The first signal interrupts immediately, as Ctrl-C does; the second is ignored, since cleanup is running; the third
    exits the process.
    """
    signals: list[int] = []

    def interrupt(signum: int, _: FrameType | None) -> None:
        is_first, is_third = not signals, len(signals) > 1  # before another signal can come
        signals.append(signum)
        if is_third:
            exit_process(128 + signum)
        if is_first:
            raise KeyboardInterrupt  # not caught by a library's `except Exception`

    old = install_handlers(interrupt)
    try:
        yield
    except (KeyboardInterrupt, CerebrumError) as error:
        if isinstance(error, CerebrumError) and not signals:
            raise
        # Some libraries catch KeyboardInterrupt: fsspec then states that a file does not exist.
        raise Interrupted(signals[0] if signals else signal.SIGINT, hint) from None
    finally:
        restore_handlers(old)


def install_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle SIGNALS, except those this process was started to ignore, by `nohup` or `&`; return the old handlers.

    A signal during an import is sent again after it.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signum))
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        else:
            handler(signum, frame)

    handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]  # None: set in C
    return {number: signal.signal(number, handle) for number in handled}


def restore_handlers(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


SignalAction = Callable[[int], None]
"""Called with a signal's number from its handler."""


def ignore(_: int) -> None:
    """Do nothing: exit signals are recorded anyway."""


@dataclass
class Signals:
    """Signal handlers of a chat: Ctrl-C stops the running reply or command, but not the chat.

    A second Ctrl-C ends a process that does not react. The first SIGTERM or SIGHUP, `exit_signal`, is raised as
    Interrupted on exit; later ones are ignored, since a closing terminal sends two, and saving takes time. Outside the
    contexts below a signal is only recorded.
    """

    _streams: Streams
    exit_signal: int | None = None
    _previous_handlers: dict[int, Any] = field(default_factory=dict)
    _action: SignalAction = ignore

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
