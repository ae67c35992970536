"""The partial file: output lines of finished rows in the order in which they finished, each with its row's position."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NamedTuple

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import SHOWN_ERRORS, RowCounts
from cerebrum_cli.core.files import write_all
from cerebrum_cli.runs.output_files import lock_partial
from cerebrum_cli.runs.result import FinishedRows, ResultRows, to_json_line

SYNC_INTERVAL_S = 1.0
ROW = "row"  # the key of a row's position, in this file only
_ROW = b', "row": '


class PartialFile:
    """An open and locked partial file. Raises BatchError if another process has it open.

    `finished` are the rows in the file; none before `load`. Memory holds 9 bytes for each row of the result: the offset
    of its line, and how it counts.
    """

    def __init__(self, path: Path, rows: ResultRows) -> None:
        self._path = path
        self._rows = rows
        self._file = lock_partial(path)
        self._descriptor = self._file.fileno()
        self._sync = PeriodicSync(self._descriptor)
        self._offsets = array("Q", bytes(8)) * len(rows)
        self._end = 0
        self._may_have_more = False  # than the known lines: a write may have failed half way
        self.finished = FinishedRows(len(rows))

    @property
    def is_empty(self) -> bool:
        return os.fstat(self._descriptor).st_size == 0

    def clear(self) -> None:
        """Truncate the file to the known lines, to nothing before `load`, and sync it."""
        os.ftruncate(self._descriptor, self._end)
        os.fsync(self._descriptor)

    def load(self) -> bool:
        """Find the row of each line, and remove an incomplete last line. False if all answers are for other rows.

        A line belongs to the row at its position, or else to the first one like it that has no answer; without such a
        row it is ignored. So are zero bytes: after a power cut, blocks that were not synced are zeros. Raises
        BatchError for a line that is not one of a row.
        """
        offset, moved = 0, MovedLines(array("Q"), array("Q"))
        with self._reader() as file:
            for number, line in enumerate(file, 1):
                object = self._parse_line(line)
                if object:
                    counts = self._rows.schema.count(object)
                    if not self._is_at_its_row(object) or not self._mark(object[ROW], offset, counts):
                        (moved.failed if counts.failed or counts.undecided else moved.answered).append(offset)
                    self._end = offset + len(line)
                elif object is not None or (b"\0" not in line and file.read(1)):
                    message = f"{self._path} is damaged: line {number} is not a row"
                    raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to start over")
                offset += len(line)
            self._find_rows(file, moved)
        self._recount()
        self.clear()
        return not moved.answered or len(self.finished) > 0

    def copy(self, result: Path) -> None:
        """Write the lines of a complete result, each with its position there, and sync them."""
        self.clear()
        with result.open("rb") as lines:
            for position, line in enumerate(lines):
                write_all(self._descriptor, _with_position(line, position))
        os.fsync(self._descriptor)

    def append(self, position: int, line: bytes, counts: RowCounts) -> None:
        """Append the line of a row; on failure, remove it again. Raises OSError, also if an earlier sync failed."""
        self._sync.raise_error()
        line, end = _with_position(line, position), self._end
        try:
            if self._may_have_more:
                os.ftruncate(self._descriptor, end)
            self._may_have_more = True
            os.lseek(self._descriptor, end, os.SEEK_SET)
            write_all(self._descriptor, line)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise
        self._offsets[position] = end
        self._end += len(line)
        self.finished.add(position, counts)
        self._may_have_more = False
        self._sync.is_changed = True

    def lines_in_order(self) -> Iterator[bytes]:
        """Yield the lines as in the result. Raises BatchError if another program has changed the file."""
        with self._reader() as file:
            for position in self.finished:
                yield self._read_line(file, position)

    def remove(self) -> None:
        """Delete the file while it is locked."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync and close the file, which releases the lock."""
        try:
            self._sync.close()
        finally:
            self._file.close()

    def _reader(self) -> BinaryIO:
        file = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115
        file.seek(0)
        return file

    def _read_line(self, file: BinaryIO, position: int) -> bytes:
        """Line of a row as in the result, with the fields that the present input has for it."""
        file.seek(self._offsets[position])
        object = self._parse_line(file.readline()) or {}
        fields, identify = self._rows.fields(position), self._rows.schema.identify
        if not object or identify(object) != identify(fields):
            name = self._rows.schema.name(fields)
            problem = f"{self._path} was changed while the batch ran: {name} is no longer where it was written"
            raise BatchError(problem, "make sure that nothing else writes this file, then run the same command again")
        return to_json_line({key: fields.get(key, value) for key, value in object.items() if key != ROW}).encode()

    def _is_at_its_row(self, object: dict[str, Any]) -> bool:
        position, identity = object.get(ROW), self._rows.schema.identify(object)
        return (
            isinstance(position, int)
            and position in range(len(self._rows))
            and self._rows.identity(position) == identity
        )

    def _mark(self, position: int, offset: int, counts: RowCounts) -> bool:
        """Give a line to a row; False if the row has an answer."""
        if self.finished.has_answer(position):
            return False
        self._offsets[position] = offset
        self.finished.mark(position, counts)
        return True

    def _find_rows(self, file: BinaryIO, moved: MovedLines) -> None:
        """Find the rows of lines that are not at their positions; those with an answer come first."""
        if not any(moved):
            return
        index = RowIndex(self._rows, self.finished)
        for lines in moved:
            for offset in lines:
                file.seek(offset)
                object = self._parse_line(file.readline()) or {}
                position = index.pop(self._rows.schema.identify(object))
                if position is not None and (lines is moved.answered or position not in self.finished):
                    self._mark(position, offset, self._rows.schema.count(object))

    def _parse_line(self, line: bytes) -> dict[str, Any] | None:
        """The object in a line; empty for other JSON, None for an incomplete or invalid line."""
        if not line.endswith(b"\n"):
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
        keys = tuple(value) if isinstance(value, dict) else ()
        return value if (keys[:-1] if keys[-1:] == (ROW,) else keys) in self._rows.schema.keys else {}

    def _recount(self) -> None:
        """Count the rows in the file, with the messages of the first errors."""
        self.finished.recount()
        with self._reader() as file:
            lines = [self._read_line(file, position) for position in islice(self.finished.failed, SHOWN_ERRORS)]
        errors = tuple(error for line in lines for error in self._rows.schema.count(json.loads(line)).errors)
        self.finished.counts = replace(self.finished.counts, errors=errors)


def _with_position(line: bytes, position: int) -> bytes:
    return line.removesuffix(b"}\n") + _ROW + b"%d}\n" % position


class MovedLines(NamedTuple):
    """Offsets of lines that are not at the positions of their rows: with an answer, and without."""

    answered: array[int]
    failed: array[int]


class RowIndex:
    """Finds rows without an answer by what identifies them, equal ones in order.

    A hash table with chains, of 8 bytes for each row.
    """

    def __init__(self, rows: ResultRows, finished: FinishedRows) -> None:
        self._rows = rows
        self._heads = array("I", bytes(4)) * len(rows)  # the first row of each chain, from 1; 0 ends it
        self._next = array("I", bytes(4)) * len(rows)
        for position in reversed(range(len(rows))):
            if not finished.has_answer(position):
                chain = self._chain(rows.identity(position))
                self._next[position], self._heads[chain] = self._heads[chain], position + 1

    def pop(self, identity: tuple[Any, ...]) -> int | None:
        """Remove and return the first row with an identity."""
        chain, before = self._chain(identity), 0
        row = self._heads[chain]
        while row and self._rows.identity(row - 1) != identity:
            before, row = row, self._next[row - 1]
        if not row:
            return None
        following = self._next[row - 1]
        if before:
            self._next[before - 1] = following
        else:
            self._heads[chain] = following
        return row - 1

    def _chain(self, identity: tuple[Any, ...]) -> int:
        return hash(identity) % len(self._heads)


class PeriodicSync:
    """Syncs a file on a thread of its own, once a second while it `is_changed`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.is_changed = False
        self._error: OSError | None = None
        self._stop: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def raise_error(self) -> None:
        """Raise the OSError of a sync that failed, once."""
        error, self._error = self._error, None
        if error:
            raise error

    def close(self) -> None:
        """End the thread, and sync what has changed. Raises OSError."""
        self._stop.put(None)
        self._thread.join()
        self._sync()
        self.raise_error()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(Empty):
                return self._stop.get(timeout=SYNC_INTERVAL_S)
            self._sync()

    def _sync(self) -> None:
        if not self.is_changed:
            return
        self.is_changed = False  # before the call: it may miss what is written meanwhile
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.is_changed, self._error = True, error
