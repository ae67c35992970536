"""What Ctrl-C, SIGTERM and SIGHUP mean in a chat: one owner of them, from its first line until it has been left.

Ctrl-C ends what is done, a reply or a command, and never the chat; pressed twice it ends a process that does not obey.
SIGTERM and SIGHUP ask to leave, once: a terminal that is closed says so twice, and what is to be kept takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.terminal.interrupts import SIGNALS, CancelOnInterrupt, restore
from cerebrum_cli.terminal.repl.keyboard import Keyboard
from cerebrum_cli.terminal.streams import Streams, discard_lost

Answer = Callable[[int], None]
"""What is done about a signal, on the spot."""


class Signals:
    """The signals of a chat; `asked` is the one that asked to leave, which leaving this raises as Interrupted.

    Where nothing is entered a signal is remembered and disturbs nothing.
    """

    def __init__(self, streams: Streams, keyboard: Keyboard) -> None:
        self._streams = streams
        self._keyboard = keyboard
        self._old: dict[int, Any] = {}
        self._answer: Answer = remember
        self.asked: int | None = None

    def __enter__(self) -> Signals:
        self._old = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        restore(self._old)
        if self.asked is not None:
            raise Interrupted(self.asked) from None  # also for what a lost terminal made of it

    @contextlib.contextmanager
    def answered(self, answer: Answer) -> Iterator[None]:
        """Obey signals in this way meanwhile, also one that has asked to leave already."""
        before, self._answer = self._answer, answer
        try:
            if self.asked is not None:
                answer(self.asked)
            yield
        finally:
            self._answer = before

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """Raise Interrupted at once, for any signal: a command is at work."""
        return self.answered(give_up)

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Raise KeyboardInterrupt for Ctrl-C, as a prompt does, and Interrupted for the others."""
        return self.answered(take_back)

    def lent(self) -> contextlib.AbstractContextManager[None]:
        """Leave Ctrl-C to another program, whose terminal it is, and raise Interrupted for the others."""
        return self.answered(leave_keys_alone)

    @contextlib.contextmanager
    def playing(self, cancel: Callable[[], None]) -> Iterator[CancelOnInterrupt]:
        """Cancel a reply or a loading; a second Ctrl-C ends the process at once."""
        with CancelOnInterrupt(cancel) as cancelling, self.answered(self._twice(cancelling.take)):
            yield cancelling

    def leaving(self) -> contextlib.AbstractContextManager[None]:
        """Let what is to be kept be kept; a second Ctrl-C ends the process at once."""
        return self.answered(self._twice(remember))

    def _twice(self, answer: Answer) -> Answer:
        pressed = False

        def obey(signum: int) -> None:
            nonlocal pressed
            if signum == signal.SIGINT:
                if pressed:
                    self._end()
                pressed = True
            answer(signum)

        return obey

    def _take(self, signum: int, _: FrameType | None) -> None:
        if signum != signal.SIGINT:
            if self.asked is not None:
                return
            self.asked = signum
            discard_lost(self._streams)
        self._answer(signum)

    def _end(self) -> NoReturn:
        """End the process: whatever keeps the first Ctrl-C from being obeyed does not keep this one."""
        self._keyboard.restore()
        os._exit(128 + signal.SIGINT)


def remember(_: int) -> None:
    """Do nothing; what asks to leave is remembered anyway."""


def give_up(signum: int) -> None:
    """Raise Interrupted."""
    raise Interrupted(signum)


def take_back(signum: int) -> None:
    """Raise KeyboardInterrupt for Ctrl-C, Interrupted for others."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted(signum)


def leave_keys_alone(signum: int) -> None:
    """Raise Interrupted for a signal that no key sends."""
    if signum != signal.SIGINT:
        raise Interrupted(signum)
