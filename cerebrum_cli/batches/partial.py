"""The partial file: output lines of finished rows in the order in which they finished. Memory holds offsets only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.batches.files import open_locked, write_all
from cerebrum_cli.batches.result import to_json
from cerebrum_cli.batches.schema import ResultRows
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import RowCounts

ROW = "row"  # the key of a row's position, in this file only
_ROW = b', "row": '


class _Line(NamedTuple):
    offset: int
    length: int
    counts: RowCounts

    @property
    def has_answer(self) -> bool:
        return not (self.counts.failed or self.counts.undecided)


class PartialFile:
    """An open and locked partial file. Raises BatchError if another process has it open.

    Lines are those of the result. Rows with the same identity also have their position in the line.
    """

    def __init__(self, path: Path, rows: ResultRows) -> None:
        self._path = path
        self._schema = rows.schema
        self._positions_by_key: dict[bytes, list[int]] = {}
        for position, identity in enumerate(rows.identities):
            self._positions_by_key.setdefault(_key(identity), []).append(position)
        self._duplicates = {
            at for positions in self._positions_by_key.values() if len(positions) > 1 for at in positions
        }
        self._descriptor = open_locked(path)
        self._lines: dict[int, _Line] = {}
        self._end = 0
        self._counts = RowCounts()

    @property
    def positions(self) -> AbstractSet[int]:
        """The positions of the rows in the file; empty before `load`."""
        return self._lines.keys()

    @property
    def counts(self) -> RowCounts:
        return self._counts

    @property
    def is_empty(self) -> bool:
        return os.fstat(self._descriptor).st_size == 0

    def clear(self) -> None:
        """Truncate the file to the known lines, to nothing before `load`, and sync it."""
        os.ftruncate(self._descriptor, self._end)
        os.fsync(self._descriptor)

    def load(self) -> None:
        """Find the row of each line, and remove an incomplete last line.

        Raises BatchError for a line that belongs to no row, or is the second of a row that has an answer.
        """
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                object = self._parse_line(line)
                if object is None and not file.peek(1):
                    break
                position = None if object is None else self._position(object)
                before = None if position is None else self._lines.get(position)
                if object is None or position is None or (before and before.has_answer):
                    message = f"{self._path} is damaged: line {number} matches no row of the input"
                    raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to start over")
                self._add_line(position, line, self._schema.count(object))
        self._recount()
        self.clear()

    def copy(self, result: Path) -> None:
        """Append the lines of a complete result, and sync them. Raises BatchError if it is not one of these rows."""
        with result.open("rb") as lines:
            for position, line in enumerate(lines):
                object = self._parse_line(line)
                row = self._position({**object, ROW: position}) if object else None
                if object is None or row is None:
                    raise BatchError(f"{result}: line {position + 1} matches no row of the input", "use --restart")
                self.append(row, line, self._schema.count(object), sync=False)
        os.fsync(self._descriptor)

    def forget_failed(self) -> None:
        """Count rows with an error or without a winner as unfinished; the next line of such a row replaces it."""
        self._lines = {position: line for position, line in self._lines.items() if line.has_answer}
        self._recount()

    def append(self, position: int, line: bytes, counts: RowCounts, sync: bool = True) -> None:
        """Append the line of a row and sync it; on failure, remove it again."""
        end, before = self._end, self._counts
        try:
            os.ftruncate(self._descriptor, end)  # an earlier failure may have left part of a line
            os.lseek(self._descriptor, end, os.SEEK_SET)
            if position in self._duplicates:
                line = line.removesuffix(b"}\n") + _ROW + b"%d}\n" % position
            write_all(self._descriptor, line)
            if sync:
                os.fsync(self._descriptor)
            self._add_line(position, line, counts)
            self._counts += counts
        except BaseException:
            self._end, self._counts = end, before
            self._lines.pop(position, None)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise

    def _position(self, object: Mapping[str, Any]) -> int | None:
        """The position of the row that an object belongs to; None if the input has no such row."""
        if not object:
            return None
        positions = self._positions_by_key.get(_key(self._schema.identify(object)), [])
        if len(positions) < 2:
            return next(iter(positions), None)
        position = object.get(ROW)
        if not isinstance(position, int):
            return None
        at = bisect_left(positions, position)
        return position if positions[at : at + 1] == [position] else None

    def lines_in_order(self) -> Iterator[bytes]:
        """Yield the lines in the order of the input. Raises BatchError if another program has changed the file."""
        with open(self._descriptor, "rb", closefd=False) as file:
            for _, (offset, length, _) in sorted(self._lines.items()):
                file.seek(offset)
                line = file.read(length)
                if len(line) != length or not line.endswith(b"\n"):
                    raise BatchError(f"{self._path} was changed while the batch ran", "run the same command again")
                yield _without_position(line)

    def remove(self) -> None:
        """Delete the file while it is locked."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self._descriptor)

    def _parse_line(self, line: bytes) -> dict[str, Any] | None:
        """The object in a line; empty for other JSON, None for an incomplete or invalid line."""
        if not line.endswith(b"\n"):
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
        keys = tuple(value) if isinstance(value, dict) else ()
        return value if (keys[:-1] if keys[-1:] == (ROW,) else keys) in self._schema.keys else {}

    def _add_line(self, position: int, line: bytes, counts: RowCounts) -> None:
        self._lines[position] = _Line(self._end, len(line), counts)
        self._end += len(line)

    def _recount(self) -> None:
        self._counts = reduce(RowCounts.__add__, (line.counts for line in self._lines.values()), RowCounts())


def _without_position(line: bytes) -> bytes:
    """Remove the position from a line, as in the result."""
    start, separator, end = line.rpartition(_ROW)
    return start + b"}\n" if separator and end.removesuffix(b"}\n").isdigit() else line


def _key(identity: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(to_json(identity).encode()).digest()
