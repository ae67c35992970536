"""A batch's result in a file: what is finished is on disk at once, and the result appears whole, and last.

A process may end at any moment; the same command then goes on, and only rows that were being answered are lost. The
texts of finished rows are on disk alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.batches.files import (
    OutputPaths,
    file_stamp,
    identify,
    output_paths,
    rename_into_place,
    temporary_path,
    translate_os_errors,
    write_temporary,
)
from cerebrum_cli.batches.meta import Record, encode_record, normalize, read_record
from cerebrum_cli.batches.partial import PartialFile
from cerebrum_cli.batches.result import require_all_finished, to_json_line, validate_object
from cerebrum_cli.batches.resume_state import ResumeState, decide
from cerebrum_cli.batches.rows import Row
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import fsync_directory


def open_journal(output: Path, fingerprint: Mapping[str, Any], rows: Sequence[Row], restart: bool = False) -> Journal:
    """Return the journal of a result: a new one, one that goes on, or one that is complete already.

    `fingerprint` is all that makes the answers, JSON values by names that can be told to a user; only a batch with
    the same one goes on. `restart` forgets what was begun, and lets a result that is there be replaced in the end.
    UsageError where no result can be; BatchError where another process writes it, or something would be lost.
    """
    paths = output_paths(output)
    with translate_os_errors(paths.partial):
        partial = PartialFile(paths.partial, rows)
    try:
        with translate_os_errors(output):
            return _open(paths, partial, normalize(fingerprint), rows, restart)
    except BaseException:
        with contextlib.closing(partial), contextlib.suppress(OSError):
            if partial.is_empty:
                partial.remove()
        raise


def _open(
    places: OutputPaths, partial: PartialFile, fingerprint: Mapping[str, Any], rows: Sequence[Row], restart: bool
) -> Journal:
    record = None if restart else read_record(places.meta)
    found = ResumeState(not partial.is_empty, record, identify(places.output))
    step = "begin" if restart else decide(found, fingerprint, places)
    if step == "begin" or record is None:
        partial.clear()  # before the record: rows of another batch are never taken for this one's
        record = Record(fingerprint, len(rows), replaces=found.output)
        write_temporary(places.meta, [encode_record(record)])
        rename_into_place(places.meta)
    elif step == "resume":
        partial.load()
    else:
        partial.remove()
    return Journal(places, partial, rows, record, step == "complete")


class Journal:
    """The rows of one batch that are finished, each on disk when `write` returns; `open_journal` makes it.

    It is for one thread at a time.
    """

    def __init__(
        self, places: OutputPaths, partial: PartialFile, rows: Sequence[Row], record: Record, is_complete: bool
    ) -> None:
        self._paths = places
        self._partial = partial
        self._rows = rows
        self._record = record
        self._is_complete = is_complete
        self._is_open = True
        self._replaced = file_stamp(places.output)

    @property
    def is_complete(self) -> bool:
        """Whether the result is whole and in its place."""
        return self._is_complete

    @property
    def finished(self) -> AbstractSet[int]:
        """The positions that need no evaluation any more."""
        return frozenset(range(len(self._rows))) if self._is_complete else self._partial.positions

    @property
    def done(self) -> int:
        """How many rows are finished."""
        return len(self._rows) if self._is_complete else len(self._partial.positions)

    @property
    def failed(self) -> int:
        """How many of them have an error."""
        return self._record.failed or 0 if self._is_complete else self._partial.failed

    def write(self, position: int, object: Mapping[str, Any]) -> None:
        """Write the object of a row to the partial file, and wait for the disk.

        ValueError as in `Result`; BatchError where it cannot be written, and then the file holds what it held before.
        """
        validate_object(self._rows, self.finished, position, object)
        with translate_os_errors(self._paths.partial):
            self._partial.append(position, to_json_line(object).encode(), object["error"] is not None)

    def complete(self) -> None:
        """Write the result in the order of the input, all at once; nothing to do where that is done.

        ValueError while rows are missing. BatchError where it cannot be written, or a file that is not to be replaced
        has come to its place; the partial file then holds all rows, and the next try evaluates none.
        """
        if self._is_complete:
            return
        require_all_finished(self._rows, self.finished)
        places = self._paths
        with translate_os_errors(places.output):
            result = write_temporary(places.output, self._partial.lines_in_order())
            try:
                record = replace(self._record, failed=self._partial.failed, result=result)
                write_temporary(places.meta, [encode_record(record)])
                rename_into_place(places.meta)
                self._require_unchanged_output()
                rename_into_place(places.output)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary_path(places.output).unlink(missing_ok=True)
                raise
            self._record, self._is_complete = record, True
        with contextlib.suppress(OSError):  # whoever asks for the same batch again removes it
            self._partial.remove()
            fsync_directory(places.output.parent)
        self.close()

    def close(self) -> None:
        """Let another process have it: what is finished stays on disk, and where nothing is, no file does."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if not self._is_complete and not self._partial.positions and self._record.replaces is None:
                with contextlib.suppress(OSError):
                    self._paths.meta.unlink(missing_ok=True)
                    self._partial.remove()
        finally:
            self._partial.close()

    def _require_unchanged_output(self) -> None:
        output = self._paths.output
        if file_stamp(output) != self._replaced:
            do = "move it away: the same command, without --restart, then writes the result"
            raise BatchError(f"{output} has come or changed while the batch ran", do)
