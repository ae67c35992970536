"""The partial file: output lines of finished rows in the order in which they finished, each with its row's position.

A line is the one that the result will have, but for the position at its end: the result is made of copied bytes. Where
lines are not, since the input has changed, all are written again when the file is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import commit_file, unfinished_file, write_all
from cerebrum_cli.runs.output_files import REPLACE, OutputPaths, lock_partial
from cerebrum_cli.runs.result import FinishedRows, ResultRows, flags_of, is_answer, to_json_line

SYNC_INTERVAL_S = 1.0
CHECKPOINT_LINES = 1000  # of a block at least: to parse fewer takes no time
ROW = "row"  # the key of a row's position, in this file only
_READ_BYTES = 1 << 20
_TABLES = "CREATE TABLE line (key, is_answer, position, offset); CREATE TABLE row (key, position)"
# The lines in the order of their rows, after those without a row. Of rows and lines with the same key, those that were
# at the same position come first, then lines with an answer.
_MATCHES = """
WITH same AS (SELECT key, position FROM line JOIN row USING (key, position) WHERE is_answer)
SELECT row_at, offset, is_answer FROM (
    SELECT *, row_number() OVER (
        PARTITION BY key ORDER BY (key, position) NOT IN same, NOT is_answer, position, offset
    ) AS place FROM line
) LEFT JOIN (
    SELECT key, position AS row_at, row_number() OVER (
        PARTITION BY key ORDER BY (key, position) NOT IN same, position
    ) AS place FROM row
) USING (key, place)
ORDER BY row_at, offset
"""


class RowLine(NamedTuple):
    """A line of the partial file: the position of its row, where it is, and how it counts."""

    position: int
    offset: int
    size: int
    flags: int


class PartialFile:
    """An open and locked partial file. Raises BatchError if another process has it open.

    `finished` are the rows in the file; none before `load` or `rebuild`. Memory holds 9 bytes for each row of the
    result: the offset of its line, and how it counts.
    """

    def __init__(self, paths: OutputPaths, rows: ResultRows) -> None:
        self.path = paths.partial
        self._rows = rows
        self._file = lock_partial(paths.partial)
        self._checkpoint = RowCheckpoint(paths.checkpoint)
        self._offsets = array("Q", bytes(8)) * len(rows)
        self._end = 0
        self._may_have_more = False  # than the known lines: a write may have failed half way
        self._unsaved: list[RowLine] = []  # in the checkpoint
        self._is_changed = False
        self._sync_error: OSError | None = None
        self._is_closing = threading.Event()
        self._sync_thread = threading.Thread(target=self._sync_periodically, name="sync", daemon=True)
        self._sync_thread.start()
        self.finished = FinishedRows(len(rows))

    @property
    def is_empty(self) -> bool:
        return self.path.stat().st_size == 0

    def clear(self) -> None:
        """Remove all lines, before any is loaded."""
        self._checkpoint.clear()
        self._truncate()

    def load(self) -> None:
        """Find the finished rows, in the checkpoint and the lines behind it, and remove an incomplete last line."""
        for line in self._checkpoint.read(self._file.fileno()):
            self._place(line)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            file.seek(self._checkpoint.end)
            for offset, size, object in self._read_objects(file):
                if object.get(ROW) in range(len(self._rows)):
                    self._add(RowLine(object[ROW], offset, size, flags_of(self._rows.schema.count(object))))
                self._end = offset + size
        self._truncate()

    def rebuild(self, source: Path) -> None:
        """Write the lines of a partial file or a result for another input again, with the fields of the present one.

        A line is for the row at its position if that is still the same, or else for the first one like it that has no
        answer. Without such a row it stays, but has no position. Raises BatchError if all answers are for other rows.
        """
        import sqlite3

        is_result = source != self.path
        try:
            with (
                contextlib.closing(sqlite3.connect("")) as database,  # on disk: the keys of all rows need much memory
                open(source if is_result else self._file.fileno(), "rb", closefd=is_result) as file,
                unfinished_file(self.path, 0o666, is_required=True) as part,
                self._file,
            ):
                self._file = FileIO(os.dup(part.file.fileno()), "r+")  # has the lock of the new file
                database.executescript(_TABLES)
                database.executemany("INSERT INTO line VALUES (?, ?, ?, ?)", self._keys_of_lines(file))
                database.executemany("INSERT INTO row VALUES (?, ?)", self._keys_of_rows())
                self._checkpoint.clear()
                if self._write_again(file, database.execute(_MATCHES)):
                    raise BatchError(f"none of the answers in {source} is for this input", REPLACE)
                os.fsync(self._file.fileno())
                commit_file(part, self.path)
        except sqlite3.Error as error:
            raise BatchError(f"the changed input cannot be indexed: {error}", "set TMPDIR to a larger disk") from error

    def append(self, position: int, line: bytes, flags: int) -> None:
        """Append the line of a row; on failure, remove it again. Raises OSError, also if an earlier sync failed."""
        self._raise_sync_error()
        text = line.removesuffix(b"}\n") + _end_of(position)
        offset = self._end
        self._write(text)
        self._add(RowLine(position, offset, len(text), flags))

    def lines(self, positions: Iterable[int]) -> Iterator[bytes]:
        """Yield the lines of finished rows as in the result. Raises BatchError if another program changed the file."""
        start = f'{{"{self._rows.schema.keys[0]}": '.encode()
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for position in positions:
                file.seek(self._offsets[position])
                text = file.readline()
                end = _end_of(position)
                if not (text.startswith(start) and text.endswith(end)):
                    problem = f"{self._rows.name(position)} is no longer where it was written"
                    hint = "make sure that nothing else writes this file, then run the same command again"
                    raise BatchError(f"{self.path} was changed while the batch ran: {problem}", hint)
                yield text.removesuffix(end) + b"}\n"

    def remove(self, keeps_lines: bool = False) -> None:
        """Delete the checkpoint, and the file while it is locked."""
        self._stop_syncing()
        self._unsaved.clear()
        self._checkpoint.clear()
        if not keeps_lines:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync and close the file, which releases the lock."""
        with self._file:
            self._stop_syncing()
            self._sync()
            self._raise_sync_error()

    def _read_objects(self, file: BinaryIO) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield the offset, size and object of each line, without an incomplete last one.

        Zero bytes are ignored: after a power cut, blocks that were not synced are zeros. Raises BatchError for another
        line that is not one of a row.
        """
        offset = file.tell()
        for text in file:
            try:
                object = json.loads(text) if text.endswith(b"\n") else None
            except (ValueError, RecursionError):
                object = None
            if isinstance(object, dict) and self._rows.schema.has_keys(key for key in object if key != ROW):
                yield offset, len(text), object
            elif object is not None or (b"\0" not in text and file.read(1)):
                file.seek(0)
                number = next(number for number, _ in enumerate(file, 1) if file.tell() > offset)
                problem = f"{self.path} is damaged: line {number} is not a row"
                raise BatchError(problem, "move it elsewhere, choose another -o, or use --restart to start over")
            offset += len(text)

    def _keys_of_lines(self, file: BinaryIO) -> Iterator[tuple[str, bool, int, int]]:
        schema = self._rows.schema
        for number, (offset, _, object) in enumerate(self._read_objects(file)):
            yield schema.identify(object), is_answer(flags_of(schema.count(object))), object.get(ROW, number), offset

    def _keys_of_rows(self) -> Iterator[tuple[str, int]]:
        for position in range(len(self._rows)):
            yield self._rows.schema.identify(self._rows.fields(position)), position

    def _write_again(self, file: BinaryIO, matches: Iterable[tuple[int | None, int, bool]]) -> bool:
        """Write lines again, each with the position of its row; return whether all answers are for other rows."""
        is_lost = False
        for position, offset, has_answer in matches:
            file.seek(offset)
            object = json.loads(file.readline())
            object.pop(ROW, None)
            if position is None:
                is_lost = is_lost or has_answer
                self._write(to_json_line(object).encode())
            else:
                fields = self._rows.fields(position)
                line = to_json_line({key: fields.get(key, value) for key, value in object.items()})
                self.append(position, line.encode(), flags_of(self._rows.schema.count(object)))
        return is_lost and not self.finished

    def _write(self, text: bytes) -> None:
        end = self._end
        try:
            if self._may_have_more:
                os.ftruncate(self._file.fileno(), end)
            self._may_have_more = True
            os.lseek(self._file.fileno(), end, os.SEEK_SET)
            write_all(self._file.fileno(), text)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise
        self._end += len(text)
        self._may_have_more = False

    def _truncate(self) -> None:
        """Remove what is behind the known lines, and sync the file."""
        os.ftruncate(self._file.fileno(), self._end)
        os.fsync(self._file.fileno())

    def _place(self, line: RowLine) -> None:
        self._offsets[line.position] = line.offset
        self.finished[line.position] = line.flags
        self._end = line.offset + line.size

    def _add(self, line: RowLine) -> None:
        """Add a line that is not in the checkpoint yet."""
        self._place(line)
        self._unsaved.append(line)
        self._is_changed = True

    def _sync_periodically(self) -> None:
        while not self._is_closing.wait(SYNC_INTERVAL_S):
            self._sync()

    def _sync(self) -> None:
        """Sync the file, and then add what was written before to the checkpoint."""
        if not self._is_changed:
            return
        self._is_changed = False  # before the call: it may miss what is written meanwhile
        lines = self._unsaved[:]
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._is_changed = True
            self._sync_error = error
            return
        if len(lines) >= CHECKPOINT_LINES:
            self._checkpoint.write(self._file.fileno(), lines)
            del self._unsaved[: len(lines)]

    def _stop_syncing(self) -> None:
        self._is_closing.set()
        self._sync_thread.join()

    def _raise_sync_error(self) -> None:
        error, self._sync_error = self._sync_error, None
        if error:
            raise error


class RowCheckpoint:
    """Which rows the synced lines of a partial file are for, so that a resume need not parse them.

    Each block has the lines from where the last one ended. Before them are a CRC-32 of the block and of the part of the
    partial file that it describes, and the end of this part. A block counts if it matches the file, and all before it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end = 0

    def read(self, partial: int) -> Iterator[RowLine]:
        """Yield the lines of the blocks that match an open partial file, and remove the other blocks."""
        with contextlib.suppress(OSError), self._path.open("r+b") as file:
            size = 0
            with contextlib.suppress(ValueError):  # of a torn block
                for block in file:
                    checksum, end, text = block.split(b" ", 2)
                    if int(checksum) != self._checksum(partial, int(end), text):
                        break
                    yield from map(RowLine._make, json.loads(text))
                    self.end = int(end)
                    size += len(block)
            file.truncate(size)

    def write(self, partial: int, lines: Sequence[RowLine]) -> None:
        """Append a block if possible; without it, later ones do not match."""
        end = lines[-1].offset + lines[-1].size
        text = json.dumps(lines, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError), FileIO(self._path, "a") as file:
            write_all(file.fileno(), b"%d %d %s" % (self._checksum(partial, end, text), end, text))
        self.end = end

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)
        self.end = 0

    def _checksum(self, partial: int, end: int, text: bytes) -> int:
        checksum = 0
        start = self.end
        while start < end and (data := os.pread(partial, min(end - start, _READ_BYTES), start)):
            checksum = zlib.crc32(data, checksum)
            start += len(data)
        return zlib.crc32(text, checksum)


def _end_of(position: int) -> bytes:
    return b', "%s": %d}\n' % (ROW.encode(), position)
