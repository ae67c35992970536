"""Tables with a header as inputs: CSV (RFC 4180), or the same with another delimiter."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import to_json
from cerebrum_cli.core.row_fields import InvalidRow, Template, own_id
from cerebrum_cli.core.text import Texts, format_count
from cerebrum_cli.rows.keys import Digest, digest_of
from cerebrum_cli.rows.output_tables import MAX_FIELD_BYTES
from cerebrum_cli.rows.row import Cells, InputRow, RowOf, invalid_row, prompt_row

_PROMPT_COLUMN = Template("{prompt}", ("prompt",))
_DELIMITER_LINE = re.compile(rb"sep=(.)\r?\n")  # with which Excel begins a table


@frozen
class TableRows:
    """The rows of a table with a header: CSV (RFC 4180), or the same with another delimiter.

    `columns` are the positions of the columns in `header`, among `width` of them: those without a name are left out,
    except the first one, which is an index as pandas writes it. The prompt is rendered from the record by `template`. A
    record with too many or too few fields, or with a value that has no name, is an error of its row. `row_of` makes a
    row of the fields that have a value, instead of the template.
    """

    shape: str
    delimiter: str
    header: Texts
    columns: Sequence[int]
    width: int
    template: Template
    row_of: RowOf | None = None

    unit = "record"

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[int, Any]]:
        """Yield the rows of the lines of a whole input. Raises UsageError for bad quoting."""
        records = _records(lines, self.delimiter)
        next(records, None)  # the header
        yield from enumerate(records, 1)

    def source_of(self, record: Sequence[str]) -> Digest:
        return digest_of(to_json([self.header, record]).encode())

    def read(self, number: int, record: Sequence[str]) -> InputRow:
        cells = zip(self.header, self.columns, strict=True)
        fields = Cells({name: record[column] for name, column in cells if column < len(record)})
        id = own_id(fields, number)
        try:
            if not self.columns[-1] < len(record) <= self.width:
                raise InvalidRow(
                    f"it has {format_count(len(record), 'field')}, but the header has {self.width}",
                    "invalid_record",
                )
            for column, value in enumerate(record):
                if value.strip() and column not in self.columns:
                    raise InvalidRow(f"column {column + 1} has a value, but no name", "invalid_record")
            if self.row_of:
                filled = Cells({name: value for name, value in fields.items() if value})
                return replace(self.row_of(number, id, filled), input=fields)
            return prompt_row(number, id, self.template.render(fields), fields)
        except InvalidRow as invalid:
            return invalid_row(number, id, None, invalid, fields)


def open_table(
    head: bytes,
    shape: str,
    delimiters: Sequence[str],
    template: Template | None,
    hint: str = "",
    row_of: RowOf | None = None,
) -> TableRows:
    """The table that begins with `head`, with the delimiter that separates the columns with prompts from others.

    Raises UsageError, which begins with this hint if one of these columns is missing.
    """
    if declared := _DELIMITER_LINE.match(head):
        head, delimiters = head[declared.end() :], declared[1].decode(errors="replace")
    first_line = head.partition(b"\n")[0].decode(errors="replace")
    problems = []
    for delimiter in sorted(delimiters, key=first_line.count, reverse=True):
        try:
            return _open_table(head, shape, delimiter, template, hint, row_of)
        except UsageError as problem:
            problems.append(problem)
    raise problems[0]


def _open_table(
    head: bytes, shape: str, delimiter: str, template: Template | None, hint: str, row_of: RowOf | None
) -> TableRows:
    template = template or _PROMPT_COLUMN
    names = [name.strip() for name in next(_records(head.splitlines(keepends=True), delimiter), [])]
    columns = [column for column, name in enumerate(names) if name or column == 0]
    header = tuple(names[column] for column in columns)
    for name in () if row_of else template.fields:
        if header and name not in header:
            raise UsageError(f"the input has no column `{name}`", f"{hint}the columns are: {', '.join(names)}")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        names = [f"`{name}`" for name in repeated]
        raise UsageError(
            f"the input has more than one column {', '.join(names)}", "rename or remove all but one of them"
        )
    return TableRows(shape, delimiter, header, columns, len(names), template, row_of)


def _records(lines: Iterable[bytes], delimiter: str) -> Iterator[list[str]]:
    """Yield the records that are not blank, without a line that only names the delimiter."""
    csv.field_size_limit(MAX_FIELD_BYTES)
    line = 1  # of the record that is read
    reader = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if record:
                yield record
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"invalid quoting in the input: {error} (row at line {line})",
            'double the quotes in a quoted field: "like ""this"""',
        ) from error


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if number == 1 and _DELIMITER_LINE.fullmatch(line):
            continue
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"the input is not UTF-8 text (line {number})", "convert it to UTF-8") from error
