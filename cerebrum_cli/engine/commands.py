"""Commands to the engine's thread, and the one way to interrupt it.

The thread executes commands between its steps, in the order they were sent. To interrupt is to send Cancel: all that is
left of its work ends as `cancelled`. A step, or the load, that is running ends first, by a flag that llama.cpp reads,
unless others would lose work by that and nobody waits. Closing a stream of events and cancelling the engine are Cancel;
Close is Cancel of everything, and the end. Whoever submits work more than once has a CancelScope, so that what comes
after a Cancel of everything ends as `cancelled`, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.sequence import Failure, Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.prompt_cache import PromptCache
    from cerebrum_cli.engine.scoring import ScoreJob

Work = Collection["Sequence | ScoreJob"]


class Submit(NamedTuple):
    """Run sequences or score a job, or end them if their scope is cancelled: only this thread knows which came first.

    Sequences that go `first` are admitted before others that wait.
    """

    work: list[Sequence] | ScoreJob
    scope: CancelScope
    first: bool = False


class Cancel(NamedTuple):
    """Cancel this work, or all; `done` is set when its slots are free. `interrupts`: the running step ends first."""

    work: Work | None
    done: threading.Event
    interrupts: bool = True


class UsePromptCache(NamedTuple):
    """Call a function with the prompt cache, between steps; `result` receives the failure, or None."""

    function: Callable[[PromptCache], None]
    result: SimpleQueue[Failure | None]


class Close:
    """Interrupt the running step, cancel everything, free the model and end the thread."""


Command = Submit | Cancel | UsePromptCache | Close


def interrupts_step(command: Command) -> bool:
    return isinstance(command, Close) or (isinstance(command, Cancel) and command.interrupts)


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
            if isinstance(command, Cancel) and command.work is None:
                self.cancel_count += 1
            if interrupts_step(command):
                self._stop.set()
            self._queue.put(command)
            return True

    def cancel(self, work: Work) -> None:
        """Cancel work, and wait until its slots are free."""
        command = Cancel(work, threading.Event())
        if self.send(command):
            command.done.wait()

    def take(self, wait: bool) -> Command | None:
        """Take the next command, or None if the queue is empty and `wait` is False.

        The stop flag is cleared after its command left the queue, and never between another command's flag and that
        command, so a caller that drains the queue before each step neither misses nor repeats an interruption.
        """
        try:
            command = self._queue.get(block=wait)
        except Empty:
            return None
        if interrupts_step(command):
            with self._lock:
                self._stop.clear()
        return command
