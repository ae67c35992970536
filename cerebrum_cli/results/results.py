"""Results of many rows: what every kind of them does, the notes on their origin, and those that are streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import ClassVar

from cerebrum_cli.core.events import Events, NoticeEvent, ServersEvent
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_events import SHOWN_ERRORS, EvalProgress, RowCounts, RowEvent
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.results.schema import FinishedRows, ResultRows, to_json_line

Records = Sequence[JsonObject]
# Keys of the notes: servers, and hardware and options of this machine, under which rows were made, each once.
SERVERS, CONDITIONS = "servers", "conditions"


class Results:
    """Receives the objects of rows in any order, for subclasses to save; positions count the rows of the input from 0.

    `unfinished` are the tokens of replies that were interrupted, by position.
    """

    in_order: ClassVar[bool] = False
    """Whether a reader waits for the rows in the order of the input."""

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

    def write(self, position: int, object: JsonObject) -> None:
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

    def note(self, key: str, records: Records) -> None:
        """Add records to a list of the notes, those that are not in it."""

    def complete(self) -> None:
        """Complete the result once all rows are written. Raises ValueError while rows are missing."""
        if self.missing_count:
            raise ValueError(f"{self.missing_count} rows are not finished")

    def how_to_resume(self, unit: str, again: str) -> str:  # noqa: ARG002
        """The hint after an interrupt, with the number of finished rows; empty if the result cannot be resumed."""
        return ""

    def what_is_saved(self, unit: str) -> str:  # noqa: ARG002
        """The number of finished rows and the file that has them; empty if nothing is saved."""
        return ""

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


def noting_origins(events: Events, results: Results, model: LoadedModel) -> Events:
    """Yield events, and note what generates the rows once there are some, since the process may be killed.

    These are the servers, also as they change, or the hardware and the options of this machine.
    """
    is_noted = False
    with closing(events):
        for event in events:
            is_first_row = not is_noted and isinstance(event, (RowEvent, EvalProgress))
            if is_first_row or isinstance(event, ServersEvent):
                if model.is_remote:
                    is_noted = True
                    results.note(SERVERS, model.engine.builds)
                elif conditions := model.conditions:
                    is_noted = True
                    yield from note_conditions(results, conditions)
            yield event


def note_conditions(results: Results, conditions: JsonObject) -> Iterator[NoticeEvent]:
    """Note the hardware and options; yield a notice if other rows were made on other hardware."""
    hardware = conditions["hardware"]
    others = {str(record["hardware"]) for record in results.notes.get(CONDITIONS, ())}
    others.discard(hardware)
    results.note(CONDITIONS, (conditions,))
    if others:
        problem = f"other rows were made on {' and '.join(sorted(others))}, not {hardware}"
        yield NoticeEvent(problem, "near ties may be decided differently")
