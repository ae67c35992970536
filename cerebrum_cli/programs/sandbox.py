"""Programs that a model wrote, run in bubblewrap: without network and the user's files, within limits.

A program is one process with one thread, so a limit of the process is a limit of all it does. It passes only if
guest.py, which runs it, reaches the end of its test. That holds for programs that end early or fail, not for those that
cheat on purpose: they share a process with their test, and can return objects that are equal to everything.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from math import ceil
from pathlib import Path
from threading import Event
from typing import IO, Literal, NamedTuple, cast

from cerebrum_cli.core.errors import UsageError

Reason = Literal["passed", "failed", "timeout", "memory", "crashed"]

TIMEOUT_S = 10.0  # for a program and its test
START_S = 60.0  # for bubblewrap and Python to start, on a busy machine
MAX_OUTPUT = 2**16  # bytes that are read; a report is shorter
READY = b"ready\n"  # printed by guest.py when it has read its request
POLL_MS = 200  # after which a program that is late, or whose sandbox is closed, is killed

GUEST = Path(__file__).with_name("guest.py")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
PACKAGES = ("/nix/store", "/gnu/store")  # of NixOS and Guix, libraries included
NUMPY = ("numpy", "numpy.libs")  # directories of what programs can import besides the standard library
IMPORTS = "/imports"
ISOLATION = (
    "--unshare-user --unshare-all --cap-drop ALL --die-with-parent --clearenv --setenv HOME /tmp"
    f" --setenv PYTHONHASHSEED 0 --setenv PYTHONPATH {IMPORTS} --setenv OPENBLAS_NUM_THREADS 1"
    " --size 16777216 --tmpfs /tmp --dev-bind /dev/null /dev/null"
)

# System calls that a program cannot make: of other processes and threads, namespaces, sockets, and memory that does not
# count as its own; with their numbers on each of MACHINES, which has the kernel's number of the architecture.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED_CALLS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, 220),  # which is a clone on aarch64
    "vfork": (58, 220),
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


def call_filter(machine: str) -> bytes:
    """Program in the kernel's filter language (BPF) that denies the machine's DENIED_CALLS and foreign calls."""
    column = list(MACHINES).index(machine)
    calls = [numbers[column] for numbers in DENIED_CALLS.values()]
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


class CodeResult(NamedTuple):
    """How a program ended, and the end of its error, or of what it printed; "crashed" if it ended before its test."""

    reason: Reason
    detail: str = ""


PROBE = (  # a program, and a test that raises an exception if it is wrong
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


class Sandbox:
    """bubblewrap where it works, from `require_sandbox`; nothing runs without one. `is_closed` ends all programs."""

    def __init__(self, bwrap: str, call_filter: bytes) -> None:
        self._bwrap = bwrap
        self._call_filter = call_filter
        self.is_closed = Event()

    def run(self, code: str, test: str, timeout_s: float = TIMEOUT_S) -> CodeResult:
        """Run a program and its test, in a process group of its own. Raises UsageError if bubblewrap fails."""
        token = secrets.token_hex()
        request = {"code": code, "test": test, "token": token, "cpu_s": ceil(timeout_s) + 1}
        try:
            process = self._start(json.dumps(request).encode())
        except OSError as error:
            raise _not_working(str(error)) from error
        data, has_ended = self._read(process, timeout_s)
        output = data.decode(errors="replace")
        _, has_report, report = output.partition(f"{token} ")
        if has_report:
            reason, _, detail = report.partition("\n")
            return CodeResult(cast(Reason, reason), detail)
        if READY not in data:
            raise _not_working(output.strip() or f"no response within {START_S:.0f} s")
        signum = process.returncode - 128  # bubblewrap reports signals as shells do
        if signum == signal.SIGXCPU or not (has_ended or len(data) > MAX_OUTPUT):
            return CodeResult("timeout")
        if signum > 0:
            return CodeResult("crashed", f"signal {signum}")
        return CodeResult("crashed", "it ended the process, or corrupted its output")

    def _start(self, request: bytes) -> subprocess.Popen[bytes]:
        """Start guest.py in bubblewrap, where nothing but Python, numpy, libraries and a small /tmp exists.

        The request is its standard input. The interpreter is that of this process; of a virtual environment, the one
        that it was made from.
        """
        python = str(Path(sys.executable).resolve())
        readable = []
        for path in (*LIBRARIES, *PACKAGES, f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib", python):
            readable += ["--ro-bind-try", path, path]
        packages = distribution("numpy").locate_file("")
        for name in NUMPY:
            readable += ["--ro-bind-try", f"{packages}/{name}", f"{IMPORTS}/{name}"]
        with _file(request) as stdin, _file(self._call_filter) as call_filter:
            locks = f"--remount-ro / --chdir /tmp --seccomp {call_filter.fileno()}"
            guest = [python, "-P", "-s", "-S", "-c", GUEST.read_text(encoding="utf-8")]
            return subprocess.Popen(
                [self._bwrap, *ISOLATION.split(), *readable, *locks.split(), *guest],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=[call_filter.fileno()],
                start_new_session=True,  # no terminal, and Ctrl-C interrupts only this process
            )

    def _read(self, process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bool]:
        """Read output until its end, or until the program must be killed; then all in the sandbox is gone.

        Its time begins when the interpreter has started. The output, and whether it had ended.
        """
        assert process.stdout
        output, has_ended, deadline = b"", False, time.monotonic() + START_S
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        with process.stdout:
            try:
                while not has_ended and len(output) <= MAX_OUTPUT and time.monotonic() < deadline:
                    if self.is_closed.is_set():
                        break
                    if poll.poll(POLL_MS):
                        is_new, data = READY not in output, os.read(process.stdout.fileno(), MAX_OUTPUT)
                        output += data
                        has_ended = not data
                        if is_new and READY in output:
                            deadline = time.monotonic() + timeout_s
            finally:  # also after Ctrl-C
                if not has_ended:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            while os.read(process.stdout.fileno(), MAX_OUTPUT):
                pass
        return output, has_ended


def require_sandbox() -> Sandbox:
    """Find bubblewrap and prove that it isolates programs here; UsageError if not."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise UsageError(
            f"code that a model wrote runs only in bubblewrap, on Linux on {' or '.join(MACHINES)}",
            "run this task on another machine, for example a virtual one",
        )
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UsageError(
            "code that a model wrote runs only in bubblewrap, and bwrap is not installed",
            "install it: sudo apt install bubblewrap  (or dnf, pacman, zypper)",
        )
    sandbox = Sandbox(bwrap, call_filter(machine))
    result = sandbox.run(*PROBE)
    if result.reason != "passed":
        raise _not_working(f"{result.reason}: {result.detail}")
    return sandbox


@contextmanager
def _file(data: bytes) -> Iterator[IO[bytes]]:
    with os.fdopen(os.memfd_create("request"), "r+b") as file:  # the disk may be full
        file.write(data)
        file.seek(0)
        yield file


def _not_working(problem: str) -> UsageError:
    return UsageError(
        f"bubblewrap does not work here: {problem.splitlines()[-1]}",
        "it needs user namespaces, which many containers forbid; try: bwrap --unshare-all --ro-bind / / true",
    )
