"""Results on disk: finished rows are in OUTPUT.partial, and OUTPUT appears complete, in one step.

One rule decides what a run asks: a row whose key is in OUTPUT.partial, or in an OUTPUT made with the same settings, is
finished. So a run that was killed resumes, a longer input gets its new rows answered, and a changed row is asked again.
"""

from __future__ import annotations

import json
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.files import commit_file, fsync_directory, remove, require_place, unfinished_file, write_all
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.results.output_tables import RECORD, ResultTable
from cerebrum_cli.results.record import (
    REPLACE,
    OutputPaths,
    Record,
    output_errors,
    read_record,
    write_record,
)
from cerebrum_cli.results.row_file import RowFile
from cerebrum_cli.results.rows import (
    DIGEST,
    ONLY_FINISHED,
    Digest,
    Key,
    Results,
    RowFlag,
    RowKind,
    StreamedResults,
    digest_of,
    key_of_line,
    keyed_line,
)

_WRITTEN_TOGETHER = 64  # lines of a result
_NUMBER_AND_FLAGS = slice(DIGEST.start - 24, DIGEST.start)  # of a line, and what is before
_TO_RETRY = RowFlag.FAILED | RowFlag.UNDECIDED


def paths_of(output: Path) -> OutputPaths:
    """The paths for an output. Raises UsageError if it cannot be a file."""
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
    return OutputPaths.of(output)


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """Like `paths_of`. Raises UsageError if it cannot be written, or would overwrite `source`, the input."""
    paths = paths_of(output)
    require_place(paths.output, "-o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the output would overwrite the input {source}", "choose another -o")
    return paths


def open_results(
    output: Path,
    fingerprint: JsonObject,
    kind: RowKind,
    rows: Iterable[tuple[Digest, int]],
    restart: bool = False,
    retry_failed: bool = False,
    notes: JsonObject | None = None,
) -> StoredResults:
    """Open the results of an output: new, resumed, or already complete.

    `fingerprint` holds everything the answers depend on, as JSON values by readable names. `notes` are saved beside,
    also of a complete result. `rows` are those of the input that are known: the digest of what each asks, and its
    number. `retry_failed` asks again for rows with an error or an undecided vote. `restart` discards finished rows, and
    replaces an existing output on completion. Raises UsageError for an unusable output path, BatchError if another
    process writes it, if it was made with another fingerprint, or if it has no row of this input.
    """
    paths, record = output_paths(output), Record(fingerprint, notes or {})
    partial = RowFile(paths.partial, is_discarded=restart)
    try:
        with output_errors(output):
            has_earlier = not restart and continues_output(paths, partial.header, record)
            earlier = list(rows_of_output(paths.output, kind.table)) if has_earlier else []
            before = None if restart else read_record(paths.meta)
        earlier_notes = before.notes if before and not before.how_other_differs(record) else {}
        record = replace(record, notes={**earlier_notes, **record.notes})
        results = StoredResults(paths, partial, record, kind, dict(earlier), retry_failed)
        results.add_rows(rows)
        results.require_rows_of_input()
        results.is_complete = not partial.rows and results.has_rows(earlier)
        if to_json(record.notes) != to_json(earlier_notes):
            results.save_notes()
    except BaseException:
        with closing(partial):
            if partial.header is None:
                remove(paths.partial)
        raise
    return results


def open_stream(write: Callable[[str], None], kind: RowKind, rows: Iterable[tuple[Digest, int]]) -> StreamedResults:
    """Results whose lines are written in the order of `rows`, and nowhere saved."""
    results = StreamedResults(kind, write)
    results.add_rows(rows)
    return results


def continues_output(paths: OutputPaths, header: JsonDict | None, record: Record) -> bool:
    """Whether the rows of an existing output are finished rows. Raises BatchError where answers would be mixed or lost.

    `header` is that of the partial file, if it has one.
    """
    if header is not None:
        if difference := Record(header["fingerprint"], record.notes).how_other_differs(record):
            raise BatchError(
                f"{paths.partial} was started with {difference}",
                "run the previous command to resume, or use --restart to start over",
            )
        if header["replaces"]:
            return False
    if not paths.output.exists():
        return False
    earlier = read_record(paths.meta)
    if earlier is None:
        raise BatchError(f"{paths.output} already exists", REPLACE)
    if difference := earlier.how_other_differs(record):
        raise BatchError(f"{paths.output} was made with {difference}", REPLACE)
    return True


def rows_of_output(output: Path, table: ResultTable | None) -> Iterator[tuple[Digest, tuple[int, int]]]:
    """Yield the digests of the rows of a complete output, each with its number and flags. Raises BatchError."""
    with output.open("rb") as file:
        keys = (Key.parse(object["key"]) for object in table.objects(file)) if table else map(key_of_line, file)
        try:
            for key in keys:
                yield key.digest, (key.number, key.flags)
        except DAMAGE as error:
            raise BatchError(
                f"{output} was changed by another program",
                "move it elsewhere, or use --restart to start over and replace it",
            ) from error


class StoredResults(Results):
    """`Results` on disk; create them with `open_results`. Not thread-safe. `notes` are stored beside the rows.

    `earlier` are the number and the flags of the rows of an existing output, which are copied once there is another
    row, or another order.
    """

    def __init__(
        self,
        paths: OutputPaths,
        partial: RowFile,
        record: Record,
        kind: RowKind,
        earlier: dict[Digest, tuple[int, int]],
        retry_failed: bool = False,
    ) -> None:
        super().__init__(kind)
        self.saved_in = paths.partial
        self.notes = record.notes
        self._paths = paths
        self._partial = partial
        self._fingerprint = record.fingerprint
        self._earlier = earlier
        self._retries = _TO_RETRY if retry_failed else 0
        self._digests: list[Digest] = []
        self._numbers = array("Q")
        self._asked: set[Digest] = set()  # empty for rows that were added at once, and are all different
        self._repeats: Counter[Digest] = Counter()  # after the first row that asks the same
        self._output_stamp = _stamp(paths.output)
        self._is_closed = False

    def add_rows(self, rows: Iterable[tuple[Digest, int]]) -> None:
        """Add the next rows of the input. Repeated questions get keys of their own, by their order."""
        first = len(self._digests)
        for digest, number in rows:
            self._digests.append(self._partial.shared(digest))
            self._numbers.append(number)
        self._tell_apart(first)
        self.finished.add_rows(self._flags_of(self._digests[first:]))

    def _tell_apart(self, first: int) -> None:
        """Give each row from the first on, of those that ask the same, another digest."""
        new = set(self._digests[first:])
        has_all = len(new) == len(self._digests) - first
        if first == 0 and has_all:  # most inputs are added whole
            return
        if not self._asked:
            self._asked = set(self._digests[:first])
        if has_all and new.isdisjoint(self._asked):
            self._asked |= new
            return
        for position in range(first, len(self._digests)):
            digest = self._digests[position]
            if digest in self._asked:
                self._repeats[digest] += 1
                self._digests[position] = digest_of(b"%s %d" % (digest, self._repeats[digest]))
            self._asked.add(digest)

    def _flags_of(self, digests: Sequence[Digest]) -> bytes:
        flags = bytearray(map(self._partial.rows.__contains__, digests))  # True is RowFlag.FINISHED
        if self._earlier or self._partial.flags:
            for at, digest in enumerate(digests):
                _, earlier = self._earlier.get(digest, (0, 0))
                found = self._partial.flags.get(digest, flags[at] or earlier)
                flags[at] = 0 if found & self._retries else found
        return bytes(flags)

    def has_rows(self, rows: Sequence[tuple[Digest, tuple[int, int]]]) -> bool:
        """Whether these rows, as `rows_of_output` yields them, are all that were added, finished and in their order."""
        found = [(digest, abs(number)) for digest, (number, _) in rows]
        return not self.missing_count and found == list(zip(self._digests, self._numbers, strict=True))

    @property
    def left_out(self) -> int:
        """Finished rows that the input no longer contains. They are dropped when the run completes."""
        return max(0, len(self._partial.rows.keys() | self._earlier.keys()) - self.size)

    def require_rows_of_input(self) -> None:
        """Raise BatchError if there are answers, and none is for a row of this input."""
        known = self._partial.rows or self._earlier
        if known and not any(digest in self._partial.rows or digest in self._earlier for digest in self._digests):
            source = self._paths.partial if self._partial.rows else self._paths.output
            raise BatchError(f"no answer in {source} belongs to this input", REPLACE)

    def save_notes(self) -> None:
        if self.is_complete:
            write_record(self._paths, Record(self._fingerprint, self.notes), (self.size, self.counts))
        elif self._partial.header is not None:
            write_record(self._paths, Record(self._fingerprint, self.notes))

    def sync(self) -> None:
        self._partial.sync_if_due()

    def complete(self) -> None:
        """Write the result file atomically, in the order of the input; nothing if it is complete.

        Raises ValueError while rows are missing, and BatchError if that fails or another program has changed the
        output; the partial file then has all rows, and the next run evaluates none.
        """
        super().complete()
        if self.is_complete:
            return
        self._begin()
        self._partial.sync()
        paths = self._paths
        with output_errors(paths.output), unfinished_file(paths.output, 0o666) as part:
            _write_lines(part.file, self._lines())
            write_record(paths, Record(self._fingerprint, self.notes), (self.size, self.counts))
            if _stamp(paths.output) != self._output_stamp:
                raise BatchError(f"{paths.output} was changed while the batch ran", "move it elsewhere")
            commit_file(part, paths.output)
        self.is_complete = True
        self.close()

    def close(self) -> None:
        """Release the lock. Finished rows stay; without any, no file is left. Raises BatchError."""
        if self._is_closed:
            return
        self._is_closed = True
        with closing(self._partial):
            if self.is_complete or not self._partial.rows:
                remove(self._paths.partial)
                fsync_directory(self._paths.partial.parent)
                if not self._paths.output.exists():
                    remove(self._paths.meta)
            else:
                self._partial.sync()

    def _save(self, position: int, object: JsonObject, flags: int, has_own_id: bool) -> None:
        self._begin()
        number = self._numbers[position]
        key = Key(-number if has_own_id else number, flags, self._digests[position])
        self._partial.append(keyed_line(object, key), key)

    def _begin(self) -> None:
        """Write what rows are made with, and copy those of an existing output."""
        if self._partial.header is None:
            self._partial.begin(self._fingerprint, replaces_output=not self._earlier and self._output_stamp is not None)
            write_record(self._paths, Record(self._fingerprint, self.notes))
        if not self._earlier:
            return
        with output_errors(self._paths.output), self._paths.output.open("rb") as file:
            for line in _keyed_lines(file, self.kind.table):
                key = key_of_line(line)
                if key.digest in self._earlier and key.digest not in self._partial.rows:
                    self._partial.append(line, key)
        self._earlier = {}

    def _lines(self) -> Iterator[bytes]:
        """The lines of the result, with the numbers that rows have now."""
        lines = self._renumbered(self._partial.lines(self._digests))
        return self.kind.table.lines(map(json.loads, lines)) if self.kind.table else lines

    def _renumbered(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line, number in zip(lines, self._numbers, strict=True):
            end = b"%d%s" % (number, ONLY_FINISHED)
            found = line[_NUMBER_AND_FLAGS]
            if found.endswith(end) and found[-len(end) - 1] in b'"-':
                yield line
                continue
            key = key_of_line(line)
            if abs(key.number) == number:
                yield line
            else:
                object = json.loads(line)
                del object["key"]
                if not (self.kind.table and self.kind.table.columns):  # the columns of an input have no number
                    object = _renumbered_object(object, key.number, number)
                yield keyed_line(object, key._replace(number=number if key.number >= 0 else -number))


def _keyed_lines(file: BinaryIO, table: ResultTable | None) -> Iterator[bytes]:
    if table is None:
        yield from file
        return
    for object in table.objects(file):
        key = Key.parse(object.pop("key"))
        yield keyed_line(object, key)


def _renumbered_object(object: JsonObject, number: int, new: int) -> JsonObject:
    """The object of a row that had another number, which is its line if it failed, and its id unless it has its own."""
    if RECORD in object:
        id, *rest = object[RECORD]
        return {RECORD: [new if id == str(number) else id, *rest]}
    values = {"line": new} if "line" in object else {}
    if number >= 0 and "id" in object:
        values["id"] = new
    return {**object, **values}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; None without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _write_lines(file: FileIO, lines: Iterable[bytes]) -> None:
    lines = iter(lines)
    for chunk in iter(lambda: b"".join(islice(lines, _WRITTEN_TOGETHER)), b""):
        write_all(file.fileno(), chunk)
