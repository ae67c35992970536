"""What callers ask of the engine's thread. To end something interrupts the step that runs, at once and only once."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import NamedTuple

from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.sequence import Failure, Sequence


class Submit(NamedTuple):
    """Take these sequences in."""

    sequences: list[Sequence]


class Cancel(NamedTuple):
    """End these sequences, or all; `done` is set when their slots are free."""

    sequences: list[Sequence] | None
    done: threading.Event


class Abort(NamedTuple):
    """End these sequences when the step that runs is over: nothing of it is lost for the others."""

    sequences: list[Sequence]


class SavePromptCache(NamedTuple):
    """Keep on disk what idle slots hold, if `least` tokens of it are not; of `prompt` only what one has of it.

    A `beginning` is kept by itself. The answer is what went wrong, or None.
    """

    min_tokens: int
    prompt: tuple[int, ...] | None
    result: SimpleQueue[Failure | None]
    prefix: tuple[int, ...] = ()


class Close(NamedTuple):
    """Free the model and end the thread."""


Command = Submit | Cancel | Abort | SavePromptCache | Close


class Commands:
    """Commands on their way to the engine's thread; after a Close none goes in."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._lock = threading.RLock()  # a signal's handler may cancel on a thread that stands in the door
        self._closed = False
        self.cancel_count = 0  # how often everything has been cancelled

    def send(self, command: Command) -> bool:
        """Send a command; False if the engine is closed, and nobody would read it."""
        with self._lock:
            if self._closed:
                return False
            self._closed = isinstance(command, Close)
            self.cancel_count += isinstance(command, Cancel) and command.sequences is None
            if isinstance(command, Cancel | Close):
                self._stop.set()
            self._queue.put(command)
            return True

    def take(self, wait: bool) -> Command | None:
        """Return the next command, or None if there is none and `wait` is False.

        The flag is cleared only after its command is out of the queue, and never between another's flag and command:
        whoever takes all commands before the next step neither runs a step too long nor interrupts one for nothing.
        """
        try:
            command = self._queue.get(block=wait)
        except Empty:
            return None
        if isinstance(command, Cancel | Close):
            with self._lock:
                self._stop.clear()
        return command
