"""The files of a result as anything may read them, while another process may be writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.rows.file import read_row_file
from cerebrum_cli.rows.keys import Key, key_of_line, settings_check
from cerebrum_cli.rows.output_tables import ANSWER_KEYS, COLUMNS, DELIMITERS, INPUT, ResultTable, table_type
from cerebrum_cli.rows.record import OutputPaths, Record, read_record


@frozen
class SavedResult:
    """A result: the `lines` of the finished rows of one in progress, or else the output."""

    paths: OutputPaths
    record: Record
    lines: Sequence[bytes] | None

    @property
    def is_complete(self) -> bool:
        return self.lines is None and self.paths.output.exists()

    def rows(self) -> Iterator[tuple[JsonDict, Key]]:
        """Yield the objects of the finished rows, with their keys; those of a table have text.

        Raises OSError, and one of DAMAGE for a damaged file.
        """
        for number, (object, key) in enumerate(self._rows(), 1):
            input = object.get(INPUT)
            columns = input if isinstance(input, dict) else {}
            yield {"id": columns.get("id", number), "prompt": "", **object}, key

    def _rows(self) -> Iterator[tuple[JsonDict, Key]]:
        check = settings_check(self.record.fingerprint)
        if self.lines is not None:
            yield from ((json.loads(line), key_of_line(line, check)) for line in self.lines)
            return
        with self.paths.output.open("rb") as file:
            if name := table_type(self.paths.output):
                keys = tuple(self.record.fingerprint.get(COLUMNS, ANSWER_KEYS))
                yield from ResultTable(DELIMITERS[name][0], (INPUT,), keys).read(file, check)
                return
            for line in file:
                yield json.loads(line), key_of_line(line, check)


def read_saved(output: Path) -> SavedResult | None:
    """The result at a path, the one in progress if there is one; None without any. Raises BatchError."""
    paths = OutputPaths.of(output)
    with translate_os_errors(BatchError, paths.partial):
        if in_progress := read_row_file(paths.partial):
            return SavedResult(paths, *in_progress)
    with translate_os_errors(BatchError, paths.meta):
        record = read_record(paths.meta)
    return SavedResult(paths, record, None) if record else None
