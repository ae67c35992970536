"""The functions of a Python file, in a process of their own: whatever they do, the command and its reply go on."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, TimeoutExpired
from typing import Any
from weakref import finalize

from cerebrum_cli.core.child_process import ChildProcess, ending
from cerebrum_cli.core.environment import user_environment
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.tools import ToolSpec, ToolSpecs

WORKER = "cerebrum_cli.programs.function_worker"
END_S = 1.0  # for a function to end after Ctrl-C, and for exit handlers at the end of a command


class ProcessEnded(Exception):
    """The process of functions has ended; the text says how."""


class FunctionFile:
    """The functions of a file, whose process runs until this object is freed; after its end, the next call restarts it.

    What its modules hold stays between calls. Calls from several threads run one after the other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = str(path.absolute())
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None

    def describe(self, report: OnNotice) -> ToolSpecs:
        """What a model sees of the functions; reports those that it cannot call.

        Raises UsageError if the file cannot be imported, or has no function that a model can call.
        """
        described = self._start()
        functions, unusable = described["functions"], described["unusable"]
        if not functions and unusable:
            raise UsageError(*unusable[0])
        if not functions:
            problem = f"{self._path} defines no public functions"
            raise UsageError(problem, "define one whose name has no leading underscore")
        for problem, hint in unusable:
            report(NoticeEvent(problem, hint))
        return tuple(ToolSpec(*values) for values in functions)

    def call(self, name: str, arguments: JsonObject) -> str:
        """What a function prints and returns; whatever it does, there is a result."""
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                return str(self._exchange({"name": name, "arguments": arguments}))
            except UsageError as error:  # the file has changed
                return error.message
            except ProcessEnded as error:
                return f"{name} ended its process ({error}), which starts again for the next call"

    def _start(self) -> Any:
        """Start the process; the functions of the file, as it describes them. Raises UsageError."""
        command = [sys.executable, "-P", "-m", WORKER, self._file]
        self._process = ChildProcess(command, stdin=PIPE, stdout=PIPE, env=user_environment(), grace_s=END_S)
        self._end = finalize(self, _end, self._process)
        try:
            described = self._exchange(None)
        except ProcessEnded as error:
            described = {"problem": f"its process ended: {error}"}
        if problem := described.get("problem"):
            self._stop()
            raise UsageError(f"cannot import {self._path}: {problem}", "correct the file or its path")
        return described

    def _exchange(self, request: JsonObject | None) -> Any:
        """Send a request, if there is one, and return the answer. Raises ProcessEnded.

        Ctrl-C interrupts a function, and ends the process.
        """
        process = self._process
        assert process and process.stdin and process.stdout
        try:
            if request:
                with suppress(BrokenPipeError):  # it has ended since the last call
                    process.stdin.write(json.dumps(request).encode() + b"\n")
                    process.stdin.flush()
            line = process.stdout.readline()
        except BaseException:
            process.send_signal(signal.SIGINT if request else signal.SIGKILL)
            self._stop()
            raise
        if not line:
            self._stop()
            raise ProcessEnded(ending(process.returncode))
        return json.loads(line)

    def _stop(self) -> None:
        self._process = None
        self._end()


def _end(process: ChildProcess) -> None:
    """Let a process run its exit handlers, and end all that is left of it and of what it started."""
    assert process.stdin
    try:
        with suppress(BrokenPipeError, TimeoutExpired):
            process.stdin.close()
            process.wait(END_S)
    finally:
        process.close()
