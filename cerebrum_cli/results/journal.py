"""The journal of a batch: each finished row is written immediately, and the result file appears complete, in one step.

If the process is killed, the same command resumes; only rows that were still running are lost. After Ctrl-C, their
tokens are in the record. The file is synced once a second: a power cut also loses the rows of the last second, which
are then answered again. Memory holds 9 bytes for each row; the texts are on disk only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import NoticeEvent, ServersEvent
from cerebrum_cli.core.files import commit_file, fsync_directory, unfinished_file
from cerebrum_cli.core.row_events import SHOWN_ERRORS, EvalProgress, RowCounts, RowEvent
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.results.output_files import (
    MIXED,
    REPLACE,
    BatchRecord,
    Identity,
    OutputPaths,
    decide,
    identify,
    journal_errors,
    normalize,
    output_paths,
    read_record,
    write_record,
    write_result,
)
from cerebrum_cli.results.partial import PartialFile
from cerebrum_cli.results.result import FAILED, FINISHED, FinishedRows, Result, ResultRows

Records = Sequence[Mapping[str, Any]]
# Keys of the notes: servers, and hardware and options of this machine, under which rows were made, each once.
SERVERS, CONDITIONS = "servers", "conditions"
"""Kind, build and model of the servers, or nodes, that answered rows; their addresses are not recorded."""

T = TypeVar("T")


def open_journal(
    output: Path,
    fingerprint: Mapping[str, Any],
    rows: ResultRows,
    restart: bool = False,
    retry_failed: bool = False,
    extent: Mapping[str, int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Journal:
    """Open the journal of a result: new, resumed, or already complete.

    `retry_failed` resumes also a complete one, for its rows with an error or an undecided vote.

    With a larger `extent` than before, or another input, a complete one is resumed for its new rows, and an incomplete
    one gets these rows: answers stay with the rows that they are for.

    `fingerprint` holds everything the answers depend on, as JSON values by readable names; only a batch with the same
    fingerprint is resumed. `notes` are those of a new one. `restart` discards finished rows, and replaces an existing
    result on completion. Raises UsageError for an unusable output path, BatchError if another process writes it or data
    would be lost.
    """
    paths = output_paths(output)
    new = BatchRecord(
        normalize(fingerprint), len(rows), rows.sha256, extent=dict(extent or {}), notes=dict(notes or {})
    )
    with journal_errors(paths.partial):
        partial = PartialFile(paths, rows)
    try:
        with journal_errors(output):
            return _open(paths, partial, new, rows, restart, retry_failed)
    except BaseException:
        with contextlib.closing(partial), contextlib.suppress(OSError):
            if partial.is_empty:
                partial.path.unlink()
        raise


def _open(
    paths: OutputPaths, partial: PartialFile, new: BatchRecord, rows: ResultRows, restart: bool, retry_failed: bool
) -> Journal:
    record = None if restart else read_record(paths.meta)
    output = identify(paths.output)
    step = "begin" if restart else decide(record, not partial.is_empty, output, new, paths)
    if step == "complete" and retry_failed and record and (record.failed or record.undecided):
        step = "extend"
    if step == "begin" or record is None:
        partial.truncate()  # before the record, so that rows of another batch are never taken for this one's
        record = replace(new, replaces=output)
        write_record(paths, record)
    elif step == "complete":
        if rows.table is None or partial.is_empty:
            partial.path.unlink()
    elif step == "resume" and record.has_rows_of(new):
        partial.load()
    elif step == "resume":
        write_record(paths, replace(record, input=MIXED))
        partial.rebuild(paths.partial)
        record = replace(record, rows=new.rows, input=new.input, extent=new.extent)
        write_record(paths, record)
    elif rows.table and partial.is_empty:
        raise BatchError(f"{paths.partial} is missing: it has the answers for {paths.output.name}", REPLACE)
    else:
        partial.rebuild(paths.partial if rows.table else paths.output)  # before the record, so that no answer is lost
        record = replace(new, replaces=output, notes=record.notes)
        write_record(paths, record)
    finished, count = partial.finished, rows.schema.count
    if retry_failed:
        finished.forget_failed()  # the next line of such a row replaces it
    failed = islice((position for position in finished if finished[position] & FAILED), SHOWN_ERRORS)
    finished.errors = tuple(error for line in partial.lines(failed) for error in count(json.loads(line)).errors)
    return Journal(paths, partial, rows, record, output, step == "complete")


class Journal(Result):
    """A `Result` on disk; create it with `open_journal`. Not thread-safe. `notes` are stored beside the rows."""

    def __init__(
        self,
        paths: OutputPaths,
        partial: PartialFile,
        rows: ResultRows,
        record: BatchRecord,
        replaced: Identity | None,
        is_complete: bool,
    ) -> None:
        super().__init__(rows, FinishedRows(len(rows), FINISHED) if is_complete else partial.finished)
        self.is_complete = is_complete
        self._paths = paths
        self._partial = partial
        self._record = record
        self._replaced = replaced
        self.notes = record.notes
        for key, text in record.unfinished.items():
            digest, *tokens = text.split()
            if int(key) < len(rows) and digest == self._digest(int(key)):
                self.unfinished[int(key)] = tuple(map(int, tokens))

    @property
    def counts(self) -> RowCounts:
        return self._record.counts if self.is_complete else self.finished.counts

    def objects(self) -> Iterator[dict[str, Any]]:
        if self.is_complete:
            with self._paths.output.open("rb") as lines:
                yield from map(json.loads, lines)
        else:
            yield from map(json.loads, self._partial.lines(self.finished))

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        record = replace(self._record, notes=notes)
        write_record(self._paths, record)
        self._record, self.notes = record, notes

    @property
    def servers(self) -> Records:
        records: Records = self.notes.get(SERVERS, ())
        return records

    def note_conditions(self, conditions: dict[str, Any]) -> NoticeEvent | None:
        """Note the hardware and options; return a notice if other rows were made on other hardware."""
        before = {str(record["hardware"]) for record in self.notes.get(CONDITIONS, ())} - {conditions["hardware"]}
        self.note(CONDITIONS, (conditions,))
        problem = f"other rows were made on {' and '.join(sorted(before))}, not {conditions['hardware']}"
        return NoticeEvent(problem, "near ties may be decided differently") if before else None

    def note(self, key: str, records: Records) -> None:
        """Add records to a list of the notes, those that are not in it."""
        known = self.notes.get(key, ())
        if new := [record for record in records if record not in known]:
            with contextlib.suppress(BatchError):  # of a full disk: what went wrong before it matters more
                self.write_notes({**self.notes, key: [*known, *new]})

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        The partial file of a table stays: only there, rows have all their keys. Raises ValueError while rows are
        missing, and BatchError if that fails or another program has changed the output; the partial file then holds all
        rows, and the next run evaluates none.
        """
        super().complete()
        if self.is_complete:
            return
        paths, table = self._paths, self.rows.table
        with journal_errors(paths.output), unfinished_file(paths.output, 0o666) as part:
            lines = self._partial.lines(self.finished)
            result = write_result(part.file, table(map(json.loads, lines)) if table else lines)
            failed, truncated, undecided, _ = astuple(self.counts)
            record = replace(
                self._record, result=result, unfinished={}, failed=failed, truncated=truncated, undecided=undecided
            )
            write_record(paths, record)
            if identify(paths.output) != self._replaced:
                raise BatchError(
                    f"{paths.output} was changed while the batch ran",
                    "move it elsewhere, then run it again without --restart to write the result",
                )
            commit_file(part, paths.output)
        self._record = record
        self.is_complete = True
        with contextlib.suppress(OSError):  # the next run of the same batch removes it
            if table is None:
                self._partial.path.unlink()
            fsync_directory(paths.output.parent)
        self.close()

    def close(self) -> None:
        """Release the lock. Finished rows are synced and stay; without any, no file is left. Raises BatchError."""
        if self._partial.is_closed:
            return
        try:
            if not self.is_complete and self.unfinished:
                unfinished = {
                    str(position): " ".join((self._digest(position), *map(str, tokens)))
                    for position, tokens in self.unfinished.items()
                }
                with contextlib.suppress(BatchError):  # their rows are answered from the beginning
                    write_record(self._paths, replace(self._record, unfinished=unfinished))
            elif not self.is_complete and self._partial.is_empty and self._record.replaces is None:
                with contextlib.suppress(OSError):
                    self._paths.meta.unlink(missing_ok=True)
                    self._partial.path.unlink()
        finally:
            with journal_errors(self._paths.partial):
                self._partial.close()

    def _save(self, position: int, line: bytes, flags: int) -> None:
        """Append the line of a row to the partial file, which is synced within a second.

        Raises BatchError if that or an earlier sync fails; then the file is unchanged.
        """
        with journal_errors(self._partial.path):
            self._partial.append(position, line, flags)

    def _digest(self, position: int) -> str:
        return self.rows.schema.identify(self.rows.fields(position))


def noting_servers(
    events: Generator[T, None, None], run: Journal, model: LoadedModel
) -> Generator[T | NoticeEvent, None, None]:
    """Yield events, and note the servers once there are rows, and as they change: the process may be killed.

    Of a model on this machine, note the hardware and the options.
    """
    is_noted = False
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, ServersEvent) or (not is_noted and isinstance(event, (RowEvent, EvalProgress))):
                if model.is_remote:
                    run.note(SERVERS, model.engine.builds)
                elif (conditions := model.conditions) and (notice := run.note_conditions(conditions)):
                    yield notice
                is_noted = model.is_remote or bool(conditions)
            yield event
