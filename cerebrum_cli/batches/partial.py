"""The lines of finished rows as they came, in a file that one process has open; where each is, and no more, is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.batches.files import open_locked, write_all
from cerebrum_cli.batches.result import to_json
from cerebrum_cli.batches.rows import OUTPUT_KEYS, Row, RowId
from cerebrum_cli.core.errors import BatchError

ROW = "row"  # the key, in this file alone, of a row's place in the input
_ROW = b', "row": '


class _Line(NamedTuple):
    """Where a line is, in bytes."""

    offset: int
    length: int


class PartialFile:
    """A partial file, open and locked; BatchError where another process has it.

    A line is that of the result. Where an id and a prompt are those of several rows it has its row's place besides.
    """

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self._path = path
        self._positions_by_key: dict[bytes, list[int]] = {}
        for position, row in enumerate(rows):
            self._positions_by_key.setdefault(_key(row.id, row.prompt), []).append(position)
        self._duplicates = {at for places in self._positions_by_key.values() if len(places) > 1 for at in places}
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

    def load(self) -> None:
        """Find the row of each line; a last one that was not written to its end is cut off.

        BatchError for a line that is none of a row, or the second of one.
        """
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                written = _parse_line(line)
                if written is None and not file.peek(1):
                    break
                position = None if written is None else self._position(written)
                if written is None or position is None or position in self._lines:
                    what = f"{self._path} is damaged: line {number} is none of a row in the input"
                    raise BatchError(what, "move it away, or choose another -o; --restart begins anew")
                self._add_line(position, line, written["error"] is not None)
        self.clear()

    def append(self, position: int, line: bytes, failed: bool) -> None:
        """Write the line of a row and wait for the disk; where that fails, nothing of it stays."""
        end, failures = self._end, self._failed
        try:
            os.ftruncate(self._descriptor, end)  # what an earlier failure left, if it could not be cut off then
            os.lseek(self._descriptor, end, os.SEEK_SET)
            if position in self._duplicates:
                line = line.removesuffix(b"}\n") + _ROW + b"%d}\n" % position
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
            self._add_line(position, line, failed)
        except BaseException:
            self._end, self._failed = end, failures
            self._lines.pop(position, None)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise

    def _position(self, written: Mapping[str, Any]) -> int | None:
        """Return the place of the row that was written; None if there is no such row in the input."""
        if not written:
            return None
        places = self._positions_by_key.get(_key(written["id"], written["prompt"]), [])
        if len(places) < 2:
            return next(iter(places), None)
        return written[ROW] if written.get(ROW) in places else None

    def lines_in_order(self) -> Iterator[bytes]:
        """Yield the lines in the order of their positions; BatchError if the file is no longer what was written."""
        with open(self._descriptor, "rb", closefd=False) as file:
            for _, (offset, length) in sorted(self._lines.items()):
                file.seek(offset)
                line = file.read(length)
                if len(line) != length or not line.endswith(b"\n"):
                    raise BatchError(f"{self._path} was changed while the batch ran", "start the same command again")
                yield _without_position(line)

    def remove(self) -> None:
        """Remove the file, while nobody else can have it."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and let others have it."""
        os.close(self._descriptor)

    def _add_line(self, position: int, line: bytes, failed: bool) -> None:
        self._lines[position] = _Line(self._end, len(line))
        self._end += len(line)
        self._failed += failed


def _without_position(line: bytes) -> bytes:
    """Return the line as it is in the result."""
    bare, found, place = line.rpartition(_ROW)
    return bare + b"}\n" if found and place.removesuffix(b"}\n").isdigit() else line


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the object in a line; an empty one for what is none of ours, None for what was not written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and tuple(value) in (OUTPUT_KEYS, (*OUTPUT_KEYS, ROW)) else {}


def _key(id: RowId, prompt: str | None) -> bytes:
    return hashlib.sha256(to_json([id, prompt]).encode()).digest()
