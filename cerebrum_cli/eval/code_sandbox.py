"""Programs that a model wrote, run in bubblewrap: without network and the user's files, within limits.

A program is one process with one thread, so a limit of the process is a limit of all it does. It passes only if
guest.py, which runs it, reaches the end of its test. That holds for programs that end early or fail, not for those that
cheat on purpose: they share a process with their test, and can return objects that are equal to everything.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, Literal, NamedTuple, TypeVar, cast

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.machine import thread_count

Key = TypeVar("Key")
Reason = Literal["passed", "failed", "timeout", "memory", "crashed"]

TIMEOUT_S = 10.0  # for a program and its test
START_S = 60.0  # for bubblewrap and Python to start, on a busy machine
MAX_OUTPUT = 2**16  # bytes that are read; a report is shorter
READY = b"ready\n"  # printed by guest.py when it has read its request
MEMORY, TEMPORARY_FILES, FILE_SIZE = 2**29, 2**24, 2**24  # bytes
OPEN_FILES = 64

GUEST = Path(__file__).with_name("guest.py")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
PACKAGES = ("/nix/store", "/gnu/store")  # of NixOS and Guix, libraries included

# System calls that a program cannot make: of other processes and threads, namespaces, sockets, and memory that does not
# count as its own; with their numbers on each of MACHINES, which has the kernel's number of the architecture.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
}
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of a filter
CALL_NUMBER, ARCHITECTURE = 0, 4  # offsets of what a filter can load
OTHER_CALLS = 0x40000000  # x86_64 has the same calls again from here on
ALLOW, DENY = 0x7FFF0000, 0x00050001  # the call fails with EPERM


def sandbox_command(bwrap: str, python: str, libraries: Iterable[str], filter_descriptor: int) -> list[str]:
    """Command that runs guest.py in the sandbox, where nothing but Python, libraries and a small /tmp exists."""
    isolation = "--unshare-user --unshare-all --cap-drop ALL --die-with-parent --clearenv"
    environment = "--setenv HOME /tmp --setenv PYTHONHASHSEED 0"
    devices = f"--size {TEMPORARY_FILES} --tmpfs /tmp --dev-bind /dev/null /dev/null"
    readable = [part for path in (*libraries, python) for part in ("--ro-bind-try", path, path)]
    locks = f"--remount-ro / --chdir /tmp --seccomp {filter_descriptor}"
    options = [*f"{isolation} {environment} {devices}".split(), *readable, *locks.split()]
    return [bwrap, *options, python, "-P", "-s", "-S", "-c", GUEST.read_text(encoding="utf-8")]


def call_filter(machine: str) -> bytes:
    """Program in the kernel's filter language (BPF) that denies the machine's DENIED_CALLS and foreign calls."""
    column = list(MACHINES).index(machine)
    calls = [numbers[column] for numbers in DENIED_CALLS.values() if numbers[column] is not None]
    deny = len(calls) + 5  # index of the last instruction; a jump's length is counted from the next instruction
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 0, deny - 2, MACHINES[machine]),
        (LOAD, 0, 0, CALL_NUMBER),
        (JUMP_GREATER_EQUAL, deny - 4, 0, OTHER_CALLS),
        *((JUMP_EQUAL, deny - index - 1, 0, call) for index, call in enumerate(calls, start=4)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def resource_limits(timeout_s: float) -> dict[str, tuple[int, int]]:
    """Limits of the program's process, soft and hard, by their names in Python's `resource`."""
    cpu_s = math.ceil(timeout_s) + 1
    return {
        "RLIMIT_CPU": (cpu_s, cpu_s + 1),  # a signal, and another that cannot be caught
        "RLIMIT_AS": (MEMORY, MEMORY),
        "RLIMIT_FSIZE": (FILE_SIZE, FILE_SIZE),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
        "RLIMIT_CORE": (0, 0),
    }


class Program(NamedTuple):
    """Code, and a test that raises an exception if the code is wrong."""

    code: str
    test: str


@dataclass(frozen=True, slots=True)
class CodeResult:
    """How a program ended, and the end of its error; "crashed" if it ended before its test did."""

    reason: Reason
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """bubblewrap where it works, from `require_sandbox`; nothing runs without one."""

    bwrap: str
    call_filter: bytes


PROBE = Program(
    "import os, socket\n",
    """
def is_denied(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False

assert is_denied(socket.socket), "it has sockets"
assert is_denied(os.fork), "it can start processes"
assert is_denied(open, "/etc/passwd"), "it can read /etc/passwd"
assert is_denied(open, "/probe", "w"), "it can write outside of /tmp"
open("/tmp/probe", "w").close()
""",
)


def require_sandbox() -> Sandbox:
    """Find bubblewrap and prove that it isolates programs here; UsageError if not."""
    if sys.platform != "linux":
        raise UsageError(
            "code that a model wrote runs only in bubblewrap, which exists only for Linux",
            "run this task on Linux, for example in a virtual machine",
        )
    machine = platform.machine()
    if machine not in MACHINES:
        raise UsageError(
            f"code that a model wrote runs only on {' and '.join(MACHINES)}, and this is {machine}",
            "run this task on another machine",
        )
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UsageError(
            "code that a model wrote runs only in bubblewrap, and bwrap is not installed",
            "install it: sudo apt install bubblewrap  (or dnf, pacman, zypper)",
        )
    sandbox = Sandbox(bwrap, call_filter(machine))
    result = run_program(sandbox, PROBE)
    if not result.passed:
        raise _not_working(f"{result.reason}: {result.detail}")
    return sandbox


def run_program(sandbox: Sandbox, program: Program, timeout_s: float = TIMEOUT_S) -> CodeResult:
    with contextlib.closing(ProgramPool[None](sandbox, timeout_s)) as pool:
        pool.add(None, program)
        return pool.results(math.inf)[0][1]


class ProgramPool(Generic[Key]):
    """Runs programs beside other work, as many at a time as there are cores. Close it to kill those that still run.

    A program that waits for a core is started when results are asked for.
    """

    def __init__(self, sandbox: Sandbox, timeout_s: float = TIMEOUT_S) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s
        self._cores = thread_count()
        self._waiting: deque[tuple[Key, Program]] = deque()
        self._runs: list[_Run[Key]] = []
        self._results: list[tuple[Key, CodeResult]] = []
        self._selector = selectors.DefaultSelector()

    def add(self, key: Key, program: Program) -> None:
        """Start a program, or put it in line if no core is free."""
        self._waiting.append((key, program))
        self._start_waiting()

    @property
    def is_running(self) -> bool:
        return bool(self._runs)

    def results(self, wait_s: float = 0.0) -> list[tuple[Key, CodeResult]]:
        """Take the results of programs that have ended; if none has, wait for one while there are any."""
        end = time.monotonic() + wait_s
        self._collect(0.0)
        while self._runs and not self._results and (left_s := end - time.monotonic()) > 0:
            self._collect(left_s)
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        for run in self._runs:
            run.kill()
        self._runs.clear()
        self._waiting.clear()
        self._selector.close()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._runs) < self._cores:
            run = _Run(*self._waiting.popleft(), self._sandbox, self._timeout_s)
            self._runs.append(run)
            self._selector.register(run.stdout, selectors.EVENT_READ, run)

    def _collect(self, wait_s: float) -> None:
        """Read output, waiting for some until a program is late, and finish the programs that have ended."""
        if not self._runs:
            return
        late_s = min(run.deadline for run in self._runs) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, min(wait_s, late_s))):
            key.data.read()
        for run in [run for run in self._runs if run.has_ended]:
            self._selector.unregister(run.stdout)
            self._results.append((run.key, run.finish()))
            self._runs.remove(run)
        self._start_waiting()


class _Run(Generic[Key]):
    """A program that runs, in a process group of its own; UsageError if bubblewrap cannot be started."""

    def __init__(self, key: Key, program: Program, sandbox: Sandbox, timeout_s: float) -> None:
        self.key = key
        self.deadline = time.monotonic() + START_S
        self._timeout_s = timeout_s
        self._token = secrets.token_hex()
        self._output = b""
        self._is_started = self._is_closed = False
        request = program._asdict() | {"token": self._token, "limits": resource_limits(timeout_s)}
        try:
            self._process = _start(sandbox, json.dumps(request).encode())
        except OSError as error:
            raise _not_working(str(error)) from error
        assert self._process.stdout
        self.stdout = self._process.stdout

    def read(self) -> None:
        """Read some output, or its end; the program's time begins when the interpreter has started."""
        data = os.read(self.stdout.fileno(), MAX_OUTPUT)
        self._output += data
        self._is_closed = not data
        if not self._is_started and READY in self._output:
            self._is_started = True
            self.deadline = time.monotonic() + self._timeout_s

    @property
    def has_ended(self) -> bool:
        return self._is_closed or len(self._output) > MAX_OUTPUT or time.monotonic() >= self.deadline

    def finish(self) -> CodeResult:
        """Kill what is left of it, and interpret its output; UsageError if bubblewrap failed."""
        self.kill()
        output = self._output.decode(errors="replace")
        _, has_report, report = output.partition(f"{self._token} ")
        if has_report:
            reason, _, detail = report.partition("\n")
            return CodeResult(cast(Reason, reason), detail)
        if not self._is_started:
            raise _not_working(output.strip() or f"no response within {START_S:.0f} s")
        signum = self._process.returncode - 128  # bubblewrap reports signals as shells do
        if signum == signal.SIGXCPU or not (self._is_closed or len(output) > MAX_OUTPUT):
            return CodeResult("timeout")
        return CodeResult(
            "crashed", f"signal {signum}" if signum > 0 else "it ended the process, or corrupted its output"
        )

    def kill(self) -> None:
        """Kill all in the sandbox, and wait until it is gone; nothing happens the second time."""
        if self.stdout.closed:
            return
        if not self._is_closed:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        while os.read(self.stdout.fileno(), MAX_OUTPUT):
            pass
        self.stdout.close()


def _start(sandbox: Sandbox, request: bytes) -> subprocess.Popen[bytes]:
    """Start guest.py in bubblewrap, with the request on standard input.

    The interpreter is that of this process; of a virtual environment, the one that it was made from.
    """
    python, own = str(Path(sys.executable).resolve()), (f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib")
    libraries = dict.fromkeys((*LIBRARIES, *PACKAGES, *own))
    with _file(request) as stdin, _file(sandbox.call_filter) as call_filter:
        return subprocess.Popen(
            sandbox_command(sandbox.bwrap, python, libraries, call_filter.fileno()),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=[call_filter.fileno()],
            start_new_session=True,  # no terminal, and Ctrl-C interrupts only this process
        )


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def _not_working(problem: str) -> UsageError:
    return UsageError(
        f"bubblewrap does not work here: {problem.splitlines()[-1]}",
        "it needs user namespaces, which many containers forbid; try: bwrap --unshare-all --ro-bind / / true",
    )
