"""The files of a result as anything may read them, while another process may be writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.results.record import OutputPaths, Record, read_record
from cerebrum_cli.results.results import paths_of
from cerebrum_cli.results.row_file import header_of, read_lines
from cerebrum_cli.results.rows import CONDITIONS, DIGEST, Records


@frozen
class SavedResult:
    """The files of a result, complete or not."""

    paths: OutputPaths
    record: Record

    @property
    def conditions(self) -> Records:
        """Hardware and options of the machines that answered rows."""
        conditions: Records = self.record.notes.get(CONDITIONS, ())
        return conditions

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


def read_saved(output: Path) -> SavedResult | None:
    """The result at a path; None if there is no record of one. Raises UsageError, BatchError."""
    paths = paths_of(output)
    with translate_os_errors(BatchError, paths.meta):
        record = read_record(paths.meta)
    return SavedResult(paths, record) if record else None
