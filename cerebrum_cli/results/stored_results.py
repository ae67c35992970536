"""Results on disk: finished rows are in a store, and the result file appears complete, in one step.

If the process is killed, the same command resumes: rows that were still running, or finished within the last second,
are answered again. After Ctrl-C, the store has the tokens of unfinished replies. Memory holds a byte for each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import commit_file, fsync_directory, remove, unfinished_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.results.output_files import (
    REPLACE,
    RESUME,
    BatchRecord,
    OutputPaths,
    decide,
    identify,
    normalize,
    output_errors,
    output_paths,
    read_record,
    write_record,
    write_result,
)
from cerebrum_cli.results.results import Records, Results
from cerebrum_cli.results.row_store import TOKENS, RowStore, discard_store
from cerebrum_cli.results.schema import FINISHED, FinishedRows, ResultRows, to_json_line


def open_results(
    output: Path,
    fingerprint: JsonObject,
    rows: ResultRows,
    restart: bool = False,
    retry_failed: bool = False,
    extent: Mapping[str, int] | None = None,
    notes: JsonObject | None = None,
) -> StoredResults:
    """Open the results of an output: new, resumed, or already complete.

    `retry_failed` resumes also complete ones, for their rows with an error or an undecided vote.

    With a larger `extent` than before, or another input, complete ones are resumed for their new rows, and incomplete
    ones get these rows: answers stay with the rows that they are for.

    `fingerprint` holds everything the answers depend on, as JSON values by readable names; only results with the same
    fingerprint are resumed. `notes` are those of new ones. `restart` discards finished rows, and replaces an existing
    output on completion. Raises UsageError for an unusable output path, BatchError if another process writes it or data
    would be lost.
    """
    paths = output_paths(output)
    new = BatchRecord(normalize(fingerprint), rows.size, rows.sha256, extent=extent or {}, notes=notes or {})
    if restart:
        discard_store(paths.partial)
    store = RowStore(paths.partial)
    try:
        with output_errors(output):
            return _open(paths, store, new, rows, restart, retry_failed)
    except BaseException:
        with closing(store):
            if store.is_empty:
                remove(paths.partial)
        raise


def _open(
    paths: OutputPaths, store: RowStore, new: BatchRecord, rows: ResultRows, restart: bool, retry_failed: bool
) -> StoredResults:
    output = identify(paths.output)
    record = None if restart else read_record(paths.meta)
    step = "begin" if restart else decide(record, not store.is_empty, output, new, paths)
    if record is None or step == "begin":
        store.input = new.identity
        record = replace(new, replaces=output)
        write_record(paths, record)
    elif step == "resume":
        _move_rows(store, rows, new)
        resumed = replace(record, rows=new.rows, input=new.input, extent=new.extent, replaces=output)
        if resumed != record:
            write_record(paths, resumed)
        record = resumed
    elif step == "extend" or (retry_failed and record.has_failed):
        _take_result(store, rows, new, paths)
        record = replace(new, replaces=output, notes=record.notes)
        write_record(paths, record)  # after the rows, so that no answer is lost
    else:
        return StoredResults(paths, store, rows, record, all_finished(rows), is_complete=True)
    finished, unfinished = store.load(rows.size)
    if retry_failed:
        finished.forget_failed()  # new answers replace them
    results = StoredResults(paths, store, rows, record, finished)
    results.unfinished = unfinished
    return results


def _take_result(store: RowStore, rows: ResultRows, new: BatchRecord, paths: OutputPaths) -> None:
    """Store the rows of a complete result again, as those of the new one."""
    if not store.is_empty:
        _move_rows(store, rows, new)
    elif rows.table:
        raise BatchError(f"{paths.partial} is missing: it has the answers for {paths.output.name}", REPLACE)
    else:
        with paths.output.open("rb") as lines:
            store.move(rows, new.identity, paths.output, lines)


def _move_rows(store: RowStore, rows: ResultRows, new: BatchRecord) -> None:
    if store.input != new.identity:
        store.move(rows, new.identity, store.path)


def all_finished(rows: ResultRows) -> FinishedRows:
    return FinishedRows(bytearray([FINISHED]) * rows.size)


class StoredResults(Results):
    """`Results` on disk; create them with `open_results`. Not thread-safe. `notes` are stored beside the rows."""

    def __init__(
        self,
        paths: OutputPaths,
        store: RowStore,
        rows: ResultRows,
        record: BatchRecord,
        finished: FinishedRows,
        is_complete: bool = False,
    ) -> None:
        super().__init__(rows, finished)
        self.is_complete = is_complete
        self.notes = record.notes
        self._paths = paths
        self._store = store
        self._record = record
        self._is_closed = False

    @property
    def counts(self) -> RowCounts:
        return self._record.counts if self.is_complete else self.finished.counts

    def objects(self) -> Iterator[JsonDict]:
        if self.is_complete:
            with self._paths.output.open("rb") as lines:
                yield from map(json.loads, lines)
            return
        self._store.flush()
        for position, text in self._store.objects():
            if position in self.finished:
                yield json.loads(text)

    def write_notes(self, notes: JsonObject) -> None:
        record = replace(self._record, notes=notes)
        write_record(self._paths, record)
        self._record = record
        self.notes = notes

    def note(self, key: str, records: Records) -> None:
        known = self.notes.get(key, ())
        new = [record for record in records if record not in known]
        if new:
            with suppress(BatchError):  # of a full disk: what went wrong before it matters more
                self.write_notes({**self.notes, key: [*known, *new]})

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        The store of a table stays: only there, rows have all their keys. Raises ValueError while rows are missing, and
        BatchError if that fails or another program has changed the output; the store then holds all rows, and the next
        run evaluates none.
        """
        super().complete()
        if self.is_complete:
            return
        self._store.flush()
        paths, counts = self._paths, self.counts
        then = f"{RESUME}; all rows are saved in {paths.partial}"
        with output_errors(paths.output, then), unfinished_file(paths.output, 0o666) as part:
            result = write_result(part.file, self._store.lines(self.rows.table))
            record = replace(
                self._record,
                result=result,
                failed=counts.failed,
                truncated=counts.truncated,
                undecided=counts.undecided,
            )
            write_record(paths, record, then)
            if identify(paths.output) != record.replaces:
                raise BatchError(
                    f"{paths.output} was changed while the batch ran",
                    "move it elsewhere, then run it again without --restart to write the result",
                )
            commit_file(part, paths.output)
        self._record = record
        self.is_complete = True
        self.close()

    def how_to_resume(self, unit: str, again: str) -> str:
        done = self.what_is_saved(unit) or f"0 of {self.rows.size} {unit} done"
        return f"{done}; run it again{again} to resume"

    def what_is_saved(self, unit: str) -> str:
        if not (self.finished or self.unfinished):
            return ""
        return f"{len(self.finished)} of {self.rows.size} {unit} done, saved in {self._paths.partial}"

    def close(self) -> None:
        """Release the lock. Finished rows stay; without any, no file is left. Raises BatchError."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._append_unfinished()
            self._store.flush()
            self._remove_files()
        finally:
            self._store.close()

    def _append_unfinished(self) -> None:
        for position, tokens in self.unfinished.items():
            object = {**self.rows.fields(position), TOKENS: tokens}
            self._store.append(position, to_json_line(object), 0)

    def _remove_files(self) -> None:
        """Remove what the next run does not need."""
        is_empty = self._store.is_empty
        if self.is_complete and (is_empty or self.rows.table is None):
            remove(self._paths.partial)
            fsync_directory(self._paths.partial.parent)
        elif is_empty and self._record.replaces is None:
            remove(self._paths.meta)
            remove(self._paths.partial)

    def _save(self, position: int, text: str, flags: int) -> None:
        self._store.append(position, text, flags)
