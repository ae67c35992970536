"""The journal of a batch: each finished row is written immediately, and the result file appears complete, in one step.

If the process is killed, the same command resumes; only rows that were still running are lost. The file is synced once
a second: a power cut also loses the rows of the last second, which are then answered again. Memory holds 9 bytes for
each row; the texts are on disk only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.files import (
    OutputPaths,
    file_stamp,
    identify,
    journal_errors,
    output_paths,
    write_result,
)
from cerebrum_cli.batch.meta import Record, ResumeState, decide, encode_record, normalize, read_record
from cerebrum_cli.batch.partial import PartialFile
from cerebrum_cli.batch.result import ResultRows, to_json_line
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import RowCounts
from cerebrum_cli.core.files import commit_file, fsync_directory
from cerebrum_cli.core.locks import unfinished_file


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

    `retry_failed` resumes also a complete one, for its rows with an error or without a winner.

    With a larger `extent` than before, a complete one is resumed for its new rows, and an incomplete one grows.

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
            record = Record(normalize(fingerprint), len(rows), extent=dict(extent or {}), notes=dict(notes or {}))
            return _open(paths, partial, record, rows, restart, retry_failed)
    except BaseException:
        with contextlib.closing(partial), contextlib.suppress(OSError):
            if partial.is_empty:
                partial.remove()
        raise


def _open(
    paths: OutputPaths,
    partial: PartialFile,
    new: Record,
    rows: ResultRows,
    restart: bool,
    retry_failed: bool,
) -> Journal:
    record = None if restart else read_record(paths.meta)
    state = ResumeState(not partial.is_empty, record, identify(paths.output))
    step = "begin" if restart else decide(state, new, paths)
    if step == "begin" or record is None:
        partial.clear()  # before the record, so that rows of another batch are never taken for this one's
        record = replace(new, replaces=state.output)
        write_record(paths, record)
    elif step == "resume":
        partial.load()
        if record.extent != new.extent:
            record = replace(record, rows=new.rows, extent=new.extent)
            write_record(paths, record)
    elif step == "extend" or (retry_failed and (record.counts.failed or record.counts.undecided)):
        partial.clear()
        partial.copy(paths.output)  # before the record, so that no answer is lost
        step, record = "resume", replace(new, replaces=state.output, notes=record.notes)
        write_record(paths, record)
    else:
        partial.remove()
    if retry_failed and step == "resume":
        partial.forget_failed()
    return Journal(paths, partial, rows, record, step == "complete")


def write_record(paths: OutputPaths, record: Record) -> None:
    """Replace the record atomically. Raises BatchError."""
    with journal_errors(paths.meta), unfinished_file(paths.meta, 0o666) as part:
        write_result(part.file, [encode_record(record)])
        commit_file(part, paths.meta)


class Journal:
    """A `Result` on disk; create it with `open_journal`. Not thread-safe."""

    def __init__(
        self, paths: OutputPaths, partial: PartialFile, rows: ResultRows, record: Record, is_complete: bool
    ) -> None:
        self._paths = paths
        self._partial = partial
        self._rows = rows
        self._record = record
        self._is_complete = is_complete
        self._is_open = True
        self._replaced = file_stamp(paths.output)

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    def finished(self) -> Collection[int]:
        return range(len(self._rows)) if self._is_complete else self._partial.finished

    @property
    def done(self) -> int:
        return len(self.finished)

    @property
    def counts(self) -> RowCounts:
        return self._record.counts if self._is_complete else self._partial.finished.counts

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Append the object of a row to the partial file, which is synced within a second.

        Raises ValueError as `Result` does, and BatchError if that or an earlier sync fails; then the file is unchanged.
        """
        self._rows.validate(self.finished, position, object)
        with journal_errors(self._paths.partial):
            self._partial.append(position, to_json_line(object).encode(), self._rows.schema.count(object))

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of the finished rows, in the order of the rows."""
        if self._is_complete:
            with self._paths.output.open("rb") as lines:
                yield from map(json.loads, lines)
        else:
            yield from map(json.loads, self._partial.lines_in_order())

    @property
    def notes(self) -> Mapping[str, Any]:
        """What is remembered beside the rows."""
        return self._record.notes

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """Replace the notes. Raises BatchError."""
        record = replace(self._record, notes=notes)
        write_record(self._paths, record)
        self._record = record

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        Raises ValueError while rows are missing, and BatchError if that fails or another program has changed the
        output; the partial file then holds all rows, and the next run evaluates none.
        """
        if self._is_complete:
            return
        self._rows.require_finished(self.finished)
        paths = self._paths
        with journal_errors(paths.output), unfinished_file(paths.output, 0o666) as part:
            result = write_result(part.file, self._partial.lines_in_order())
            record = replace(self._record, result=result, **self._partial.finished.counts.recorded)
            write_record(paths, record)
            self._require_unchanged_output()
            commit_file(part, paths.output)
            self._record, self._is_complete = record, True
        with contextlib.suppress(OSError):  # the next run of the same batch removes it
            self._partial.remove()
            fsync_directory(paths.output.parent)
        self.close()

    def close(self) -> None:
        """Release the lock. Finished rows are synced and stay; without any, no file is left. Raises BatchError."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if not self._is_complete and not self._partial.finished and self._record.replaces is None:
                with contextlib.suppress(OSError):
                    self._paths.meta.unlink(missing_ok=True)
                    self._partial.remove()
        finally:
            with journal_errors(self._paths.partial):
                self._partial.close()

    def _require_unchanged_output(self) -> None:
        output = self._paths.output
        if file_stamp(output) != self._replaced:
            hint = "move it elsewhere, then run it again without --restart to write the result"
            raise BatchError(f"{output} was changed while the batch ran", hint)
