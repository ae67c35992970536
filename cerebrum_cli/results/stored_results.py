"""A result on disk while it is written: its rows go to the store, and once all are there, to the result file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import FileIO
from itertools import islice

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import commit_file, file_sha256, fsync_directory, remove, unfinished_file, write_all
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.results.record import RESUME, OutputPaths, Record, output_errors, write_record
from cerebrum_cli.results.row_store import TOKENS, RowStore
from cerebrum_cli.results.rows import FinishedRows, ResultRows, Results, to_json_line

_WRITTEN_TOGETHER = 64  # lines of a result


class StoredResults(Results):
    """`Results` on disk; create them with `open_results`. Not thread-safe. `notes` are stored beside the rows."""

    def __init__(
        self,
        paths: OutputPaths,
        store: RowStore,
        rows: ResultRows,
        record: Record,
        finished: FinishedRows,
        is_complete: bool = False,
    ) -> None:
        super().__init__(rows, finished)
        self.is_complete = is_complete
        self.saved_in = paths.partial
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
            yield from self._paths.objects()
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
            result = write_lines(part.file, self._store.lines(self.rows.table))
            record = replace(
                self._record,
                result=result,
                failed=counts.failed,
                truncated=counts.truncated,
                undecided=counts.undecided,
                empty=counts.empty,
            )
            write_record(paths, record, then)
            if file_sha256(paths.output) != record.replaces:
                raise BatchError(
                    f"{paths.output} was changed while the batch ran",
                    "move it elsewhere, then run it again without --restart to write the result",
                )
            commit_file(part, paths.output)
        self._record = record
        self.is_complete = True
        self.close()

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


def write_lines(file: FileIO, lines: Iterable[bytes]) -> str:
    """Write and sync the lines of a result; their SHA-256."""
    digest, lines = hashlib.sha256(), iter(lines)
    for chunk in iter(lambda: b"".join(islice(lines, _WRITTEN_TOGETHER)), b""):
        write_all(file.fileno(), chunk)
        digest.update(chunk)
    os.fsync(file.fileno())
    return digest.hexdigest()
