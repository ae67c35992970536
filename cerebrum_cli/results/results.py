"""Results on disk: finished rows are in a store, and the result file appears complete, in one step.

If the process is killed, the same command resumes: rows that were still running, or finished within the last second,
are answered again. After Ctrl-C, the store has the tokens of unfinished replies. Memory holds a byte for each row.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.differences import Differences, differing_values
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import (
    commit_file,
    file_sha256,
    remove,
    remove_abandoned,
    translate_os_errors,
    unfinished_file,
)
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.results.record import (
    REPLACE,
    OutputPaths,
    Record,
    decide,
    output_errors,
    read_record,
    write_record,
)
from cerebrum_cli.results.row_store import DamagedStore, RowStore, has_rows, read_objects
from cerebrum_cli.results.rows import (
    CONDITIONS,
    SERVERS,
    FinishedRows,
    Records,
    ResultRows,
    Results,
    RowFlag,
    to_json_line,
)
from cerebrum_cli.results.stored_results import StoredResults, write_lines

AGAIN = ", then run it again"


def paths_of(output: Path) -> OutputPaths:
    """The paths for an output; for a symbolic link, of its target. Raises UsageError if it cannot be a file."""
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
    return OutputPaths(output.resolve() if output.is_symlink() else output)


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """Like `paths_of`. Raises UsageError if it cannot be written, or would overwrite `source`, the input."""
    paths = paths_of(output)
    folder = paths.output.parent
    if not folder.is_dir():
        raise UsageError(f"directory {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"directory {folder} is not writable", "choose another -o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the output would overwrite the input {source}", "choose another -o")
    return paths


def open_results(
    output: Path,
    fingerprint: JsonObject,
    rows: ResultRows,
    restart: bool = False,
    retry_failed: bool = False,
    extent: Mapping[str, int] | None = None,
    notes: JsonObject | None = None,
) -> Results:
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
    new = Record(dict(fingerprint), rows.size, rows.sha256, extent=extent or {}, notes=notes or {})
    if restart:
        _discard_store(paths.partial)
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
    paths: OutputPaths, store: RowStore, new: Record, rows: ResultRows, restart: bool, retry_failed: bool
) -> StoredResults:
    output = file_sha256(paths.output)
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
    elif step == "extend" or (retry_failed and (record.failed or record.undecided)):
        _take_result(store, rows, new, paths)
        record = replace(new, replaces=output, notes=record.notes)
        write_record(paths, record)  # after the rows, so that no answer is lost
    else:
        all_finished = FinishedRows(bytearray([RowFlag.FINISHED]) * rows.size)
        return StoredResults(paths, store, rows, record, all_finished, is_complete=True)
    finished, unfinished = store.load(rows.size)
    if retry_failed:
        finished.forget(RowFlag.FAILED | RowFlag.UNDECIDED)  # new answers replace them
    results = StoredResults(paths, store, rows, record, finished)
    results.unfinished = unfinished
    return results


def _discard_store(path: Path) -> None:
    """Delete a store, or another file in its place. Raises BatchError if another process has it open."""
    if not path.is_file():
        return
    with suppress(DamagedStore):
        RowStore(path).close()
    with translate_os_errors(BatchError, path):
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # of a damaged store


def _take_result(store: RowStore, rows: ResultRows, new: Record, paths: OutputPaths) -> None:
    """Store the rows of a complete result again, as those of the new one."""
    if not store.is_empty:
        _move_rows(store, rows, new)
    elif rows.table:
        raise BatchError(f"{paths.partial} is missing: it has the answers for {paths.output.name}", REPLACE)
    else:
        with paths.output.open("rb") as lines:
            store.move(rows, new.identity, paths.output, lines)


def _move_rows(store: RowStore, rows: ResultRows, new: Record) -> None:
    if store.input != new.identity:
        store.move(rows, new.identity, store.path)


@frozen
class SavedResult:
    """The files of a result, complete or not, which another process may be writing."""

    paths: OutputPaths
    record: Record

    @property
    def servers(self) -> Records:
        """Servers, or nodes, that answered rows."""
        servers: Records = self.record.notes.get(SERVERS, ())
        return servers

    @property
    def conditions(self) -> Records:
        """Hardware and options of the machines that answered rows."""
        conditions: Records = self.record.notes.get(CONDITIONS, ())
        return conditions

    @property
    def changed_at(self) -> float:
        files = (self.paths.output, self.paths.partial)
        return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)

    @property
    def is_complete(self) -> bool:
        """Whether the output is the whole result: a new one takes its place only after the record is written."""
        if self.record.result is None or not self.paths.output.exists():
            return False
        return not has_rows(self.paths.partial) or file_sha256(self.paths.output) == self.record.result

    def objects(self) -> Iterator[JsonDict]:
        """Yield the objects of the finished rows, in order. Raises BatchError, and one of DAMAGE for a damaged file."""
        if not self.is_complete:
            yield from read_objects(self.paths.partial)
            return
        yield from self.paths.objects()

    def how_differs(self, fingerprint: JsonObject) -> str:
        """Describe how another fingerprint differs, like "another model (a, now b)"; empty if it is equal."""
        return self.record.how_other_differs(Record(fingerprint, 0))

    def differences(self, other: SavedResult) -> Differences:
        """Differences between what two results depend on, and between their extents."""
        sizes = ({f"number of {key}": value for key, value in saved.record.extent.items()} for saved in (self, other))
        return self.record.differences(other.record) | differing_values(*sizes)

    @contextmanager
    def locked(self) -> Iterator[RowStore]:
        """Lock the files. Raises BatchError if a process is writing them, and in place of an OSError."""
        paths = self.paths
        with (
            translate_os_errors(BatchError, paths.output, AGAIN),
            closing(RowStore(paths.partial, AGAIN, "wait until it has ended")) as store,
        ):
            try:
                yield store
            finally:
                if store.is_empty:
                    remove(paths.partial)

    def rewrite(self, store: RowStore, objects: Iterable[JsonObject], rules: str, value: str) -> None:
        """Replace the objects of all rows, and a `value` of the fingerprint, named `rules`, by which they are made.

        It is None until they are replaced: a process that dies in between leaves all old objects or all new ones.
        """
        record = replace(self.record, fingerprint={**self.record.fingerprint, rules: None})
        is_complete = self.is_complete
        write_record(self.paths, record, AGAIN)
        if is_complete:
            lines = (f"{to_json_line(object)}\n".encode() for object in objects)
            with unfinished_file(self.paths.output, 0o666) as part:
                record = replace(record, result=write_lines(part.file, lines))
                commit_file(part, self.paths.output)
        else:
            store.update(objects)
        write_record(self.paths, replace(record, fingerprint={**record.fingerprint, rules: value}), AGAIN)

    def delete(self) -> None:
        """Delete the files. Raises BatchError if a process is writing them, or they cannot be deleted."""
        with self.locked():
            for path in self.paths.all:
                path.unlink(missing_ok=True)
            remove_abandoned(self.paths.output.parent, f".{self.paths.output.name}.")


def read_saved(output: Path) -> SavedResult | None:
    """The result at a path; None if there is no record of one. Raises UsageError, BatchError."""
    paths = paths_of(output)
    with translate_os_errors(BatchError, paths.meta):
        record = read_record(paths.meta)
    return SavedResult(paths, record) if record else None


def keeps_rows(output: Path, fingerprint: JsonObject, extent: Mapping[str, int]) -> bool:
    """Whether `open_results` would keep the rows of an earlier run. Raises UsageError, BatchError where it does."""
    if not output.parent.is_dir():
        return False
    paths = output_paths(output)
    new = Record(fingerprint, 0, extent=extent)
    step = decide(read_record(paths.meta), has_rows(paths.partial), file_sha256(paths.output), new, paths)
    return step != "begin"
