"""What Ctrl-C, SIGTERM and SIGHUP do, in a chat and in every other command: see `Signals`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.core.signals import is_importing
from cerebrum_cli.terminal.streams import Streams, discard_closed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a terminal that closes sends SIGHUP
RETRY_S = 0.01  # until a signal that came during an import is sent again
RESTORE_ON_EXIT: list[Callable[[], None]] = []  # what `exit_process` calls to restore the terminal

SignalAction = Callable[[int], None]  # called with a signal's number from its handler
EndReasoning = Callable[[], bool]  # ends the reasoning of a reply; returns whether there was any to end


def ignore(_: int) -> None:
    """Do nothing: exit signals are recorded anyway."""


def nothing_to_end() -> bool:
    return False


@dataclass
class Signals:
    """The signal handlers of a command. A signal stops what runs, which the innermost of these contexts determines:

    - `generating`, a reply or loading: the first Ctrl-C while a model reasons ends the reasoning, and the answer
      follows, in a chat and in `ask` on a terminal. Otherwise the reply is cancelled, and what there is of it is saved.
      A further signal exits the process immediately, since the last may have no effect during a native call.
    - `interruptible`, a command without partial output: an exception is raised where the code is. Cleanup ignores the
      second signal, and the third exits the process.
    - `acting(raise_interrupted)`, a slash command: an exception, too.
    - `acting(postpone)`, while a question is saved: the reply does not start afterwards.
    - `acting(raise_at_prompt)`: Ctrl-C clears the prompt of a chat; twice at an empty prompt it exits.
    - `acting(ignore_ctrl_c)`: an editor has the terminal, and gets Ctrl-C.
    - `acting(exit_on_second(ignore))`, saving at the end of a chat: it finishes, unless Ctrl-C is pressed twice.

    Elsewhere, Ctrl-C has no effect in a chat, and any signal raises Interrupted in every other command. Afterwards a
    chat at a terminal continues, and every other command ends.

    SIGTERM and SIGHUP also end a chat: the first, `exit_signal`, is raised as Interrupted on exit. A SIGHUP after it
    is ignored, since a closing terminal sends two. In a chat so is a SIGTERM, since saving takes time: only Ctrl-C
    counts as a second signal there.
    """

    streams: Streams | None = None  # of a chat
    hint: str = ""
    exit_signal: int | None = None
    postponed: int | None = None  # a signal for the next context
    can_cancel: bool = False  # set by the user of `generating`
    _previous_handlers: dict[int, Any] = field(default_factory=dict)
    _action: SignalAction | None = None

    def __enter__(self) -> Signals:
        """Handle SIGNALS, except those this process was started to ignore, by `nohup` or `&`."""
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: the handler was set in C
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self.exit_signal is not None:
            # Also instead of an error caused by the lost terminal.
            raise Interrupted(self.exit_signal, self.hint) from None

    @contextmanager
    def acting(self, action: SignalAction) -> Iterator[None]:
        """Use an action for signals in this context, including an exit signal already received, or a postponed one."""
        previous, self._action = self._action, action
        earlier, self.postponed = self.exit_signal or self.postponed, None
        try:
            if earlier is not None:
                action(earlier)
            yield
        finally:
            self._action = previous

    @contextmanager
    def generating(self, cancel: Callable[[], None], end_reasoning: EndReasoning = nothing_to_end) -> Iterator[None]:
        """End the reasoning or cancel on a signal; if it was cancelled, raise Interrupted on exit, whatever was raised.

        Until `can_cancel` is set there is no partial output to save, and a signal also raises Interrupted immediately:
        a chat template is a program and may never end.
        """
        self.can_cancel = False
        stopped_by: int | None = None

        def stop(signum: int) -> None:
            nonlocal stopped_by
            stopped_by = signum
            cancel()
            if not self.can_cancel:
                raise Interrupted(signum)

        stop_or_exit = self.exit_on_second(stop)

        def act(signum: int) -> None:
            if not (signum == signal.SIGINT and end_reasoning()):
                stop_or_exit(signum)

        with self.acting(self.raise_interrupted):
            pass  # for a signal that was postponed: nothing has begun that could be cancelled
        try:
            with self.acting(act):
                yield
        finally:
            error = sys.exception()
            if stopped_by is not None and not isinstance(error, Interrupted):
                raise Interrupted(stopped_by) from error

    def postpone(self, signum: int) -> None:
        self.postponed = signum

    def raise_interrupted(self, signum: int) -> None:
        raise Interrupted(signum, self.hint)

    def exit_on_second(self, action: SignalAction) -> SignalAction:
        """The same action, but a second signal, in a chat a second Ctrl-C, exits the process immediately."""
        is_signalled = False

        def act(signum: int) -> None:
            nonlocal is_signalled
            if signum == signal.SIGINT or not self.streams:
                if is_signalled:
                    exit_process(128 + signum)
                is_signalled = True
            action(signum)

        return act

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if is_importing(frame):  # send it again after the import
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signum))
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
            return
        if signum != signal.SIGINT:
            if self.exit_signal is None:
                self.exit_signal = signum
                if self.streams:
                    discard_closed(self.streams)
            elif self.streams or signum == signal.SIGHUP:
                return
        if self._action:
            self._action(signum)
        elif not self.streams:
            self.raise_interrupted(signum)


def raise_at_prompt(signum: int) -> None:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted(signum)


def ignore_ctrl_c(signum: int) -> None:
    if signum != signal.SIGINT:
        raise Interrupted(signum)


def exit_process(code: int) -> NoReturn:
    """Exit without cleanup, which may be what hangs; only the terminal is restored."""
    for restore in RESTORE_ON_EXIT:
        restore()
    os._exit(code)
