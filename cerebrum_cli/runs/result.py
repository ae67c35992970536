"""Results, a line for each row: its keys, tables, which rows are finished, and a stream in the order of the input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

from cerebrum_cli.core.events import RowCounts
from cerebrum_cli.core.text import well_formed

_FINISHED, _FAILED, _TRUNCATED, _UNDECIDED = 1, 2, 4, 8
_NO_ANSWER = _FAILED | _UNDECIDED
_FORGOTTEN = bytes(0 if flags & _NO_ANSWER else flags for flags in range(256))  # a table for `translate`
_ANSWER_COLUMNS = ("text", "final_answer", "finish_reason", "error")
_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them


@dataclass(frozen=True, slots=True)
class Schema:
    """The lists of keys a line may have, those whose values identify its row, its totals, and its name in messages."""

    keys: Collection[tuple[str, ...]]
    identity: tuple[str, ...]
    count: Callable[[Mapping[str, Any]], RowCounts]
    name: Callable[[Mapping[str, Any]], str]

    def identify(self, object: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(object.get(key) for key in self.identity)


def with_optional(keys: tuple[str, ...], optional: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """The lists of keys with any of the optional ones behind them, in order."""
    return frozenset((*keys, *more) for count in range(len(optional) + 1) for more in combinations(optional, count))


DELIMITERS = {"csv": ",", "tsv": "\t"}  # of the tables that are read and written


@dataclass(frozen=True, slots=True)
class TableFormat:
    """A result as a table: the columns of an input that is one, or `id` and `prompt`, then those of the answers."""

    delimiter: str
    columns: tuple[str, ...] | None

    def lines(self, objects: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        """Encode the objects of rows, with a header. The name of an answer's column that the input has ends with _2."""
        columns = self.columns or ("id", "prompt")
        yield self._line((*columns, *(f"{key}_2" if key in columns else key for key in _ANSWER_COLUMNS)))
        for object in objects:
            given = object["input"] if self.columns else object
            error = object["error"] and f"{object['error']['type']}: {object['error']['message']}"
            yield self._line([*map(given.get, columns), *map(object.get, _ANSWER_COLUMNS[:-1]), error])

    def _line(self, values: Iterable[Any]) -> bytes:
        line: list[str] = []
        csv.writer(_Lines(line), delimiter=self.delimiter, lineterminator="\n").writerow(values)
        return line[0].encode()


class _Lines:
    """The file that a table is written to: a list of its lines."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


@dataclass(frozen=True, slots=True)
class ResultRows:
    """The rows of a result: their number, and the keys that each line takes from the input, which is read for them.

    Rows of a batch may be equal. `sha256` is the digest of an input that may change from one run to the next. The
    result is a `table`, or JSON Lines.
    """

    schema: Schema
    size: int
    fields: Callable[[int], Mapping[str, Any]]
    sha256: str | None = None
    table: TableFormat | None = None

    def __len__(self) -> int:
        return self.size

    def identity(self, position: int) -> tuple[Any, ...]:
        return self.schema.identify(self.fields(position))

    def name(self, position: int) -> str:
        return self.schema.name(self.fields(position))

    def validate(self, finished: Collection[int], position: int, object: Mapping[str, Any]) -> None:
        """Raise ValueError unless the row at a position is unfinished and the object has the keys of one."""
        if position in finished or not 0 <= position < len(self):
            raise ValueError(f"no unfinished row at position {position}")
        if tuple(object) not in self.schema.keys:
            raise ValueError(f"not an object of a row: {list(object)}")

    def require_finished(self, finished: Collection[int]) -> None:
        if len(finished) != len(self):
            raise ValueError(f"{len(self) - len(finished)} rows are not finished")


class FinishedRows(Collection[int]):
    """The positions of finished rows, with their `counts`: a byte for each row of the result."""

    def __init__(self, rows: int) -> None:
        self._flags = bytearray(rows)
        self._size = 0
        self.counts = RowCounts()

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and 0 <= position < len(self._flags) and self._flags[position] > 0

    def __iter__(self) -> Iterator[int]:
        return (position for position, flags in enumerate(self._flags) if flags)

    def __len__(self) -> int:
        return self._size

    def add(self, position: int, counts: RowCounts) -> None:
        """Add a row, which counts as one of these at most once."""
        self.mark(position, counts)
        self._size += 1
        self.counts += counts

    def mark(self, position: int, counts: RowCounts) -> None:
        """Add or replace a row; the totals are those of the next `recount`."""
        failed, truncated, undecided = counts.failed > 0, counts.truncated > 0, counts.undecided > 0
        self._flags[position] = _FINISHED | failed * _FAILED | truncated * _TRUNCATED | undecided * _UNDECIDED

    def recount(self) -> None:
        """Count all rows; the counts have no messages."""
        self._size = len(self._flags) - self._flags.count(0)
        self.counts = RowCounts(self._count(_FAILED), self._count(_TRUNCATED), self._count(_UNDECIDED))

    def has_answer(self, position: int) -> bool:
        """Whether a row is finished, with neither an error nor an undecided vote."""
        return self._flags[position] & (_FINISHED | _NO_ANSWER) == _FINISHED

    @property
    def failed(self) -> Iterator[int]:
        return (position for position, flags in enumerate(self._flags) if flags & _FAILED)

    def forget_failed(self) -> None:
        self._flags = self._flags.translate(_FORGOTTEN)
        self.recount()

    def _count(self, flag: int) -> int:
        return sum(self._flags.count(flags) for flags in range(2 * _UNDECIDED) if flags & flag)


class Result(Protocol):
    """Receives the objects of rows in any order; positions count the rows of the input from 0."""

    @property
    def finished(self) -> Collection[int]:
        """The positions of the finished rows; to look one up takes constant time."""

    @property
    def counts(self) -> RowCounts:
        """Finished rows that failed, were truncated, or are undecided."""

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Write the object of a row. Raises ValueError for an object with other keys, and for a finished row."""

    def keep_unfinished(self, position: int, tokens: Sequence[int]) -> None:
        """Keep the tokens of a reply that was interrupted, if the result can be resumed."""

    def unfinished_tokens(self, position: int) -> tuple[int, ...]:
        """The tokens that were kept for a row, if any."""

    def complete(self) -> None:
        """Complete the result once all rows are written."""

    def close(self) -> None:
        """Release resources, complete or not; finished rows stay finished."""


class StreamedResult:
    """A result that writes each line as soon as all lines before it are written; nothing is saved on disk."""

    def __init__(self, rows: ResultRows, write: Callable[[str], None]) -> None:
        self._rows = rows
        self._write = write
        self.finished = FinishedRows(len(rows))
        self._waiting: dict[int, str] = {}
        self._next = 0

    @property
    def counts(self) -> RowCounts:
        return self.finished.counts

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Add the object of a row, and write all lines that are next. Raises ValueError as `Result` does."""
        self._rows.validate(self.finished, position, object)
        self._waiting[position] = to_json_line(object)
        self.finished.add(position, self._rows.schema.count(object))
        while (line := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            self._emit(line)

    def keep_unfinished(self, position: int, tokens: Sequence[int]) -> None:
        """Do nothing: nothing is saved on disk."""

    def unfinished_tokens(self, position: int) -> tuple[int, ...]:  # noqa: ARG002
        return ()

    def complete(self) -> None:
        self._rows.require_finished(self.finished)

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
    text = to_json(object)
    return (text if text.isascii() else text.translate(_LINE_BREAKS)) + "\n"


def to_json(value: Any) -> str:
    """Encode a value as JSON that is valid UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else well_formed(text)
