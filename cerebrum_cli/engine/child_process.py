"""Child processes that run native code, with one JSON object per line on standard input and output."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

EXIT_TIMEOUT_S = 10.0  # after a process has closed its output

Child = subprocess.Popen[bytes]


def start(module: str, errors: int | IO[bytes] = subprocess.DEVNULL) -> Child:
    """Start a module of this package, with standard error redirected to `errors`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],  # -P: do not import modules from the current directory
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # Ctrl-C interrupts only the parent, which then kills the child
    )


def send(child: Child, message: Mapping[str, Any]) -> None:
    """Write one message; a child that has exited is detected when its output is read."""
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(message).encode() + b"\n")
        child.stdin.flush()


def exit_status(child: Child) -> str:
    """Signal or exit code of a process that has closed its output."""
    code = child.wait(EXIT_TIMEOUT_S)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def kill(child: Child) -> None:
    """Kill a process and close its pipes."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with contextlib.suppress(OSError):  # raised for data that was not flushed before the process died
                pipe.close()
    child.wait()
