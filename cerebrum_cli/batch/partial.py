"""The partial file: output lines of finished rows in the order in which they finished, each with its row's position."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from cerebrum_cli.batch.output_files import lock_partial
from cerebrum_cli.batch.result import FinishedRows, ResultRows, to_json
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import SHOWN_ERRORS, RowCounts
from cerebrum_cli.core.files import write_all

SYNC_INTERVAL_S = 1.0
ROW = "row"  # the key of a row's position, in this file only
_ROW = b', "row": '


class PartialFile:
    """An open and locked partial file. Raises BatchError if another process has it open.

    `finished` are the rows in the file; none before `load`. Memory holds 9 bytes for each row of the result: the offset
    of its line, and how it counts. If it `may_grow`, rows move when more of them are asked for, and are then found by
    what identifies them: memory holds that of all rows.
    """

    def __init__(self, path: Path, rows: ResultRows, may_grow: bool = False) -> None:
        self._path = path
        self._rows = rows
        self._may_grow = may_grow
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

    def load(self) -> None:
        """Find the row of each line, and remove an incomplete last line.

        A line with zero bytes is skipped: after a power cut, blocks that were not synced are zeros. Raises BatchError
        for a line that belongs to no row, or is the second of a row that has an answer.
        """
        offset = 0
        with self._reader() as file:
            for number, line in enumerate(file, 1):
                object = self._parse_line(line)
                if object is not None:
                    position = self._position(object)
                    if position is None or (position in self.finished and self.finished.has_answer(position)):
                        raise self._damaged(number)
                    self._offsets[position] = offset
                    self.finished.mark(position, self._rows.schema.count(object))
                    self._end = offset + len(line)
                elif b"\0" not in line and file.read(1):
                    raise self._damaged(number)
                offset += len(line)
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
                self.append(row, line, self._rows.schema.count(object))
        os.fsync(self._descriptor)

    def append(self, position: int, line: bytes, counts: RowCounts) -> None:
        """Append the line of a row; on failure, remove it again. Raises OSError, also if an earlier sync failed."""
        self._sync.raise_error()
        line = line.removesuffix(b"}\n") + _ROW + b"%d}\n" % position
        end = self._end
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
        """The line of a row, as in the result."""
        file.seek(self._offsets[position])
        line = file.readline()
        object = self._parse_line(line)
        if not object or (object.get(ROW) != position and self._position(object) != position):
            problem = f"{self._path} was changed while the batch ran: row {position + 1} is not where it was written"
            raise BatchError(problem, "make sure that nothing else writes this file, then run the same command again")
        return line.rpartition(_ROW)[0] + b"}\n" if ROW in object else line

    def _damaged(self, number: int) -> BatchError:
        message = f"{self._path} is damaged: line {number} matches no row of the input"
        return BatchError(message, "move it elsewhere, choose another -o, or use --restart to start over")

    def _position(self, object: dict[str, Any]) -> int | None:
        """The position of the row that an object belongs to; None if the input has no such row."""
        if not object:
            return None
        position, identity = object.get(ROW), self._rows.schema.identify(object)
        if isinstance(position, int) and 0 <= position < len(self._rows) and self._rows.identity(position) == identity:
            return position
        return self._positions_by_key.get(_key(identity)) if self._may_grow else None

    @cached_property
    def _positions_by_key(self) -> dict[bytes, int | None]:
        """The positions of the rows, None for several that are equal."""
        positions: dict[bytes, int | None] = {}
        for position in range(len(self._rows)):
            key = _key(self._rows.identity(position))
            positions[key] = None if key in positions else position
        return positions

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


def _key(identity: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(to_json(identity).encode()).digest()


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
