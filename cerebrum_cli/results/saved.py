"""The files of a result as anything may read them, while another process may be writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.results.output_tables import ANSWER_KEYS, COLUMNS, read_table, table_type
from cerebrum_cli.results.record import OutputPaths, Record, read_record
from cerebrum_cli.results.row_file import header_of, read_lines
from cerebrum_cli.results.rows import DIGEST, Key


@frozen
class SavedResult:
    """The files of a result, complete or not."""

    paths: OutputPaths
    record: Record

    @property
    def is_complete(self) -> bool:
        """Whether the output is the whole result."""
        return self.paths.output.exists() and not any(read_lines(self.paths.partial))

    def objects(self) -> Iterator[JsonDict]:
        """Yield the objects of the finished rows. Raises BatchError, and one of DAMAGE for a damaged file."""
        finished = {line[DIGEST]: line for line in read_lines(self.paths.partial)}  # the last, if it was asked again
        header = header_of(self.paths.partial)
        if self.paths.output.exists() and not (header and header["replaces"]):
            for object in self._output_objects():
                if Key.parse(object["key"]).digest not in finished:
                    yield object
        yield from map(json.loads, finished.values())

    def _output_objects(self) -> Iterator[JsonDict]:
        if table_type(self.paths.output):
            yield from read_table(self.paths.output, self.record.fingerprint.get(COLUMNS, ANSWER_KEYS))
            return
        with self.paths.output.open("rb") as lines:
            yield from map(json.loads, lines)


def read_saved(output: Path) -> SavedResult | None:
    """The result at a path; None if there is no record of one. Raises BatchError."""
    paths = OutputPaths.of(output)
    with translate_os_errors(BatchError, paths.meta):
        record = read_record(paths.meta)
    return SavedResult(paths, record) if record else None
