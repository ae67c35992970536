"""The journal of a batch: each finished row is written immediately, and the result file appears complete, in one step.

If the process is killed, the same command resumes; only rows that were still running are lost. After Ctrl-C, their
tokens are in the record. The file is synced once a second: a power cut also loses the rows of the last second, which
are then answered again. Memory holds 9 bytes for each row, 25 while rows of a changed input are found; the texts are on
disk only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import RowCounts
from cerebrum_cli.core.files import commit_file, fsync_directory, unfinished_file
from cerebrum_cli.runs.output_files import (
    REPLACE,
    BatchRecord,
    OutputPaths,
    decide,
    file_stamp,
    identify,
    journal_errors,
    normalize,
    output_paths,
    read_record,
    write_record,
    write_result,
)
from cerebrum_cli.runs.partial import PartialFile
from cerebrum_cli.runs.result import ResultRows, to_json, to_json_line


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
    with journal_errors(paths.partial):
        partial = PartialFile(paths.partial, rows)
    try:
        with journal_errors(output):
            record = BatchRecord(
                normalize(fingerprint), len(rows), rows.sha256, extent=dict(extent or {}), notes=dict(notes or {})
            )
            return _open(paths, partial, record, rows, restart, retry_failed)
    except BaseException:
        with contextlib.closing(partial), contextlib.suppress(OSError):
            if partial.is_empty:
                partial.remove()
        raise


def _open(
    paths: OutputPaths,
    partial: PartialFile,
    new: BatchRecord,
    rows: ResultRows,
    restart: bool,
    retry_failed: bool,
) -> Journal:
    record = None if restart else read_record(paths.meta)
    output = identify(paths.output)
    step = "begin" if restart else decide(record, not partial.is_empty, output, new, paths)
    if step == "begin" or record is None:
        partial.clear()  # before the record, so that rows of another batch are never taken for this one's
        record = replace(new, replaces=output)
        write_record(paths, record)
    elif step == "resume":
        if not partial.load():
            raise BatchError(f"none of the answers in {paths.partial} is for this input", REPLACE)
        if not record.has_rows_of(new):
            record = replace(record, rows=new.rows, input=new.input, extent=new.extent)
            write_record(paths, record)
    elif step == "extend" or (retry_failed and (record.counts.failed or record.counts.undecided)):
        if rows.table is None:
            partial.copy(paths.output)  # before the record, so that no answer is lost
        elif partial.is_empty:
            raise BatchError(f"{paths.partial} is missing: it has the answers for {paths.output.name}", REPLACE)
        if not partial.load():
            if rows.table is None:
                partial.remove()
            raise BatchError(f"none of the answers in {paths.output} is for this input", REPLACE)
        step, record = "resume", replace(new, replaces=output, notes=record.notes)
        write_record(paths, record)
    elif rows.table is None or partial.is_empty:
        partial.remove()
    if retry_failed and step == "resume":
        partial.finished.forget_failed()  # the next line of such a row replaces it
    return Journal(paths, partial, rows, record, step == "complete", file_stamp(paths.output))


@dataclass(slots=True, eq=False)
class Journal:
    """A `Result` on disk; create it with `open_journal`. Not thread-safe. `replaced` is the stamp of an old result."""

    paths: OutputPaths
    partial: PartialFile
    rows: ResultRows
    record: BatchRecord
    is_complete: bool
    replaced: tuple[int, ...] | None
    _is_open: bool = field(default=True, init=False)
    _unfinished: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._unfinished = dict(self.record.unfinished)

    @property
    def finished(self) -> Collection[int]:
        return range(len(self.rows)) if self.is_complete else self.partial.finished

    @property
    def counts(self) -> RowCounts:
        return self.record.counts if self.is_complete else self.partial.finished.counts

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Append the object of a row to the partial file, which is synced within a second.

        Raises ValueError as `Result` does, and BatchError if that or an earlier sync fails; then the file is unchanged.
        """
        self.rows.validate(self.finished, position, object)
        with journal_errors(self.paths.partial):
            self.partial.append(position, to_json_line(object).encode(), self.rows.schema.count(object))
        self._unfinished.pop(str(position), None)

    def keep_unfinished(self, position: int, tokens: Sequence[int]) -> None:
        """Keep the tokens of a row's reply, which `close` writes."""
        self._unfinished[str(position)] = " ".join((self._digest(position), *map(str, tokens)))

    def unfinished_tokens(self, position: int) -> tuple[int, ...]:
        digest, *tokens = self._unfinished.get(str(position), "").split() or [""]
        return tuple(map(int, tokens)) if tokens and digest == self._digest(position) else ()

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of the finished rows, in the order of the rows."""
        if self.is_complete:
            with self.paths.output.open("rb") as lines:
                yield from map(json.loads, lines)
        else:
            yield from map(json.loads, self.partial.lines_in_order())

    @property
    def notes(self) -> Mapping[str, Any]:
        """Notes stored beside the rows."""
        return self.record.notes

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """Replace the notes. Raises BatchError."""
        record = replace(self.record, notes=notes)
        write_record(self.paths, record)
        self.record = record

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        The partial file of a table stays: only there, rows have all their keys. Raises ValueError while rows are
        missing, and BatchError if that fails or another program has changed the output; the partial file then holds all
        rows, and the next run evaluates none.
        """
        if self.is_complete:
            return
        self.rows.require_finished(self.finished)
        paths = self.paths
        with journal_errors(paths.output), unfinished_file(paths.output, 0o666) as part:
            lines, table = self.partial.lines_in_order(), self.rows.table
            result = write_result(part.file, table.lines(map(json.loads, lines)) if table else lines)
            record = replace(self.record, result=result, unfinished={}, **self.partial.finished.counts.recorded)
            write_record(paths, record)
            if file_stamp(paths.output) != self.replaced:
                hint = "move it elsewhere, then run it again without --restart to write the result"
                raise BatchError(f"{paths.output} was changed while the batch ran", hint)
            commit_file(part, paths.output)
            self.record, self.is_complete = record, True
        with contextlib.suppress(OSError):  # the next run of the same batch removes it
            if self.rows.table is None:
                self.partial.remove()
            fsync_directory(paths.output.parent)
        self.close()

    def close(self) -> None:
        """Release the lock. Finished rows are synced and stay; without any, no file is left. Raises BatchError."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if not self.is_complete and self._unfinished:
                with contextlib.suppress(BatchError):  # their rows are answered from the beginning
                    write_record(self.paths, replace(self.record, unfinished=self._unfinished))
            elif not self.is_complete and self.partial.is_empty and self.record.replaces is None:
                with contextlib.suppress(OSError):
                    self.paths.meta.unlink(missing_ok=True)
                    self.partial.remove()
        finally:
            with journal_errors(self.paths.partial):
                self.partial.close()

    def _digest(self, position: int) -> str:
        return hashlib.sha256(to_json(self.rows.identity(position)).encode()).hexdigest()
