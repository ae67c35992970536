"""Processes in which native code works for this one: asked and answering in lines of JSON, ended when told to."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

GOODBYE_S = 10.0  # that a process may take to end once its output has

Child = subprocess.Popen[bytes]


def started(module: str, errors: int | IO[bytes] = subprocess.DEVNULL) -> Child:
    """Start one of our modules; what it says on standard error goes to `errors`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],  # -P: what lies in the current folder is none of our modules
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # Ctrl-C is for whoever waits, who then ends this
    )


def tell(child: Child, what: Mapping[str, Any]) -> None:
    """Send a line; that nobody reads it any more is told by the child's output."""
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(what).encode() + b"\n")
        child.stdin.flush()


def ending(child: Child) -> str:
    """Return how a process has ended whose output has."""
    code = child.wait(GOODBYE_S)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def end(child: Child) -> None:
    """End a process, whatever it does."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with contextlib.suppress(OSError):  # what was not flushed when it died
                pipe.close()
    child.wait()
