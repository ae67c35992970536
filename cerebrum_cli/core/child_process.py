"""Processes that end with this one, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Self

Stream = int | IO[Any] | None


class ChildProcess(subprocess.Popen[bytes]):
    """A process with a session of its own, so that Ctrl-C interrupts only this one. Close it.

    It is killed when it is closed, or `grace_s` seconds after this process ends, even if SIGKILL ended it. So is
    all that it started, except what has a session of its own. The guard, a shell, notices the end of this process by
    reading from a pipe that only this process holds open.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        grace_s: float = 0.0,
    ) -> None:
        try:
            with signals_deferred():
                super().__init__(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=pass_fds,
                    env=env,
                    start_new_session=True,
                )
                self._guard = subprocess.Popen(
                    ["/bin/sh", "-c", f"read _; sleep {grace_s:g}; kill -s KILL -- -{self.pid}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:  # such as too many processes, or Ctrl-C
            if hasattr(self, "_guard"):
                self.close()
            elif getattr(self, "pid", None) and self.returncode is None:
                self._end()
            raise

    def close(self) -> None:
        """Kill the process and all that is left of what it started, and wait for its end."""
        self._end()
        self._guard.kill()
        self._guard.communicate()

    def _end(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS does not permit it for a group that has ended
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                with suppress(BrokenPipeError):  # of what was not written yet
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ending(code: int) -> str:
    """How a process ended, by its return code: in words, with the name of a signal that has one."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle signals afterwards: an exception between the start of a process and the return of its id would lose it."""
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # on which Python handles signals
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ignored = (signal.SIG_IGN, None)  # None: by a handler that was set in C
        handlers = {number: handler for number in numbers if (handler := signal.getsignal(number)) not in ignored}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: received.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in received:
            signal.raise_signal(signum)
