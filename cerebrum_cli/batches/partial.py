"""The lines of finished rows as they came, in a file that one process has open; where each is, and no more, is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.batches.files import open_locked, write_all
from cerebrum_cli.batches.result import compact
from cerebrum_cli.batches.rows import OUTPUT_KEYS, Row, RowId
from cerebrum_cli.ground.errors import BatchError


class _Line(NamedTuple):
    """Where a line is, in bytes."""

    offset: int
    length: int


class Partial:
    """A partial file, open and locked; BatchError where another process has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = open_locked(path)
        self._lines: dict[int, _Line] = {}
        self._end = 0
        self._failed = 0

    @property
    def positions(self) -> AbstractSet[int]:
        """Whose lines it holds, as far as they are known."""
        return self._lines.keys()

    @property
    def failed(self) -> int:
        """How many lines tell of an error."""
        return self._failed

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands in it."""
        return os.fstat(self._descriptor).st_size == 0

    def clear(self) -> None:
        """Cut off what is not known, all of it in a file that was not read, and wait for the disk."""
        os.ftruncate(self._descriptor, self._end)
        os.fsync(self._descriptor)

    def load(self, rows: Sequence[Row]) -> None:
        """Find the row of each line; a last one that was not written to its end is cut off.

        A line belongs to the row of its id and prompt, the second of them to the second such row. BatchError for a
        line that is none of a row, or one too many.
        """
        missing: dict[bytes, deque[int]] = defaultdict(deque)
        for position, row in enumerate(rows):
            missing[_key(row.id, row.prompt)].append(position)
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                written = _written(line)
                if written is None and not file.peek(1):
                    break
                positions = missing.get(_key(written["id"], written["prompt"])) if written else None
                if not written or not positions:
                    what = f"{self._path} is damaged: line {number} is none of a row in the input"
                    raise BatchError(what, "move it away, or choose another -o; --restart begins anew")
                self._keep(positions.popleft(), line, written["error"] is not None)
        self.clear()

    def append(self, position: int, line: bytes, failed: bool) -> None:
        """Write the line of a row and wait for the disk; where that fails, nothing of it stays."""
        end, failures = self._end, self._failed
        try:
            os.ftruncate(self._descriptor, end)  # what an earlier failure left, if it could not be cut off then
            os.lseek(self._descriptor, end, os.SEEK_SET)
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
            self._keep(position, line, failed)
        except BaseException:
            self._end, self._failed = end, failures
            self._lines.pop(position, None)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise

    def ordered(self) -> Iterator[bytes]:
        """Yield the lines in the order of their positions; BatchError if the file is no longer what was written."""
        with open(self._descriptor, "rb", closefd=False) as file:
            for _, (offset, length) in sorted(self._lines.items()):
                file.seek(offset)
                line = file.read(length)
                if len(line) != length or not line.endswith(b"\n"):
                    raise BatchError(f"{self._path} was changed while the batch ran", "start the same command again")
                yield line

    def remove(self) -> None:
        """Remove the file, while nobody else can have it."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and let others have it."""
        os.close(self._descriptor)

    def _keep(self, position: int, line: bytes, failed: bool) -> None:
        self._lines[position] = _Line(self._end, len(line))
        self._end += len(line)
        self._failed += failed


def _written(line: bytes) -> dict[str, Any] | None:
    """Return the object in a line; an empty one for what is none of ours, None for what was not written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and tuple(value) == OUTPUT_KEYS else {}


def _key(id: RowId, prompt: str | None) -> bytes:
    return hashlib.sha256(compact([id, prompt]).encode()).digest()
