"""How a program ended, and files in memory that programs read and write: what both sandboxes share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Literal, NamedTuple

Reason = Literal["passed", "failed", "timeout", "memory", "crashed", "unsupported"]

TIMEOUT_S = 10.0  # for a program and its test


class CodeResult(NamedTuple):
    """How a program ended, and the end of its error, or of what it printed.

    It is "crashed" if it ended before its test, and "unsupported" if it needs a part of Python that the sandbox lacks.
    """

    reason: Reason
    detail: str = ""


@contextmanager
def memory_file(data: bytes = b"") -> Iterator[IO[bytes]]:
    """A file without a name that begins with data: in memory on Linux, since the disk may be full."""
    with os.fdopen(os.memfd_create("program"), "r+b") if sys.platform == "linux" else TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file
