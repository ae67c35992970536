"""The rows of a result: what is known of each, what receives their objects, and the objects of votes and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import Events, NoticeEvent, ServersEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.row_events import SHOWN_ERRORS, RowCounts, RowEvent, RowProgress
from cerebrum_cli.core.text import text_digest
from cerebrum_cli.core.token_ids import TokenIds

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

# Keys of the notes: servers, and hardware and options of this machine, under which rows were made, each once.
SERVERS, CONDITIONS = "servers", "conditions"
_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them
Records = Sequence[JsonObject]
Table = Callable[[Iterable[JsonObject]], Iterator[bytes]]
"""Encodes the objects of rows as the lines of a table."""


class RowFlag:
    """Bits of a row's flags; an unfinished row has none."""

    FINISHED, FAILED, TRUNCATED, UNDECIDED, EMPTY = 1, 2, 4, 8, 16


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
        flags = RowFlag.FAILED, RowFlag.TRUNCATED, RowFlag.UNDECIDED, RowFlag.EMPTY
        failed, truncated, undecided, empty = map(self._count, flags)
        return RowCounts(failed, truncated, undecided, empty, self.errors)

    def forget(self, flags: int) -> None:
        """Forget the rows with any of these flags, which are to be answered again."""
        for position in self:
            if self._flags[position] & flags:
                self[position] = 0

    def _count(self, flag: int) -> int:
        return sum(rows for flags, rows in self._tally.items() if flags & flag)


def is_answer(flags: int) -> bool:
    """Whether a row is finished, with neither an error nor an undecided vote."""
    return flags & (RowFlag.FINISHED | RowFlag.FAILED | RowFlag.UNDECIDED) == RowFlag.FINISHED


class Results:
    """Receives the objects of rows in any order, for subclasses to save; positions count the rows of the input from 0.

    `unfinished` are the tokens of replies that were interrupted, by position.
    """

    in_order: ClassVar[bool] = False
    """Whether a reader waits for the rows in the order of the input."""
    is_complete = False
    """Whether the result file has all rows."""
    saved_in: Path | None = None
    """The file from which the next run resumes, if it can."""

    def __init__(self, rows: ResultRows, finished: FinishedRows) -> None:
        self.rows = rows
        self.finished = finished
        self.unfinished: dict[int, TokenIds] = {}
        self.notes: JsonObject = {}

    @property
    def counts(self) -> RowCounts:
        return self.finished.counts

    @property
    def progress(self) -> RowEvent:
        return RowEvent(len(self.finished), self.finished.total, self.counts)

    @property
    def missing(self) -> Iterator[int]:
        """The positions of unfinished rows."""
        return (position for position in range(self.rows.size) if position not in self.finished)

    @property
    def missing_count(self) -> int:
        return self.rows.size - len(self.finished)

    @property
    def servers(self) -> Records:
        """Kind, build and model of the servers, or nodes, that answered rows; their addresses are not recorded."""
        records: Records = self.notes.get(SERVERS, ())
        return records

    def write_row(self, position: int, object: JsonObject) -> None:
        """Write the object of a row, once."""
        flags = self.rows.flags(object)
        self._save(position, to_json_line(object), flags)
        self.finished[position] = flags
        error = object.get("error")
        if error and len(self.finished.errors) < SHOWN_ERRORS:
            self.finished.errors += (f"{self.rows.name(object)}: {error['message']}",)
        self.unfinished.pop(position, None)

    def objects(self) -> Iterator[JsonDict]:
        """Yield the objects of the finished rows that were saved, in the order of the rows."""
        return iter(())

    def write_notes(self, notes: JsonObject) -> None:
        """Replace the notes, which are saved beside the rows."""
        self.notes = notes

    def note(self, key: str, records: Records) -> None:
        """Add records to a list of the notes, those that are not in it."""
        known = self.notes.get(key, ())
        new = [record for record in records if record not in known]
        if new:
            with suppress(BatchError):  # of a full disk: what went wrong before it matters more
                self.write_notes({**self.notes, key: [*known, *new]})

    def note_servers(self, records: Records) -> None:
        self.note(SERVERS, records)

    def noting_origins(self, events: Events, model: Model) -> Events:
        """Yield events, and note what generates the rows once there are some, since the process may be killed.

        These are the servers, also as they change, or the hardware and the options of this machine.
        """
        is_noted = False
        with closing(events):
            for event in events:
                is_first_row = not is_noted and isinstance(event, RowProgress)
                if is_first_row or isinstance(event, ServersEvent):
                    if model.is_remote:
                        is_noted = True
                        self.note_servers(model.engine.builds)
                    elif conditions := model.conditions:
                        is_noted = True
                        yield from self._note_conditions(conditions)
                yield event

    def _note_conditions(self, conditions: JsonObject) -> Iterator[NoticeEvent]:
        """Note the hardware and options; yield a notice if other rows were made on other hardware."""
        hardware = conditions["hardware"]
        others = {str(record["hardware"]) for record in self.notes.get(CONDITIONS, ())} - {hardware}
        self.note(CONDITIONS, (conditions,))
        if others:
            problem = f"other rows were made on {' and '.join(sorted(others))}, not {hardware}"
            yield NoticeEvent(problem, "near ties may be decided differently")

    def complete(self) -> None:
        """Complete the result once all rows are written. Raises ValueError while rows are missing."""
        if self.missing_count:
            raise ValueError(f"{self.missing_count} rows are not finished")

    def what_is_saved(self, unit: str) -> str:
        """The number of finished rows and the file that has them; empty if nothing is saved."""
        if self.saved_in is None or not (self.finished or self.unfinished):
            return ""
        return f"{len(self.finished)} of {self.rows.size} {unit} done, saved in {self.saved_in}"

    def close(self) -> None:
        """Free what the result holds."""

    def _save(self, position: int, text: str, flags: int) -> None:
        """Save the JSON of a row; subclasses do."""


class StreamedResults(Results):
    """Writes each row as a line as soon as all rows before it are written; nothing is saved on disk."""

    in_order = True

    def __init__(self, rows: ResultRows, write: Callable[[str], None]) -> None:
        super().__init__(rows, FinishedRows(bytearray(rows.size)))
        self._write_line = write
        self._waiting: dict[int, str] = {}
        self._next = 0

    def close(self) -> None:
        """Write the lines that wait for unfinished rows, in order but with gaps."""
        for position in sorted(self._waiting):
            self._emit(position)

    def _save(self, position: int, text: str, flags: int) -> None:  # noqa: ARG002
        self._waiting[position] = text
        while self._next in self._waiting:
            self._next += 1
            self._emit(self._next - 1)

    def _emit(self, position: int) -> None:
        try:
            self._write_line(f"{self._waiting.pop(position)}\n")
        except Exception:
            self._waiting.clear()  # the reader is gone: `close` must not write
            raise


def to_json_line(object: JsonObject) -> str:
    """Encode an object as one line without its end, also for readers that split at Unicode line breaks."""
    text = to_json(object)
    return text if text.isascii() else text.translate(_LINE_BREAKS)
