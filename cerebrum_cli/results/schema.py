"""The rows of a result: their keys, which of them are finished, and their encodings as lines of JSON or of a table."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.core.text import text_digest, well_formed

FINISHED, FAILED, TRUNCATED, UNDECIDED = 1, 2, 4, 8  # flags of a row
DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}  # of the tables that are read; those written have the first
_ANSWER_COLUMNS = ("text", "final_answer", "finish_reason", "error")
_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them


Table = Callable[[Iterable[JsonObject]], Iterator[bytes]]
"""Encodes the objects of rows as the lines of a table."""


def table_lines(delimiter: str, columns: tuple[str, ...] | None, objects: Iterable[JsonObject]) -> Iterator[bytes]:
    """Encode the objects of rows as a table: the columns of an input that is one, or `id` and `prompt`, and the answer.

    The name of an answer's column that the input has ends with _2.
    """
    first = columns or ("id", "prompt")
    yield _table_line(delimiter, (*first, *(_free_name(key, first) for key in _ANSWER_COLUMNS)))
    for object in objects:
        fields = object["input"] if columns else object
        error = object["error"] and f"{object['error']['type']}: {object['error']['message']}"
        yield _table_line(delimiter, [*map(fields.get, first), *map(object.get, _ANSWER_COLUMNS[:-1]), error])


def _free_name(name: str, taken: tuple[str, ...]) -> str:
    while name in taken:
        name += "_2"
    return name


def _table_line(delimiter: str, values: Iterable[Any]) -> bytes:
    line: list[str] = []
    csv.writer(SimpleNamespace(write=line.append), delimiter=delimiter, lineterminator="\n").writerow(values)
    return line[0].encode()


@frozen
class ResultRows:
    """The rows of a result: their number, and the keys that each line takes from the input, which is read for them.

    The values of the keys `identity` identify the row of a line; rows of a batch may be equal. A line has `flags`, and
    a `name` in messages. `sha256` is the digest of an input that may change from one run to the next. The result is a
    `table`, or JSON Lines.
    """

    identity: tuple[str, ...]
    flags: Callable[[JsonObject], int]
    name: Callable[[JsonObject], str]
    size: int
    fields: Callable[[int], JsonObject]
    sha256: str | None = None
    table: Table | None = None

    def identify(self, object: JsonObject) -> str:
        """Digest of what identifies the row that an object is for, or that it is."""
        return text_digest(to_json([object.get(key) for key in self.identity]))


class FinishedRows(Collection[int]):
    """The positions of finished rows, and by position their flags: a byte for each row of the result, 0 if unfinished.

    `errors` are the first messages.
    """

    def __init__(self, flags: bytearray) -> None:
        self._flags = flags
        self.total = len(flags)
        self._tally = Counter(flags)
        self.errors: tuple[str, ...] = ()

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and 0 <= position < self.total and self._flags[position] > 0

    def __iter__(self) -> Iterator[int]:
        return (position for position, flags in enumerate(self._flags) if flags)

    def __len__(self) -> int:
        return self.total - self._tally[0]

    def __setitem__(self, position: int, flags: int) -> None:
        self._tally[self._flags[position]] -= 1
        self._tally[flags] += 1
        self._flags[position] = flags

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self._count(FAILED), self._count(TRUNCATED), self._count(UNDECIDED), self.errors)

    def forget_failed(self) -> None:
        """Forget the rows without an answer, which are to be answered again."""
        for position in self:
            if not is_answer(self._flags[position]):
                self[position] = 0

    def _count(self, flag: int) -> int:
        return sum(rows for flags, rows in self._tally.items() if flags & flag)


def is_answer(flags: int) -> bool:
    """Whether a row is finished, with neither an error nor an undecided vote."""
    return flags & (FINISHED | FAILED | UNDECIDED) == FINISHED


def to_json_line(object: JsonObject) -> str:
    """Encode an object as one line without its end, also for readers that split at Unicode line breaks."""
    text = to_json(object)
    if text.isascii():
        return text
    return text.translate(_LINE_BREAKS)


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode a value as JSON that is valid UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if text.isascii() else well_formed(text)
