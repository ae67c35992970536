"""Runs of an evaluation as files: what is read of them while another process may write them, and new scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.differences import Differences
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import atomic_write, remove, remove_abandoned, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.results.record import OutputPaths, Record, read_record, write_record
from cerebrum_cli.results.results import continues_output, output_paths, paths_of
from cerebrum_cli.results.row_file import RowFile, header_of, read_lines
from cerebrum_cli.results.rows import CONDITIONS, DIGEST, SERVERS, Key, Records, keyed_line

AGAIN = ", then run it again"


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
        """Whether the output is the whole result."""
        return self.paths.output.exists() and not any(read_lines(self.paths.partial))

    def objects(self) -> Iterator[JsonDict]:
        """Yield the objects of the finished rows. Raises BatchError, and one of DAMAGE for a damaged file."""
        partial = list(read_lines(self.paths.partial))
        finished = {line[DIGEST] for line in partial}
        header = header_of(self.paths.partial)
        if self.paths.output.exists() and not (header and header["replaces"]):
            with self.paths.output.open("rb") as lines:
                yield from (json.loads(line) for line in lines if line[DIGEST] not in finished)
        yield from map(json.loads, partial)

    def how_differs(self, fingerprint: JsonObject) -> str:
        """Describe how another fingerprint differs, like "other settings: top_k (1, now 2)"; empty if equal."""
        return self.record.how_other_differs(Record(fingerprint))

    def differences(self, other: SavedResult) -> Differences:
        """Differences between what two results depend on."""
        return self.record.differences(other.record)

    @contextmanager
    def locked(self) -> Iterator[RowFile]:
        """Lock the files. Raises BatchError if a process is writing them, and in place of an OSError."""
        paths = self.paths
        with (
            translate_os_errors(BatchError, paths.output, AGAIN),
            closing(RowFile(paths.partial, if_busy="wait until it has ended")) as partial,
        ):
            try:
                yield partial
            finally:
                if not partial.rows:
                    remove(paths.partial)

    def rewrite(self, partial: RowFile, objects: Iterable[JsonObject], rules: str, value: str) -> None:
        """Replace the objects of all rows, and a `value` of the fingerprint, named `rules`, by which they are made.

        It is None until they are replaced: a process that dies in between leaves all old objects or all new ones.
        """
        record = replace(self.record, fingerprint={**self.record.fingerprint, rules: None})
        keys = [Key.parse(object["key"]) for object in self.objects()]
        lines = [keyed_line(object, key) for object, key in zip(objects, keys, strict=True)]
        write_record(self.paths, record, then=AGAIN)
        fingerprint = {**record.fingerprint, rules: value}
        path = self.paths.output
        if partial.header is not None:
            path = self.paths.partial
            lines.insert(0, f"{to_json({**partial.header, 'fingerprint': fingerprint})}\n".encode())
        atomic_write(path, b"".join(lines), mode=0o666)
        write_record(self.paths, replace(record, fingerprint=fingerprint), then=AGAIN)

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


def keeps_rows(output: Path, fingerprint: JsonObject) -> bool:
    """Whether `open_results` would keep the rows of an earlier run. Raises UsageError, BatchError where it does."""
    if not output.parent.is_dir():
        return False
    paths = output_paths(output)
    header = header_of(paths.partial)
    return continues_output(paths, header, Record(fingerprint)) or header is not None
