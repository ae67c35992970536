"""Programs in bubblewrap: without network and the user's files, within limits.

A program is the only process in the sandbox, with one thread, so a limit of the process is a limit of all it does. It
passes only if guest.py, which runs it, reaches the end of its test. That holds for programs that end early or fail, not
for those that cheat on purpose: they share a process with their test, and can return objects that are equal to
everything.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import select
import shutil
import signal
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
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.eval.call_filter import MACHINES, call_filter

Reason = Literal["passed", "failed", "timeout", "memory", "crashed"]

TIMEOUT_S = 10.0  # for a program and its test
START_S = 60.0  # for bubblewrap and Python to start, on a busy machine
MAX_OUTPUT = 2**16  # bytes that are read; a report is shorter
READY = b"ready\n"  # printed by guest.py when it has read its request
POLL_MS = 100  # after which a program that must end is killed
END_S = 5.0  # for a program that was killed to end
MAX_KERNEL_MEMORY = 2**26  # bytes that the kernel holds for a program, which no limit of a process counts
FILE_SIZE = 1300  # bytes that the kernel holds for a file in memory with a long name, besides its content

GUEST = Path(__file__).with_name("guest.py")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
PACKAGES = ("/nix/store", "/gnu/store")  # of NixOS and Guix, libraries included
NUMPY = ("numpy", "numpy.libs")  # directories of what programs can import besides the standard library
IMPORTS = "/imports"
ISOLATION = (
    "--unshare-user --unshare-all --as-pid-1 --cap-drop ALL --die-with-parent --clearenv --setenv HOME /tmp"
    f" --setenv PYTHONHASHSEED 0 --setenv PYTHONPATH {IMPORTS} --setenv OPENBLAS_NUM_THREADS 1"
    " --size 16777216 --tmpfs /tmp"
)


PROBE = (  # a program, and a test that raises an exception if it is wrong
    "import ctypes, os, socket\n",
    """
def is_denied(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False

libc = ctypes.CDLL(None)
assert is_denied(socket.socket), "it has sockets"
assert is_denied(os.fork), "it can start processes"
assert is_denied(open, "/etc/passwd"), "it can read /etc/passwd"
assert is_denied(open, "/probe", "w"), "it can write outside of /tmp"
assert os.getpid() == 1, "it is not the first process"
assert is_denied(os.kill, 0, 0), "it can send signals"
assert is_denied(os.memfd_create, "probe"), "it has memory without limits"
assert libc.ptrace(0, 0, 0, 0) == -1, "it can trace processes"
assert libc.prctl(3) == -1, "it can change how it ends"
assert libc.unshare(0) == -1, "it can create namespaces"
open("/tmp/probe", "w").close()
""",
)
REQUIREMENTS = (
    "it needs version 0.7 or newer, and user namespaces and seccomp, which many containers forbid; try: bwrap"
    " --unshare-all --ro-bind / / true"
)
# Ubuntu, since 23.10, denies capabilities in user namespaces to programs without an AppArmor profile that allows them.
# Since 25.04, it loads one for bubblewrap; before, the package apparmor-profiles has it.
RESTRICTION = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
DENIED = ("Permission denied", "Operation not permitted")
LOAD_PROFILE = (
    "AppArmor forbids it; load the profile of bubblewrap: sudo apt install apparmor-profiles && sudo install -m 644"
    " /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && sudo apparmor_parser -r"
    " /etc/apparmor.d/bwrap-userns-restrict"
)
CHILDREN = Path("/proc/thread-self/children")  # a kernel option that `_kernel_memory` needs


class CodeResult(NamedTuple):
    """How a program ended, and the end of its error, or of what it printed.

    It is "crashed" if it ended before its test.
    """

    reason: Reason
    detail: str = ""


@frozen
class Bubblewrap:
    """bubblewrap where it works, from `find_bubblewrap`: the path of its program, and the system calls it allows."""

    path: str
    call_filter: bytes

    def run(self, code: str, test: str, timeout_s: float = TIMEOUT_S, is_closed: Event | None = None) -> CodeResult:
        """Run a program and its test, in a process group of its own, until `is_closed`.

        Raises UsageError if bubblewrap fails.
        """
        is_closed = is_closed or Event()
        token = secrets.token_hex()
        request = {"code": code, "test": test, "token": token, "cpu_s": ceil(timeout_s) + 1}
        try:
            process = self._start(json.dumps(request).encode())
            data, cause = _read(process, timeout_s, is_closed)
        except OSError as error:
            raise _not_working(str(error)) from error
        output = data.decode(errors="replace")
        _, has_report, report = output.partition(f"{token} ")
        if has_report:
            reason, _, detail = report.partition("\n")
            return CodeResult(cast(Reason, reason), detail)
        if READY not in data and not is_closed.is_set():
            silence = (
                f"no response within {START_S:.0f} s" if cause else f"it ended with exit code {process.returncode}"
            )
            raise _not_working(output.strip() or silence)
        if cause:
            return CodeResult(cause)
        signum = process.returncode - 128  # bubblewrap reports signals as shells do
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
        with memory_file(request) as stdin, memory_file(self.call_filter) as call_filter, memory_file() as null:
            # An empty file is /dev/null: of the real one, root can change the permissions.
            locks = (
                f"--bind-data {null.fileno()} /dev/null --remount-ro / --chdir /tmp --seccomp {call_filter.fileno()}"
            )
            guest = [python, "-P", "-s", "-S", "-c", GUEST.read_text(encoding="utf-8")]
            return subprocess.Popen(
                [self.path, *ISOLATION.split(), *readable, *locks.split(), *guest],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=[call_filter.fileno(), null.fileno()],
                start_new_session=True,  # no terminal, and Ctrl-C interrupts only this process
            )


@contextmanager
def memory_file(data: bytes = b"") -> Iterator[IO[bytes]]:
    """A file in memory, which begins with data: the disk may be full."""
    with os.fdopen(os.memfd_create("program"), "r+b") as file:
        file.write(data)
        file.seek(0)
        yield file


def _read(process: subprocess.Popen[bytes], timeout_s: float, is_closed: Event) -> tuple[bytes, Reason | None]:
    """Read output until its end, or until the program must be killed; then all in the sandbox is gone.

    Its time begins when the interpreter has started. Returns the output, and why the program was killed, if it was.
    """
    assert process.stdout
    output, deadline = b"", time.monotonic() + START_S
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    with process.stdout:
        try:
            while (cause := _violation(process, output, deadline, is_closed)) is None:
                if not poll.poll(POLL_MS):
                    if READY not in output and _has_ended(process):
                        break  # and something that it started holds the output
                    continue
                data = os.read(process.stdout.fileno(), MAX_OUTPUT)
                if not data:
                    break
                is_new = READY not in output
                output += data
                if is_new and READY in output:
                    deadline = time.monotonic() + timeout_s
        finally:  # also after Ctrl-C
            _end(process, poll)
    return output, cause


def _violation(process: subprocess.Popen[bytes], output: bytes, deadline: float, is_closed: Event) -> Reason | None:
    """Why a program must be killed, if it must."""
    if is_closed.is_set() or time.monotonic() >= deadline:
        return "timeout"
    if len(output) > MAX_OUTPUT:
        return "crashed"
    if READY in output and _kernel_memory(process.pid) > MAX_KERNEL_MEMORY:
        return "memory"
    return None


def _kernel_memory(bwrap: int) -> int:
    """Bytes that the kernel holds for the program in a sandbox: files in /tmp and page tables. 0 once it has ended."""
    try:
        program = Path(f"/proc/{bwrap}/task/{bwrap}/children").read_text().strip()
        files = os.statvfs(f"/proc/{program}/root/tmp")
        status = Path(f"/proc/{program}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    page_tables = re.search(r"VmPTE:\s*(\d+) kB", status)
    if page_tables is None:
        return 0
    return (files.f_files - files.f_ffree) * FILE_SIZE + int(page_tables[1]) * 1024


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; it is not reaped, so that its process group can be killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes], poll: select.poll) -> None:
    """Kill what is in a sandbox, and wait until nothing holds its output. Raises TimeoutError if something does."""
    assert process.stdout
    os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_S
    while not poll.poll(POLL_MS) or os.read(process.stdout.fileno(), MAX_OUTPUT):
        if time.monotonic() >= deadline:
            process.poll()  # it may have ended, but not what it started
            raise TimeoutError("a program that was killed did not end")
    process.wait()


def find_bubblewrap() -> Bubblewrap:
    """Find bubblewrap and prove that it isolates programs here; UsageError if not."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise UsageError(
            f"bubblewrap runs only on Linux on {' or '.join(MACHINES)}",
            "use another machine, for example a virtual one",
        )
    path = shutil.which("bwrap")
    if path is None:
        raise UsageError("bwrap is not installed", "install it: sudo apt install bubblewrap  (or dnf, pacman, zypper)")
    bubblewrap = Bubblewrap(path, call_filter(machine))
    result = bubblewrap.run(*PROBE)
    if result.reason != "passed":
        raise _not_working(f"{result.reason}: {result.detail}")
    if not CHILDREN.exists():
        raise _not_working(f"{CHILDREN} is missing")
    return bubblewrap


def _not_working(problem: str) -> UsageError:
    is_restricted = RESTRICTION.exists() and RESTRICTION.read_text().strip() == "1"
    hint = LOAD_PROFILE if is_restricted and any(denied in problem for denied in DENIED) else REQUIREMENTS
    return UsageError(f"bubblewrap does not work here: {problem.splitlines()[-1]}", hint)
