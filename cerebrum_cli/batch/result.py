"""Results of a batch, one line of JSON for each row: a journal and a file, or a stream in input order."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from cerebrum_cli.batch.rows import Rows, count_row, result_rows
from cerebrum_cli.batch.schema import FinishedRows
from cerebrum_cli.core.events import RowCounts
from cerebrum_cli.core.text import well_formed

_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them


class Result(Protocol):
    """Receives the objects of rows in any order; positions count the rows of the input from 0."""

    @property
    def finished(self) -> Collection[int]:
        """The positions of the finished rows; to look one up takes constant time."""

    @property
    def done(self) -> int:
        """Number of finished rows."""

    @property
    def counts(self) -> RowCounts:
        """Finished rows that failed, were truncated, or have no winner."""

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Write the object of a row. Raises ValueError for another row's object, and for a finished row."""

    def complete(self) -> None:
        """Complete the result once all rows are written."""

    def close(self) -> None:
        """Release resources, complete or not; finished rows stay finished."""


class StreamedResult:
    """A result that writes each line as soon as all lines before it are written; nothing is saved on disk."""

    def __init__(self, rows: Rows, write: Callable[[str], None]) -> None:
        self._rows = result_rows(rows)
        self._write = write
        self._finished = FinishedRows(len(rows))
        self._waiting: dict[int, str] = {}
        self._next = 0

    @property
    def finished(self) -> Collection[int]:
        return self._finished

    @property
    def done(self) -> int:
        return len(self._finished)

    @property
    def counts(self) -> RowCounts:
        return self._finished.counts

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Add the object of a row, and write all lines that are next. Raises ValueError as `Result` does."""
        self._rows.validate(self._finished, position, object)
        self._waiting[position] = to_json_line(object)
        self._finished.add(position, count_row(object))
        while (line := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            self._emit(line)

    def complete(self) -> None:
        self._rows.require_finished(self._finished)

    def close(self) -> None:
        """Write the lines that wait for unfinished rows, in order but with gaps."""
        waiting, self._waiting = self._waiting, {}
        for position in sorted(waiting):
            self._emit(waiting[position])

    def _emit(self, line: str) -> None:
        try:
            self._write(line)
        except Exception:
            self._waiting.clear()  # the reader is gone: `close` must not write
            raise


def to_json_line(object: Mapping[str, Any]) -> str:
    """Encode an object as one line, also for readers that split at Unicode line breaks."""
    return to_json(object).translate(_LINE_BREAKS) + "\n"


def to_json(value: Any) -> str:
    """Encode a value as JSON that is valid UTF-8."""
    return well_formed(json.dumps(value, ensure_ascii=False))
