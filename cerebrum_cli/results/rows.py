"""The rows of a result: their keys, what receives their objects, and the objects of votes and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.row_events import SHOWN_ERRORS, RowCounts, RowEvent
from cerebrum_cli.core.text import Texts
from cerebrum_cli.results.output_tables import ResultTable

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

# Keys of the notes: servers, and hardware and options of this machine, under which rows were made, each once.
SERVERS, CONDITIONS = "servers", "conditions"
Records = Sequence[JsonObject]


DIGITS = 20  # of a digest
DIGEST = slice(-DIGITS - 3, -3)  # of a line, which ends with `"}` and a line feed
FLAGS = slice(DIGEST.start - 3, DIGEST.start)
_KEY = b'"key": "'
_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them

Digest = bytes  # hexadecimal


class RowFlag:
    """Bits of a row's flags; an unfinished row has none."""

    FINISHED, FAILED, TRUNCATED, UNDECIDED, EMPTY = 1, 2, 4, 8, 16


ONLY_FINISHED = b".%d." % RowFlag.FINISHED  # the FLAGS of a line


class Key(NamedTuple):
    """The row's number in the input, negative for one with an id of its own; its flags; the digest of its bytes."""

    number: int
    flags: int
    digest: Digest

    def __str__(self) -> str:
        return f"{self.number}.{self.flags}.{self.digest.decode()}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Raises ValueError for another text."""
        number, flags, digest = text.split(".")
        if len(digest) != DIGITS:
            raise ValueError(text)
        return cls(int(number), int(flags), digest.encode())


def digest_of(data: bytes) -> Digest:
    return sha256(data).hexdigest()[:DIGITS].encode()


def to_json_line(object: JsonObject) -> str:
    """Encode an object as one line without its end, also for readers that split at Unicode line breaks."""
    text = to_json(object)
    return text if text.isascii() else text.translate(_LINE_BREAKS)


def keyed_line(object: JsonObject, key: Key) -> bytes:
    """The line of a row, whose object has other values."""
    return f'{to_json_line(object)[:-1]}, "key": "{key}"}}\n'.encode()


def key_of_line(line: bytes) -> Key:
    """The key of a line, without decoding the rest. Raises ValueError for another line."""
    return Key.parse(line[line.rindex(_KEY) + len(_KEY) : DIGEST.stop].decode())


@frozen
class RowKind:
    """What is known of the rows of a result: the `flags` of an object, and its `name` in messages.

    The result is a `table`, or JSON Lines.
    """

    flags: Callable[[JsonObject], int]
    name: Callable[[JsonObject], str]
    table: ResultTable | None = None


class FinishedRows(Collection[int]):
    """The positions of finished rows. `flags` has a byte for each row of the result, by its position: 0 if unfinished.

    `errors` are the first messages.
    """

    def __init__(self) -> None:
        self.flags = bytearray()
        self._tally: Counter[int] = Counter()
        self.errors: Texts = ()

    @property
    def total(self) -> int:
        return len(self.flags)

    def add_rows(self, flags: bytes) -> None:
        """Add the rows at the next positions."""
        self.flags += flags
        self._tally.update(flags)

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and 0 <= position < self.total and self.flags[position] > 0

    def __iter__(self) -> Iterator[int]:
        return (position for position, flags in enumerate(self.flags) if flags)

    def __len__(self) -> int:
        return self.total - self._tally[0]

    def __setitem__(self, position: int, flags: int) -> None:
        self._tally[self.flags[position]] -= 1
        self._tally[flags] += 1
        self.flags[position] = flags

    @property
    def counts(self) -> RowCounts:
        flags = RowFlag.FAILED, RowFlag.TRUNCATED, RowFlag.UNDECIDED, RowFlag.EMPTY
        failed, truncated, undecided, empty = map(self._count, flags)
        return RowCounts(failed, truncated, undecided, empty, self.errors)

    def _count(self, flag: int) -> int:
        return sum(rows for flags, rows in self._tally.items() if flags & flag)


class Results:
    """Receives the objects of rows in any order, for subclasses to save; positions count the rows of the input from 0.

    `has_more` is True while the input may have more rows than those that were added.
    """

    in_order: ClassVar[bool] = False
    """Whether a reader waits for the rows in the order of the input."""
    is_complete = False
    """Whether the result file has all rows."""
    saved_in: Path | None = None
    """The file from which the next run resumes, if it can."""

    def __init__(self, kind: RowKind) -> None:
        self.kind = kind
        self.finished = FinishedRows()
        self.has_more = False
        self.notes: JsonObject = {}

    def add_rows(self, rows: Iterable[tuple[Digest, int]]) -> None:
        """Add the next rows of the input, each by the digest of what it asks and its number there."""
        self.finished.add_rows(bytes(len([*rows])))

    @property
    def size(self) -> int:
        """The number of rows that were added."""
        return self.finished.total

    @property
    def counts(self) -> RowCounts:
        return self.finished.counts

    @property
    def progress(self) -> RowEvent:
        return RowEvent(len(self.finished), self.size, self.counts)

    @property
    def missing(self) -> Iterator[int]:
        """The positions of unfinished rows."""
        return (position for position in range(self.size) if position not in self.finished)

    @property
    def missing_count(self) -> int:
        return self.size - len(self.finished)

    @property
    def servers(self) -> Records:
        """Kind, build and model of the servers, or nodes, that answered rows; their addresses are not recorded."""
        records: Records = self.notes.get(SERVERS, ())
        return records

    def write_row(self, position: int, object: JsonObject, has_own_id: bool = False) -> None:
        """Write the object of a row, once. Its id is the row's number, which may change, unless it `has_own_id`."""
        flags = self.kind.flags(object)
        self._save(position, object, flags, has_own_id)
        self.finished[position] = flags
        if flags & RowFlag.FAILED and len(self.finished.errors) < SHOWN_ERRORS:
            self.finished.errors += (f"{self.kind.name(object)}: {object['error']['message']}",)

    def note(self, key: str, records: Records) -> None:
        """Add records to a list of the notes, which are saved beside the rows, those that are not in it."""
        known = self.notes.get(key, ())
        new = [record for record in records if record not in known]
        if new:
            self.notes = {**self.notes, key: [*known, *new]}
            self.save_notes()

    def note_servers(self, records: Records) -> None:
        self.note(SERVERS, records)

    def note_origin(self, model: Model) -> bool:
        """Note what generates rows: servers, or the hardware and options of this machine. False if it is unknown."""
        engine = model.engine
        records = engine.builds if model.is_remote else [engine.conditions] if engine.conditions else []
        self.note(SERVERS if model.is_remote else CONDITIONS, records)
        return bool(records)

    def sync(self) -> None:
        """Make what was saved durable, unless that has just been done."""

    def complete(self) -> None:
        """Complete the result once all rows are written. Raises ValueError while rows are missing."""
        if self.missing_count or self.has_more:
            raise ValueError(f"{self.missing_count} rows are not finished")

    def what_is_saved(self, unit: str) -> str:
        """The number of finished rows and the file that has them; empty if nothing is saved."""
        if self.saved_in is None or not self.finished:
            return ""
        return f"{len(self.finished)} of {self.size} {unit} done, saved in {self.saved_in}"

    def close(self) -> None:
        """Free what the result holds."""

    def _save(self, position: int, object: JsonObject, flags: int, has_own_id: bool) -> None:
        """Save the object of a row; subclasses do."""

    def save_notes(self) -> None:
        """Save the notes; subclasses do."""


class StreamedResults(Results):
    """Writes each row as a line as soon as all rows before it are written; nothing is saved on disk."""

    in_order = True

    def __init__(self, kind: RowKind, write: Callable[[str], None]) -> None:
        super().__init__(kind)
        self._write_line = write
        self._waiting: dict[int, str] = {}
        self._next = 0

    def close(self) -> None:
        """Write the lines that wait for unfinished rows, in order but with gaps."""
        for position in sorted(self._waiting):
            self._emit(position)

    def _save(self, position: int, object: JsonObject, flags: int, has_own_id: bool) -> None:  # noqa: ARG002
        self._waiting[position] = to_json_line(object)
        while self._next in self._waiting:
            self._next += 1
            self._emit(self._next - 1)

    def _emit(self, position: int) -> None:
        try:
            self._write_line(f"{self._waiting.pop(position)}\n")
        except Exception:
            self._waiting.clear()  # the reader is gone: `close` must not write
            raise
