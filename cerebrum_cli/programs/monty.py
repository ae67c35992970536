"""Programs that a model wrote, in Monty: an interpreter of a part of Python without network, files and processes.

Each program has a process of its own. It is Monty's command, not its Python bindings: their workers outlive a command
that is killed, and Ctrl-C cannot interrupt them. The time of a program is limited here, too: Monty does not count
sleep, nor does it interrupt an operation such as 3 ** 10**8.
"""

from __future__ import annotations

import re
import signal
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from subprocess import TimeoutExpired
from tempfile import TemporaryFile
from textwrap import dedent
from threading import Event
from typing import IO, NamedTuple

from cerebrum_cli.core.child_process import ChildProcess
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import cut_middle, pip_install

PACKAGE = "pydantic-monty-runtime"
TIMEOUT_S = 5.0
POLL_S = 0.1  # after which a program that must end is killed
MAX_SHOWN = 8000  # characters of what a program prints
# 1 GB of memory, twice what programs may use, and 16 MB of output; no variables of the user.
LIMITED = ("/bin/sh", "-c", 'ulimit -v 1048576 2> /dev/null; ulimit -f 32768; exec /usr/bin/env -i "$@"', "sh")
OPTIONS = ("--max-memory", "512MB", "--max-sleep", "inf", "--max-feed-duration", f"{TIMEOUT_S:g}", "/dev/stdin")
STATUS = " ❯ "  # between the time that a program took, and the value of its last expression or its error
ERROR = "error:"
EXEC_FAILED = (126, 127)  # exit codes of a shell
# Errors of a program that may be right, but uses what Monty lacks.
UNSUPPORTED = re.compile(r"(?m)^(NotImplementedError|ModuleNotFoundError|ImportError|AttributeError: module)\b")
FENCED = re.compile(r"(?ms)^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```|\Z)")


class ProgramResult(NamedTuple):
    """What a program printed, the value of its last expression, and its error; the others are empty."""

    printed: str
    value: str = ""
    error: str = ""

    @property
    def is_unsupported(self) -> bool:
        """Whether the program failed because Monty has only a part of Python."""
        return UNSUPPORTED.search(self.error) is not None


@frozen
class Monty:
    """Monty, from `find_monty`: the path of its command."""

    path: str

    def run(self, code: str, is_closed: Event | None = None) -> ProgramResult:
        """Run a program, until `is_closed`. Raises UsageError if Monty cannot be started."""
        try:
            with TemporaryFile() as stdin, TemporaryFile() as output, TemporaryFile() as errors:
                stdin.write(code.encode(errors="replace"))
                stdin.seek(0)
                command = [*LIMITED, self.path, *OPTIONS]
                with ChildProcess(command, stdin=stdin, stdout=output, stderr=errors) as process:
                    exit_code = _wait(process, is_closed or Event())
                printed, status = cut_middle(_text(output), MAX_SHOWN), _text(errors)
        except OSError as error:
            raise _not_working(str(error)) from error
        if exit_code in EXEC_FAILED:
            raise _not_working(status)
        if not status.startswith(ERROR):
            status = status.partition(STATUS)[2]
        status = status.strip()
        if exit_code == 0:
            return ProgramResult(printed, "" if status == "None" else status)
        return ProgramResult(printed, error=_error(exit_code, status))


@cache
def find_monty() -> Monty:
    """Find the command that its package has installed, and run it. Raises UsageError."""
    try:
        files = distribution(PACKAGE).files or ()
    except PackageNotFoundError:
        files = ()
    path = next((Path(str(file.locate())).resolve() for file in files if file.name == "monty"), None)
    if path is None:
        raise UsageError("Monty is not installed", f"install it: {pip_install(PACKAGE)}")
    monty = Monty(str(path))
    result = monty.run("print(6 * 7)")
    if result.printed != "42\n":
        raise _not_working(result.error)
    return monty


def program_in(reply: str) -> str:
    """The first fenced block of a reply, which may lack its end; without one, the reply is the program."""
    block = FENCED.search(reply)
    return dedent(block[1]) if block else reply


def _wait(process: ChildProcess, is_closed: Event) -> int | None:
    """The exit code of a process; None if its time is over, or `is_closed`, before it ends."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and not is_closed.is_set():
        try:
            return process.wait(POLL_S)
        except TimeoutExpired:
            continue
    return None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _error(exit_code: int | None, status: str) -> str:
    """Why a program failed."""
    if exit_code is None:
        return f"it takes longer than {TIMEOUT_S:g} s"
    if exit_code == -signal.SIGXFSZ:
        return "it printed more than 16 MB"
    return cut_middle(status.removeprefix(ERROR).strip(), MAX_SHOWN) or f"it ended with exit code {exit_code}"


def _not_working(problem: str) -> UsageError:
    first_line = problem.strip().partition("\n")[0]
    return UsageError(f"Monty does not work here: {first_line}", f"install it again: {pip_install(PACKAGE)}")
