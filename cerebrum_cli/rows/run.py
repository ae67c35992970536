"""A run over the rows of an input: which have no answer yet, where their answers go, and how it ends.

One rule decides what is asked: a row is finished if one that asks the same is in OUTPUT.partial, or without that file
in OUTPUT, made with the same settings. So a run that was killed resumes, a longer input gets its new rows answered, and
a changed row is asked again. Nothing is written before the first row is finished.
"""

from __future__ import annotations

import json
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import commit_file, require_place, unfinished_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.row_events import SHOWN_ERRORS, RowCounts, RowEvent
from cerebrum_cli.core.text import Texts, format_count
from cerebrum_cli.rows.file import FinishedKeys, RowFile, write_lines
from cerebrum_cli.rows.keys import (
    Digest,
    Key,
    RowFlag,
    digest_of,
    key_of_line,
    key_values,
    keyed_line,
    settings_check,
    to_json_line,
)
from cerebrum_cli.rows.output_tables import INPUT, ResultTable
from cerebrum_cli.rows.read import Record as InputRecord, Rows
from cerebrum_cli.rows.record import REPLACE, OutputPaths, Record, output_errors, read_record, write_record
from cerebrum_cli.rows.row import LINE, InputRow, flags_of, name_row

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

# Keys of the notes: servers, and hardware and options of this machine, under which rows were made, each once.
SERVERS, CONDITIONS = "servers", "conditions"
Notes = Sequence[JsonObject]
_TO_RETRY = RowFlag.FAILED | RowFlag.UNDECIDED
_STALE = 128  # with the flags of a row whose object must be written anew, as its number or its text has changed


class FinishedRows(Collection[int]):
    """The positions of finished rows. `flags` has a byte for each row of the run, by its position: 0 if unfinished.

    `errors` are the first messages.
    """

    def __init__(self) -> None:
        self.flags = bytearray()
        self._tally: Counter[int] = Counter()
        self.errors: Texts = ()

    @property
    def total(self) -> int:
        return len(self.flags)

    def add(self, flags: bytes) -> None:
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
        failed, truncated, undecided, empty = map(self.count, flags)
        return RowCounts(failed, truncated, undecided, empty, self.errors)

    def count(self, flag: int) -> int:
        return sum(rows for flags, rows in self._tally.items() if flags & flag)


class Run:
    """The rows of an input, and what is finished of them; subclasses save their objects.

    A row has a position in the input, from 0, and a place, by which it is asked: the position that it had when it was
    first asked. `has_more` is True while the input may have more rows than are known.
    """

    in_order: ClassVar[bool] = False
    """Whether a reader waits for the rows in the order of the input."""
    is_complete = False
    """Whether the result file has all rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.finished = FinishedRows()
        self.has_more = not rows.is_whole
        self.earlier = 0  # rows that earlier runs finished
        self.notes: JsonObject = {}
        self._notices: tuple[NoticeEvent, ...] = ()
        self._has_conditions = False

    @property
    def size(self) -> int:
        """The number of rows that are known."""
        return self.finished.total

    @property
    def counts(self) -> RowCounts:
        return self.finished.counts

    @property
    def progress(self) -> RowEvent:
        return RowEvent(len(self.finished), self.size, self.counts, self.earlier)

    @property
    def missing_count(self) -> int:
        return self.size - len(self.finished)

    @property
    def servers(self) -> Notes:
        """Kind, build and model of the servers, or nodes, that answered rows; their addresses are not recorded."""
        records: Notes = self.notes.get(SERVERS, ())
        return records

    def missing(self) -> Iterator[tuple[int, InputRow]]:
        """Yield the unfinished rows by place; rows that can be read only once become known.

        Raises BatchError if the input has changed.
        """
        for position, (number, data) in enumerate(self.rows.records()):
            if position == self.size:
                self.add([(number, data)], [(number, data)])
            flags = self.finished.flags[position]
            if not flags or flags & _STALE:
                self.rows.require_unchanged()
                row = self.rows.read(number, data)
                if flags:
                    self.renew(position, row)
                else:
                    yield self.place_of(position, row), row
        self.has_more = False

    def add(self, records: Iterable[InputRecord], again: Iterable[InputRecord] = ()) -> None:  # noqa: ARG002
        """Add the next rows of the input; their records may be read `again`."""
        self.finished.add(bytes(sum(1 for _ in records)))

    def place_of(self, position: int, row: InputRow) -> int:  # noqa: ARG002
        """The place of an unfinished row, which is asked next."""
        return position

    def position_of(self, place: int) -> int:
        return place

    def renew(self, position: int, row: InputRow) -> None:
        """Save a finished row as it is in the input now; subclasses do."""

    def write(self, place: int, object: JsonObject) -> None:
        """Write the object of a row."""
        position, flags = self.position_of(place), flags_of(object)
        self._save(position, place, object, flags)
        self.finished[position] = flags
        if flags & RowFlag.FAILED and len(self.finished.errors) < SHOWN_ERRORS:
            name = name_row(self.rows.unit, object)
            self.finished.errors += (f"{name}: {object['error']['message']}",)

    def take_notices(self) -> tuple[NoticeEvent, ...]:
        notices, self._notices = self._notices, ()
        return notices

    def note(self, key: str, records: Notes) -> None:
        """Add records to a list of the notes, which are saved beside the rows, those that are not in it."""
        known = self.notes.get(key, ())
        new = [record for record in records if record not in known]
        if new:
            self.notes = {**self.notes, key: [*known, *new]}
            self.save_notes()

    def note_origin(self, model: Model) -> None:
        """Note what generates rows, as far as it is known: servers, or the hardware and options of this machine."""
        engine = model.engine
        if model.is_remote:
            self.note(SERVERS, engine.builds)
        elif not self._has_conditions and (conditions := engine.conditions):  # which stay the same
            self.note(CONDITIONS, [conditions])
            self._has_conditions = True

    def sync(self) -> None:
        """Make what was saved durable, unless that has just been done."""

    def complete(self) -> None:
        """Complete the result once all rows are written. Raises ValueError while rows are missing."""
        if self.missing_count or self.has_more:
            raise ValueError(f"{self.missing_count} rows are not finished")

    def how_to_resume(self, unit: str) -> str:  # noqa: ARG002
        """What is saved, and how the next run goes on; empty if nothing is saved."""
        return ""

    def close(self) -> None:
        """Free what the run holds."""

    def _save(self, position: int, place: int, object: JsonObject, flags: int) -> None:
        """Save the object of a row; subclasses do."""

    def save_notes(self) -> None:
        """Save the notes; subclasses do."""


class StreamedRun(Run):
    """Writes each row as a line as soon as all rows before it are written; nothing is saved on disk."""

    in_order = True

    def __init__(self, rows: Rows, write: Callable[[str], None]) -> None:
        super().__init__(rows)
        self._write_line = write
        self._waiting: dict[int, str] = {}
        self._next = 0
        self.add(rows.rereadable_records())

    def close(self) -> None:
        """Write the lines that wait for unfinished rows, in order but with gaps."""
        for position in sorted(self._waiting):
            self._emit(position)

    def _save(self, position: int, place: int, object: JsonObject, flags: int) -> None:  # noqa: ARG002
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


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """The paths for an output. Raises UsageError if it cannot be a file, or would overwrite `source`, the input."""
    try:
        mode = output.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}", "choose another -o") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{output} is a directory", "name a file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{output} is not a regular file", "use `-o -` to stream to standard output")
    paths = OutputPaths.of(output)
    require_place(paths.output, "-o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the output would overwrite the input {source}", "choose another -o")
    return paths


def open_run(
    output: Path,
    record: Record,
    rows: Rows,
    table: ResultTable | None = None,
    restart: bool = False,
    retry_failed: bool = False,
    unit: str = "row",
) -> StoredRun:
    """Open the run of an output, and find out which rows have no answer yet; nothing is written.

    `record` holds everything the answers depend on, and notes, which are saved beside. `restart` ignores finished rows,
    `retry_failed` those with an error or an undecided vote. Raises UsageError for an unusable output path, BatchError
    if another process writes it, if it was made with other settings, or if answers would be lost.
    """
    paths = output_paths(output)
    file = RowFile(paths.partial)
    try:
        run = StoredRun(paths, file, record, rows, table, restart)
        with output_errors(output):
            if not restart:
                run.find_finished()
            run.plan(_TO_RETRY if retry_failed else 0, unit)
    except BaseException:
        file.close()
        raise
    return run


class StoredRun(Run):
    """A run on disk; create it with `open_run`. Not thread-safe."""

    def __init__(
        self,
        paths: OutputPaths,
        file: RowFile,
        record: Record,
        rows: Rows,
        table: ResultTable | None,
        restarts: bool,
    ) -> None:
        super().__init__(rows)
        self._paths = paths
        self._file = file
        self._record = record
        self._check = settings_check(record.fingerprint)
        self._table = table
        self.notes = record.notes
        self._keys = FinishedKeys()
        self._restarts = restarts
        self._retries = 0  # flags
        self._has_begun = False  # the file has what is known
        # By position; a row without a line has -1.
        self._numbers, self._sources, self._asked, self._lines = array("I"), array("Q"), array("Q"), array("q")
        self._seen: set[Digest] = set()  # texts of rows without a line
        self._repeats: Counter[Digest] = Counter()  # after the first row of the same text
        self._places: dict[int, int] = {}  # by position, of rows that are asked by another place
        self._positions: dict[int, int] = {}  # of these places
        self._free_place = 0  # all from the number of rows up to it are taken
        self._output_stamp = _stamp(paths.output)
        self._has_new_notes = False
        self._is_closed = False

    def find_finished(self) -> None:
        """Read the keys of finished rows. Raises BatchError for files that this run does not continue."""
        paths, file = self._paths, self._file
        self._keys = file.keys()
        earlier = read_record(paths.meta)
        if not paths.output.exists():
            earlier = None
        elif earlier is None:
            raise BatchError(f"{paths.output} already exists", REPLACE)
        if file.record:
            if difference := file.record.how_other_differs(self._record):
                problem = f"{paths.partial} was started with {difference}"
                raise BatchError(problem, "run the previous command to resume, or use --restart to start over")
            self._has_begun = True
        elif earlier:
            if difference := earlier.how_other_differs(self._record):
                raise BatchError(f"{paths.output} was made with {difference}", REPLACE)
            self._read_output(earlier)
        if continued := file.record or earlier:
            self._record = Record(continued.fingerprint, {**continued.notes, **self._record.notes})
            self._check = settings_check(continued.fingerprint)
            self.notes = self._record.notes
            self._has_new_notes = to_json(self.notes) != to_json(continued.notes)

    def _read_output(self, record: Record) -> None:
        """Read the keys of an earlier result. Raises BatchError."""
        check = settings_check(record.fingerprint)
        with self._paths.output.open("rb") as file:
            try:
                if self._table:
                    self._keys = FinishedKeys((*key, 0) for _, key in self._table.read(file, check))
                else:
                    self._keys = FinishedKeys(key_values(line, check) for line in file)
            except DAMAGE as error:
                raise BatchError(
                    f"{self._paths.output} was changed by another program",
                    "move it elsewhere, or use --restart to start over and replace it",
                ) from error

    def plan(self, retries: int, unit: str) -> None:
        """Find the rows that have no answer yet. Raises BatchError if finished rows would get lost."""
        keys, paths = self._keys, self._paths
        source = paths.partial if self._has_begun else paths.output
        self._retries = retries
        self.add(self.rows.rereadable_records(), self.rows.rereadable_records())
        self.rows.require_unchanged()
        if len(keys) and not keys.has_taken:
            raise BatchError(f"no answer in {source} belongs to this input", REPLACE)
        left = len(keys) - self.size
        if left > 0 and self.rows.is_whole and not self._has_begun:
            problem = f"{paths.output} has answers to {format_count(left, f'more {unit}')}"
            hint = f"use the same {unit}s or more, choose another -o, or use --restart to start over"
            raise BatchError(problem, hint)
        if self._file.damaged:
            problem = f"{format_count(self._file.damaged, 'damaged row')} in {paths.partial}"
            self._notices += (NoticeEvent(problem, "damaged rows are asked again"),)
        if keys.free_count and self.rows.is_whole:
            self._note_removed()
        is_in_order = self._lines == array("q", range(self.size))
        has_all = not (self.missing_count or self.finished.count(_STALE) or keys.free_count or self.has_more)
        self.is_complete = paths.output.exists() and not self._has_begun and has_all and is_in_order and self.size > 0
        if self.is_complete and self._has_new_notes:
            self.save_notes()

    def add(self, records: Iterable[InputRecord], again: Iterable[InputRecord] = ()) -> None:
        keys, first, flags, is_new = self._keys, self.size, bytearray(), False
        source_of, take, state_of = self.rows.source_of, keys.take, self._state_of
        add_number, add_source, add_line = self._numbers.append, self._sources.append, self._lines.append
        for number, data in records:
            source = source_of(data)
            if (line := take(source)) is None:
                source, line = self._distinct(source)
            add_number(number)
            add_source(source)
            add_line(line)
            flags.append(0 if line < 0 else state_of(line, number))
            is_new = is_new or line < 0
        self._asked.frombytes(bytes(8 * len(flags)))
        self.finished.add(bytes(flags))
        self.earlier += len(flags) - flags.count(0)
        if not (is_new and keys.free_count):
            return
        for position, (number, data) in enumerate(again, first):
            if self._lines[position] < 0:
                line = keys.take_asked(self.rows.read(number, data).asked)
                if line is not None:
                    self._lines[position] = line
                    state = self._state_of(line, number)
                    self.finished[position] = state and state | _STALE
                    self.earlier += state > 0

    def _distinct(self, source: Digest) -> tuple[Digest, int]:
        """The digest and the line of a row whose text is new, or the same as that of another row; -1 without one.

        Of rows with the same text, each has another digest, by their order.
        """
        if source not in self._keys and source not in self._seen:
            self._seen.add(source)
            return source, -1
        self._repeats[source] += 1
        source = digest_of(b"%d %d" % (source, self._repeats[source]))
        line = self._keys.take(source)
        return self._distinct(source) if line is None else (source, line)

    def _state_of(self, line: int, number: int) -> int:
        """The flags of a row that has a line, and this number in the input; 0 if it is asked again."""
        flags = self._keys.flags[line]
        if flags & self._retries:
            return 0
        return flags if self._keys.numbers[line] in (0, number) else flags | _STALE

    def how_to_resume(self, unit: str) -> str:
        done = f"{len(self.finished)} of {self.size} {unit} done"
        if self.finished:
            done += f", saved in {self._paths.partial if self._has_begun else self._paths.output}"
        way = "to resume"
        if self._restarts:
            way = "without --restart to resume" if self._has_begun else "with --restart"
        return f"{done}; run it again {way}"

    def place_of(self, position: int, row: InputRow) -> int:
        self._asked[position] = row.asked
        if (line := self._lines[position]) >= 0:
            place = self._keys.places[line]  # of a row that is asked again
        elif position in self._places:
            place = self._places[position]
        elif not self._is_taken(position):
            return position
        else:
            place = max(self._free_place, self.size)
            while self._is_taken(place):
                place += 1
            self._free_place = place
        if place != position:
            self._places[position] = place
            self._positions[place] = position
        return place

    def _is_taken(self, place: int) -> bool:
        """Whether another row has a place, even one that the input does not have now."""
        return self._keys.has_place(place) or place in self._positions

    def position_of(self, place: int) -> int:
        return self._positions.get(place, place)

    def renew(self, position: int, row: InputRow) -> None:
        if not self._has_begun:
            self._begin()
        [line] = self._file.lines([self._lines[position]])
        key = key_of_line(line, self._check)
        object: JsonDict = {**json.loads(line), **row.keys}
        del object["key"]
        if LINE in object:
            object[LINE] = row.number
        if row.input is not None:
            object[INPUT] = row.input
        self._asked[position] = row.asked
        self._save(position, key.place, object, key.flags)
        self.finished[position] = key.flags

    def _save(self, position: int, place: int, object: JsonObject, flags: int) -> None:
        number = self._numbers[position]
        is_numbered = LINE in object or object.get("id") == number
        key = Key(number if is_numbered else 0, place, flags, self._asked[position], self._sources[position])
        line = keyed_line(object, key, self._check)
        if self._has_begun:
            self._file.append(line)
        else:
            self._begin([line])
        self._keys.append(key)
        self._lines[position] = len(self._keys.flags) - 1

    def _begin(self, lines: Iterable[bytes] = ()) -> None:
        """Begin a file with the rows of an earlier result, if this run continues one, and with new ones."""
        earlier = self._lines_of_output() if len(self._keys) else iter(())
        with output_errors(self._paths.output):
            self._file.begin(replace(self._record, notes=self.notes), chain(earlier, lines))
        self._has_begun = True

    def _lines_of_output(self) -> Iterator[bytes]:
        with self._paths.output.open("rb") as file:
            if self._table:
                rows = self._table.read(file, self._check)
                yield from (keyed_line(object, key, self._check) for object, key in rows)
            else:
                yield from file

    def save_notes(self) -> None:
        record = replace(self._record, notes=self.notes)
        if self.is_complete:
            write_record(self._paths, record, self.size, self.counts)
        elif self._has_begun:
            self._file.note(record)

    def sync(self) -> None:
        self._file.sync_if_due()

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        Raises ValueError while rows are missing, and BatchError if that fails or another program has changed the
        output; the partial file then has all rows, and the next run evaluates none.
        """
        super().complete()
        if self.is_complete:
            return
        if self.finished.count(_STALE):
            for _ in self.missing():
                raise ValueError("a row is not finished")
        if not self._has_begun:
            self._begin()
        self._file.sync()
        paths = self._paths
        with output_errors(paths.output), unfinished_file(paths.output, 0o666) as part:
            write_lines(part.file, self._output_lines())
            if _stamp(paths.output) != self._output_stamp:
                raise BatchError(f"{paths.output} was changed while the batch ran", "move it elsewhere")
            write_record(paths, replace(self._record, notes=self.notes), self.size, self.counts)
            commit_file(part, paths.output)
            self._output_stamp = _stamp(paths.output)
        self._keep_removed()
        self.is_complete = True
        self.close()

    def _output_lines(self) -> Iterator[bytes]:
        lines = self._file.lines(self._lines)
        if self._table is None:
            return lines
        rows = ((json.loads(line), key_of_line(line, self._check)) for line in lines)
        return self._table.lines(rows, self._check)

    def _note_removed(self) -> None:
        answers = format_count(self._keys.free_count, "answer")
        problem = f"{answers} to rows that the input no longer has"
        self._notices += (NoticeEvent(problem, f"kept in {self._paths.removed} when all rows are done"),)

    def _keep_removed(self) -> None:
        """Add the answers to rows that the input no longer has to a file. Raises BatchError."""
        lines = [*self._file.lines(self._keys.free)]
        if not lines:
            return
        if not self.rows.is_whole:
            self._note_removed()
        with output_errors(self._paths.removed), FileIO(self._paths.removed, "a") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                write_lines(file, lines)
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), size)
                raise

    def close(self) -> None:
        """Release the lock. Finished rows stay; without any, no file is left. Raises BatchError."""
        if self._is_closed:
            return
        self._is_closed = True
        with closing(self._file):
            if self.is_complete:
                self._file.remove()
            elif self._has_begun:
                self._file.sync()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; None without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
