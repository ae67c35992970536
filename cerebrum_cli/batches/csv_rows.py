"""Read rows from a table: CSV (RFC 4180) or the same with tabs, with a header.

An unclosed quote swallows the records after it, so bad quoting is an error of the whole table. A record with too many
or too few fields is an error of its row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cerebrum_cli.batches.json_rows import ID_KEYS
from cerebrum_cli.batches.rows import InvalidRow, Row, RowId, invalid_row, prompt_row, require_prompt
from cerebrum_cli.batches.template import Template
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import well_formed

DEFAULT_COLUMN = "prompt"


def read_table(
    text: str, delimiter: str, column: str | None, template: Template | None, carry: bool = False
) -> list[Row]:
    """Read the rows of a table. Raises UsageError for bad quoting, and for a missing or duplicate column.

    The prompt is the value of `column` ("prompt" if None), or is rendered from the record by `template`.
    """
    before = csv.field_size_limit(max(len(text), 1))
    try:
        records = _records(text, delimiter)
        header = [name.strip() for name in next(records, [])]
        for name in template.fields if template else (column or DEFAULT_COLUMN,):
            _require_column(name, header, named=bool(template or column))
        rows = []
        for number, record in enumerate(records, 1):
            row = _row(number, record, header, column, template)
            rows.append(replace(row, input=dict(zip(header, record, strict=False))) if carry else row)
        return rows
    finally:
        csv.field_size_limit(before)


def _records(text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            message = f"invalid quoting in the input: {error} (record at line {line})"
            raise UsageError(message, 'double the quotes in a quoted field: "like ""this"""') from error
        if record is None:
            return
        if record:
            yield record


def _require_column(name: str, header: Sequence[str], named: bool) -> None:
    if header and header.count(name) != 1:
        problem = "no column" if name not in header else "more than one column"
        hint = f"the columns are: {', '.join(header)}"
        raise UsageError(f"the input has {problem} `{name}`", hint if named else f"name one with --column; {hint}")


def _row(number: int, record: list[str], header: list[str], column: str | None, template: Template | None) -> Row:
    fields = dict(zip(header, record, strict=False))
    id: RowId = well_formed(next(filter(None, map(fields.get, ID_KEYS)), "")) or number
    try:
        if len(record) != len(header):
            raise InvalidRow("invalid_record", f"the record has {len(record)} fields, but the header has {len(header)}")
        text = template.render(fields) if template else fields[column or DEFAULT_COLUMN]
        return prompt_row(number, id, require_prompt(text))
    except InvalidRow as invalid:
        return invalid_row(number, id, None, invalid)
