"""The functions of a Python file, in a process of their own: whatever they do ends neither a command nor its reply."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Pipe
from pathlib import Path
from weakref import finalize

from cerebrum_cli.core.child_process import ChildProcess
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.tools import ToolCall, ToolSpec, ToolSpecs

WORKER = "cerebrum_cli.programs.function_worker"
LOST = 70  # exit code if functions closed the connection
REFUSED = "the user refused this call"
END_S = 1  # for a function to end after Ctrl-C, and for exit handlers at the end of a command
POLL_S = 0.5  # after which a process that has ended is noticed although a child of it holds its connection

Report = Callable[[NoticeEvent], None]
Confirm = Callable[[ToolCall], bool]


class ProcessEnded(Exception):
    """The process of functions has ended; the text says how."""


class FunctionFile:
    """The functions of a file, whose process runs until this object is freed; after its end, the next call restarts it.

    Their state stays between calls. Calls from several threads run one after the other.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self._path, self._file = path, str(path.absolute())
        self._report = report
        self._lock = threading.Lock()
        self._worker: FunctionWorker | None = None

    def describe(self) -> ToolSpecs:
        """What a model sees of the functions; reports those that it cannot call.

        Raises UsageError if the file cannot be imported, or has no function that a model can call.
        """
        try:
            described = self._start()
        except ProcessEnded as error:
            raise UsageError(f"cannot import {self._path}: its process ended: {error}", "correct the file") from error
        if problem := described.get("problem"):
            raise UsageError(f"cannot import {self._path}: {problem}", "correct the file or its path")
        specs = tuple(ToolSpec(*values) for values in described["functions"])
        unusable = described["unusable"]
        if unusable and not specs:
            raise UsageError(*unusable[0])
        if not specs:
            raise UsageError(
                f"{self._path} defines no public functions", "define one whose name has no leading underscore"
            )
        for problem, hint in unusable:
            self._report(NoticeEvent(problem, hint))
        return specs

    def run(self, name: str, confirm: Confirm | None, arguments: JsonObject) -> ToolCall:
        """Run a function if `confirm` agrees; whatever it does, there is a result."""
        call = ToolCall(name, arguments)
        with self._lock:
            try:
                if self._worker is None and (problem := self._start().get("problem")):
                    self._end()
                    return replace(call, result=f"cannot import {self._path}: {problem}")
                call = replace(call, **self._ask(name, {"call": name, "arguments": arguments}))
                if call.result:
                    return call
                if confirm and not confirm(call):
                    return replace(call, result=REFUSED)
                return replace(call, **self._ask(name, {}))
            except ProcessEnded as error:
                result = f"{name} ended its process ({error}), which starts again for the next call"
                return replace(call, result=result)
            except RecursionError:
                return replace(call, result="invalid arguments: nested too deep")

    def _start(self) -> JsonDict:
        """Start the process; what it says about the file."""
        self._worker = FunctionWorker()
        finalize(self, self._worker.end)
        return self._ask(self._path.name, {"file": self._file, "path": sys.path})

    def _ask(self, name: str, request: JsonDict) -> JsonDict:
        """The answer to a request. After Ctrl-C, the process is killed unless it answers soon."""
        assert self._worker
        data = json.dumps(request).encode()
        try:
            return self._worker.ask(data)
        except ProcessEnded:
            self._end()
            raise
        except BaseException:
            with _without_ctrl_c():
                if not self._worker.interrupt():
                    self._end()
                    self._report(NoticeEvent(f"{name} did not stop, so its process was ended"))
            raise

    def _end(self) -> None:
        if worker := self._worker:
            self._worker = None
            worker.kill()


class FunctionWorker:
    """A process that runs functions, and the connections to it. Ctrl-C interrupts the command, which interrupts it."""

    def __init__(self) -> None:
        requests, self._requests = Pipe(duplex=False)
        self._replies, replies = Pipe(duplex=False)
        with requests, replies:
            numbers = requests.fileno(), replies.fileno()
            command = [sys.executable, "-P", "-m", WORKER, *map(str, numbers)]
            self._process = ChildProcess(command, pass_fds=numbers, grace_s=END_S)
        self._is_receiving = False  # a reply: an interruption then leaves a part of it unread

    def ask(self, request: bytes) -> JsonDict:
        """The answer to a request. Raises ProcessEnded."""
        try:
            self._requests.send_bytes(request)
            while not self._replies.poll(POLL_S):
                if self._process.poll() is not None:
                    raise EOFError
            self._is_receiving = True
            reply = json.loads(self._replies.recv_bytes())
            self._is_receiving = False
        except (EOFError, OSError, ValueError) as error:
            raise ProcessEnded(self._how_it_ended()) from error
        if not isinstance(reply, dict):
            raise ProcessEnded("wrong output")
        return reply

    def interrupt(self) -> bool:
        """Interrupt what the process does, as Ctrl-C does; whether it is ready for the next request soon."""
        if self._is_receiving:
            return False
        self._signal(signal.SIGINT)
        try:
            if self._replies.poll(END_S):
                self._replies.recv_bytes()
                return True
        except (EOFError, OSError):
            pass
        return False

    def end(self) -> None:
        """Let the process run its exit handlers, and end all that is left of it and of what it started."""
        if not self._requests.closed:
            self._requests.close()
            with suppress(EOFError, OSError):
                if self._replies.poll(END_S):
                    self._replies.recv_bytes()
            self.kill()

    def kill(self) -> None:
        self._requests.close()
        self._replies.close()
        self._process.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            code = LOST
        if code == LOST:
            return "it closed its connection"
        if code < 0:
            return signal.Signals(-code).name
        return f"exit code {code}"


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C for a moment: a second one would end the command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
