"""The partial file: output lines of finished rows in the order in which they finished, each with its row's position.

A line is the one that the result will have, but for the position and the flags at its end: the result is made of copied
bytes, and a resume reads only the ends of lines. Once the input has changed, all lines are written again for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from array import array
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import commit_file, unfinished_file, write_all
from cerebrum_cli.results.output_files import REPLACE, OutputPaths, lock_partial
from cerebrum_cli.results.result import FinishedRows, ResultRows, flags_of, is_answer, to_json_line

SYNC_INTERVAL_S = 1.0
ROW, FLAGS = "row", "flags"  # keys in this file only: the position of a row, and how it counts
NO_ROW = -1  # the position of a line whose row is no longer in the input
_LINE_END = re.compile(rb', "row": (-?\d+), "flags": (\d+)\}\n\Z')
_MAX_END = 64  # bytes
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


class PartialFile:
    """An open and locked partial file. Raises BatchError if another process has it open.

    `finished` are the rows in the file; none before `load` or `rebuild`. Memory holds 9 bytes for each row of the
    result: the offset of its line, and how it counts.
    """

    def __init__(self, paths: OutputPaths, rows: ResultRows) -> None:
        self.path = paths.partial
        self._rows = rows
        self._file = lock_partial(paths.partial)
        self._offsets = array("Q", bytes(8)) * len(rows)
        self._end = 0
        # Than the known lines: a write may have failed half way. A longer file may also be that of a second writer.
        self._may_have_more = False
        self._is_changed = False
        self._sync_error: OSError | None = None
        self._is_closing = threading.Event()
        self._sync_thread = threading.Thread(target=self._sync_periodically, name="sync", daemon=True)
        self._sync_thread.start()
        self.finished = FinishedRows(len(rows))

    @property
    def is_empty(self) -> bool:
        return self.path.stat().st_size == 0

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def load(self) -> None:
        """Find the finished rows, and remove an incomplete last line. Raises BatchError for a foreign line."""
        first_key = f'{{"{self._rows.schema.keys[0]}": '.encode()
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for number, offset, text in _complete_lines(file):
                match = _LINE_END.search(text, max(0, len(text) - _MAX_END))
                if not match or not text.startswith(first_key):
                    raise self._damaged(number)
                position, flags = map(int, match.groups())
                if 0 <= position < len(self._rows):
                    self._place(position, offset, flags)
                self._end = offset + len(text)
        self.truncate()

    def truncate(self) -> None:
        """Remove what is behind the known lines, or all if none was loaded, and sync the file."""
        os.ftruncate(self._file.fileno(), self._end)
        os.fsync(self._file.fileno())

    def rebuild(self, source: Path) -> None:
        """Write the lines of a partial file or a result for another input again, with the fields of the present one.

        A line is for the row at its position if that is still the same, or else for the first one like it that has no
        answer. Without such a row it stays, but has no position. Raises BatchError if all answers are for other rows.
        """
        import sqlite3

        schema, is_result = self._rows.schema, source != self.path
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
                rows = ((schema.identify(self._rows.fields(row)), row) for row in range(len(self._rows)))
                database.executemany("INSERT INTO row VALUES (?, ?)", rows)
                if self._write_again(file, database.execute(_MATCHES)):
                    raise BatchError(f"none of the answers in {source} is for this input", REPLACE)
                os.fsync(self._file.fileno())
                commit_file(part, self.path)
        except sqlite3.Error as error:
            raise BatchError(f"the changed input cannot be indexed: {error}", "set TMPDIR to a larger disk") from error

    def append(self, position: int, line: bytes, flags: int) -> None:
        """Append the line of a row; on failure, remove it again. Raises OSError, also if an earlier sync failed."""
        self._raise_sync_error()
        offset = self._end
        self._write(line.removesuffix(b"}\n") + _end_of(position, flags))
        if position != NO_ROW:
            self._place(position, offset, flags)
        self._is_changed = True

    def lines(self, positions: Iterable[int]) -> Iterator[bytes]:
        """Yield the lines of finished rows as in the result. Raises BatchError if another program changed the file."""
        start = f'{{"{self._rows.schema.keys[0]}": '.encode()
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for position in positions:
                file.seek(self._offsets[position])
                text = file.readline()
                end = _end_of(position, self.finished[position])
                if not (text.startswith(start) and text.endswith(end)):
                    problem = f"{self._rows.name(position)} is no longer where it was written"
                    raise BatchError(
                        f"{self.path} was changed while the batch ran: {problem}",
                        "make sure that nothing else writes this file, then run the same command again",
                    )
                yield text.removesuffix(end) + b"}\n"

    def close(self) -> None:
        with self._file:
            self._is_closing.set()
            self._sync_thread.join()
            self._sync()
            self._raise_sync_error()

    def _damaged(self, number: int) -> BatchError:
        return BatchError(
            f"{self.path} is damaged: line {number} is not a row",
            "move it elsewhere, choose another -o, or use --restart to start over",
        )

    def _keys_of_lines(self, file: BinaryIO) -> Iterator[tuple[str, bool, int, int]]:
        schema = self._rows.schema
        for number, offset, text in _complete_lines(file):
            try:
                object = json.loads(text)
            except (ValueError, RecursionError):
                object = None
            if not isinstance(object, dict) or not object.keys() >= {*schema.keys}:
                raise self._damaged(number)
            yield (
                schema.identify(object),
                is_answer(flags_of(schema.count(object))),
                object.get(ROW, number - 1),
                offset,
            )

    def _write_again(self, file: BinaryIO, matches: Iterable[tuple[int | None, int, bool]]) -> bool:
        """Write lines again, each with the position of its row; return whether all answers are for other rows."""
        is_lost = False
        for position, offset, has_answer in matches:
            file.seek(offset)
            object = {key: value for key, value in json.loads(file.readline()).items() if key not in (ROW, FLAGS)}
            if position is None:
                is_lost = is_lost or has_answer
                position = NO_ROW
            else:
                fields = self._rows.fields(position)
                object = {key: fields.get(key, value) for key, value in object.items()}
            self.append(position, to_json_line(object).encode(), flags_of(self._rows.schema.count(object)))
        return is_lost and not self.finished

    def _write(self, text: bytes) -> None:
        descriptor = self._file.fileno()
        try:
            if self._may_have_more:
                os.ftruncate(descriptor, self._end)
            self._may_have_more = True
            os.lseek(descriptor, self._end, os.SEEK_SET)
            write_all(descriptor, text)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._end)
            raise
        self._end += len(text)
        self._may_have_more = False

    def _place(self, position: int, offset: int, flags: int) -> None:
        self._offsets[position] = offset
        self.finished[position] = flags

    def _sync_periodically(self) -> None:
        while not self._is_closing.wait(SYNC_INTERVAL_S):
            self._sync()

    def _sync(self) -> None:
        if not self._is_changed:
            return
        self._is_changed = False  # before the call: it may miss what is written meanwhile
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._is_changed = True
            self._sync_error = error

    def _raise_sync_error(self) -> None:
        error, self._sync_error = self._sync_error, None
        if error:
            raise error


def _complete_lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, offset and text of each line, without an incomplete last one.

    Lines with zero bytes are ignored: after a power cut, blocks that were not synced are zeros.
    """
    offset = file.seek(0)
    for number, text in enumerate(file, 1):
        if text.endswith(b"\n") and b"\0" not in text:
            yield number, offset, text
        offset += len(text)


def _end_of(position: int, flags: int) -> bytes:
    return f', "{ROW}": {position}, "{FLAGS}": {flags}}}\n'.encode()
