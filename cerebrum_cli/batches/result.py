"""Where the answers of a batch go, a line of JSON each: to a journal and a file, or straight out in input order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from cerebrum_cli.batches.rows import OUTPUT_KEYS, Row
from cerebrum_cli.core.text import well_formed

_LINE_BREAKS = {
    ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"
}  # to some readers of lines, not to JSON


class Result(Protocol):
    """Something that takes the objects of rows, in any order; a position is a row's place in the input, from 0."""

    @property
    def finished(self) -> AbstractSet[int]:
        """The positions that need no evaluation any more."""

    @property
    def done(self) -> int:
        """How many rows are finished."""

    @property
    def failed(self) -> int:
        """How many of them have an error."""

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Take the object of a row; ValueError if it is none of this row's, or the row has one."""

    def complete(self) -> None:
        """All rows are written: make the result what it is to be."""

    def close(self) -> None:
        """Let go of what is held, complete or not; what is finished stays so."""


class StreamedResult:
    """Lines written as soon as those of all rows before have been; nothing is on disk."""

    def __init__(self, rows: Sequence[Row], write: Callable[[str], None]) -> None:
        self._rows = rows
        self._write = write
        self._finished: set[int] = set()
        self._failed = 0
        self._held: dict[int, str] = {}
        self._next = 0

    @property
    def finished(self) -> AbstractSet[int]:
        """The positions whose objects have been taken."""
        return self._finished

    @property
    def done(self) -> int:
        """How many rows are finished."""
        return len(self._finished)

    @property
    def failed(self) -> int:
        """How many of them have an error."""
        return self._failed

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Take the object of a row, and write all lines whose turn it is; ValueError as in `Result`."""
        validate_object(self._rows, self._finished, position, object)
        self._held[position] = to_json_line(object)
        self._finished.add(position)
        self._failed += object["error"] is not None
        while (line := self._held.pop(self._next, None)) is not None:
            self._next += 1
            self._emit(line)

    def complete(self) -> None:
        """Every line has been written."""
        require_all_finished(self._rows, self._finished)

    def close(self) -> None:
        """Write what is held back behind rows that have not come: it is finished, and in order but for the gaps."""
        held, self._held = self._held, {}
        for position in sorted(held):
            self._emit(held[position])

    def _emit(self, line: str) -> None:
        try:
            self._write(line)
        except Exception:
            self._held.clear()  # nobody reads any more: nothing is to be written at the end
            raise


def to_json_line(object: Mapping[str, Any]) -> str:
    """Return an object as one line, whatever its reader takes for a line break; its own ends it."""
    return to_json(object).translate(_LINE_BREAKS) + "\n"


def to_json(value: Any) -> str:
    """Return a value as JSON that can be written as UTF-8."""
    return well_formed(json.dumps(value, ensure_ascii=False))


def validate_object(rows: Sequence[Row], finished: AbstractSet[int], position: int, object: Mapping[str, Any]) -> None:
    """Raise ValueError unless an object is the one that is missing for a row."""
    if position in finished or not 0 <= position < len(rows):
        raise ValueError(f"no object is missing at {position}")
    row = rows[position]
    if tuple(object) != OUTPUT_KEYS or (object["id"], object["prompt"]) != (row.id, row.prompt):
        raise ValueError(f"this is no object of row {row.number}: {list(object)}")


def require_all_finished(rows: Sequence[Row], finished: AbstractSet[int]) -> None:
    """Raise ValueError unless all rows are finished."""
    if len(finished) != len(rows):
        raise ValueError(f"{len(rows) - len(finished)} rows are not finished")
