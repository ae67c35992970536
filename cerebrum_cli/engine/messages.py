"""Commands to the engine's thread; Cancel and Close interrupt the running step."""

from __future__ import annotations

import threading
from collections.abc import Collection
from queue import Empty, SimpleQueue
from typing import NamedTuple

from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.scoring import ScoreJob
from cerebrum_cli.engine.sequence import Failure, Sequence


class Submit(NamedTuple):
    """Run these sequences, or end them as `cancelled` if their scope is: only this thread knows which came first.

    Those that go `first` are admitted before others that wait.
    """

    sequences: list[Sequence]
    scope: CancelScope
    first: bool = False


class SubmitScores(NamedTuple):
    """Score this job while no sequence runs, or end it if its scope is cancelled."""

    job: ScoreJob
    scope: CancelScope


class Cancel(NamedTuple):
    """Cancel these sequences and jobs, or all, immediately; `done` is set when their slots are free."""

    work: Collection[Sequence | ScoreJob] | None
    done: threading.Event


class Abort(NamedTuple):
    """Cancel these sequences after the running step, so that the others lose no work."""

    sequences: list[Sequence]


class SavePromptCache(NamedTuple):
    """Save idle slots with at least `min_tokens` unsaved tokens; with `prompt`, only the slot that matches it best.

    `empties` slots that are saved. A `prefix` is saved on its own instead. `result` receives the failure, or None.
    """

    min_tokens: int
    prompt: tuple[int, ...] | None
    result: SimpleQueue[Failure | None]
    prefix: tuple[int, ...] = ()
    empties: bool = False


class Close(NamedTuple):
    """Free the model and end the thread."""


Command = Submit | SubmitScores | Cancel | Abort | SavePromptCache | Close


class Commands:
    """Queue of commands to the engine's thread; nothing is accepted after a Close."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._lock = threading.RLock()  # reentrant: a signal handler may cancel on a thread that holds it
        self._closed = False
        self.cancel_count = 0  # number of times everything was cancelled

    def send(self, command: Command) -> bool:
        """Send a command; False if the engine is closed."""
        with self._lock:
            if self._closed:
                return False
            self._closed = isinstance(command, Close)
            self.cancel_count += isinstance(command, Cancel) and command.work is None
            if isinstance(command, Cancel | Close):
                self._stop.set()
            self._queue.put(command)
            return True

    def take(self, wait: bool) -> Command | None:
        """Take the next command, or None if the queue is empty and `wait` is False.

        The stop flag is cleared after its command left the queue, and never between another command's flag and that
        command, so a caller that drains the queue before each step neither misses nor repeats an interruption.
        """
        try:
            command = self._queue.get(block=wait)
        except Empty:
            return None
        if isinstance(command, Cancel | Close):
            with self._lock:
                self._stop.clear()
        return command
