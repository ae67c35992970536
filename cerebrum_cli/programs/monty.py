"""Programs in Monty, an interpreter of a part of Python that has no network, no files and no processes.

Each program has a process of its own. It is Monty's command, not its Python bindings: their workers outlive a command
that is killed, and Ctrl-C cannot interrupt them. The time of a program is limited here, too: Monty does not count
sleep, nor does it interrupt an operation such as 3 ** 10**8.
"""

from __future__ import annotations

import builtins
import re
import signal
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from subprocess import TimeoutExpired
from threading import Event
from typing import IO, NamedTuple

from cerebrum_cli.core.child_process import ChildProcess
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.programs.code import bare_program
from cerebrum_cli.programs.code_result import CodeResult, Reason, memory_file
from cerebrum_cli.programs.guest import DETAIL, cut

PACKAGE = "pydantic-monty-runtime"
REINSTALL = f"use --set sandbox=bwrap, or install it again: {pip_install(PACKAGE)}"
POLL_S = 0.1  # after which a program that must end is killed
# 1 GB of memory, twice what programs may use, and 16 MB of output; no variables of the user.
LIMITED = ("/bin/sh", "-c", 'ulimit -v 1048576 2> /dev/null; ulimit -f 32768; exec /usr/bin/env -i "$@"', "sh")
OPTIONS = ("--max-memory", "512MB", "--max-sleep", "inf")
SOURCE = "/dev/stdin"
PROBE = "print(6 * 7)\nopen('/etc/passwd')"  # which must not be able to open files
PROBE_S = 10.0
STATUS = " ❯ "  # between the time that a program took, and the value of its last expression or its error
ERROR = "error:"
ERROR_LINE = re.compile(r"(?m)^(?!Traceback )\S.*")
EXEC_FAILED = (126, 127)  # exit codes of a shell
# Errors due to a part of Python that Monty lacks, if the names are those of Python.
LACKS = re.compile(
    r"NotImplementedError: (?:The monty |OS function '|.* not yet support)"
    r"|RuntimeError: Internal error in monty|TypeError: cannot create '"
    r"|ImportError: cannot import name '(?P<import>\w+)' from '(?P<origin>\w+)'"
    r"|AttributeError: module '(?P<owner>\w+)' has no attribute '(?P<member>\w+)'"
    r"|ModuleNotFoundError: No module named '(?P<module>\w+)"
    r"|NameError: name '(?P<name>\w+)' is not defined"
    r"|AttributeError: '(?P<type>\w+)' object has no attribute '(?P<attribute>\w+)'"
)
MODULES = sys.stdlib_module_names | {"numpy"}  # that programs can import in bubblewrap
MEMBERS_OF = re.compile(  # modules that Monty has, in part
    "asyncio|base64|bisect|collections|copy|csv|dataclasses|datetime|decimal|functools|hashlib|itertools|json|math|os"
    "|pathlib|random|re|sys|time|typing|unicodedata"
)


class Ended(NamedTuple):
    """How a program ended: its exit code, None if it was killed; what it printed, and what Monty prints at the end."""

    exit_code: int | None
    printed: str
    status: str

    @property
    def result(self) -> CodeResult:
        """Raises UsageError if Monty did not run the program."""
        problem = self.status.removeprefix(ERROR).strip()
        error = ERROR_LINE.search(problem)
        if self.exit_code is None:
            return CodeResult("timeout")
        if self.exit_code == 0:
            return CodeResult("passed", cut(self.printed, DETAIL))
        if self.exit_code == -signal.SIGXFSZ:
            return CodeResult("memory", "it printed more than 16 MB")
        if self.exit_code < 0:
            return CodeResult("crashed", f"signal {-self.exit_code}")
        if self.exit_code in EXEC_FAILED:
            raise _not_working(problem or f"it ended with exit code {self.exit_code}")
        if self.exit_code > 1 or not self.status.startswith(ERROR) or error is None:
            return CodeResult("crashed", cut(problem or f"exit code {self.exit_code}", DETAIL))
        return CodeResult(_reason(error[0]), cut(f"{self.printed}{problem}\n", DETAIL))


@frozen
class Monty:
    """Monty where it works, from `find_monty`: the path of its command."""

    path: str
    name = "monty"
    offers = (
        "It can import math, decimal, datetime, itertools, collections, random, re and json, but not fractions,"
        " statistics or numpy. It has no inheritance, `yield`, `del` or input. Only the value"
        " of the last expression is shown; print the others."
    )

    def run(self, code: str, test: str, timeout_s: float, is_closed: Event) -> CodeResult:
        """Run a program and its test. Raises UsageError if Monty fails."""
        return self._execute(f"{code}\n\n{test}", timeout_s, is_closed).result

    def evaluate(self, text: str, timeout_s: float, is_closed: Event) -> CodeResult:
        """Run a program, which may be fenced; the value of its last expression is printed, too."""
        ended = self._execute(bare_program(text), timeout_s, is_closed)
        result = ended.result
        if result.reason != "passed" or ended.status == "None":
            return result
        return CodeResult("passed", f"{result.detail}{ended.status}\n")

    def _execute(self, code: str, timeout_s: float, is_closed: Event) -> Ended:
        command = [*LIMITED, self.path, *OPTIONS, "--max-feed-duration", f"{timeout_s:g}", SOURCE]
        try:
            with memory_file(code.encode(errors="replace")) as stdin, memory_file() as output, memory_file() as errors:
                with ChildProcess(command, stdin=stdin, stdout=output, stderr=errors) as process:
                    exit_code = _wait(process, timeout_s, is_closed)
                printed, status = _text(output), _text(errors)
        except OSError as error:
            raise _not_working(str(error)) from error
        if exit_code in (0, 1) and not status.startswith(ERROR):
            _, _, status = status.partition(STATUS)
        return Ended(exit_code, printed, status.strip())


def find_monty() -> Monty:
    """Find Monty and prove that it isolates programs here; UsageError if not."""
    path = monty_path()
    if path is None:
        raise UsageError("Monty is not installed", f"install it: {pip_install(PACKAGE)}")
    monty = Monty(str(path))
    result = monty.run(PROBE, "", PROBE_S, Event())
    if result.reason != "unsupported" or not result.detail.startswith("42\n"):
        raise _not_working(f"{result.reason}: {result.detail}")
    return monty


def monty_path() -> Path | None:
    """Where the package has installed the command; another program may have the same name."""
    try:
        files = distribution(PACKAGE).files or ()
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in files if file.name == "monty"), None)


def _wait(process: ChildProcess, timeout_s: float, is_closed: Event) -> int | None:
    """The exit code of a process; None if its time is over, or the sandbox is closed, before it ends."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not is_closed.is_set():
        try:
            return process.wait(POLL_S)
        except TimeoutExpired:
            continue
    return None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _reason(error: str) -> Reason:
    """Why a program ended, by the first line of its error."""
    if error.startswith("TimeoutError: feed time limit"):
        return "timeout"
    if error.startswith("MemoryError"):
        return "memory"
    return "unsupported" if _is_lacking(error) else "failed"


def _is_lacking(error: str) -> bool:
    """Whether an error is due to a part of Python that Monty lacks."""
    found = LACKS.match(error)
    if found is None:
        return False
    if module := found["module"]:
        return module in MODULES
    if owner := found["origin"] or found["owner"]:
        member = found["import"] or found["member"]
        return bool(MEMBERS_OF.fullmatch(owner)) and hasattr(import_module(owner), member)
    if name := found["name"]:
        return hasattr(builtins, name)
    if kind := found["type"]:
        return hasattr(getattr(builtins, kind, None), found["attribute"])
    return True


def _not_working(problem: str) -> UsageError:
    return UsageError(f"Monty does not work here: {problem.splitlines()[0]}", REINSTALL)
