"""Tables with a header as inputs: CSV (RFC 4180), or the same with another delimiter."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from cerebrum_cli.batch.input_file import MAX_LINE_BYTES, InputFile
from cerebrum_cli.batch.input_row import InputRow, invalid_row, prompt_row
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.row_fields import InvalidRow, Template, own_id
from cerebrum_cli.core.text import Texts, format_count

_PROMPT_COLUMN = Template("{prompt}", ("prompt",))


@frozen
class TableRows:
    """The rows of a table with a header: CSV (RFC 4180), or the same with another delimiter.

    `columns` are the positions of the columns in `header`, among `width` of them: those without a name and without
    values are left out. The prompt is rendered from the record by `template`. A record with too many or too few fields
    is an error of its row.
    """

    shape: str
    delimiter: str
    header: Texts
    columns: Sequence[int]
    width: int
    template: Template

    unit = "record"

    def find(self, lines: Iterable[bytes], start: int) -> Iterator[int]:
        """Yield the offsets of the rows as `LineRows.find` does. Raises UsageError for bad quoting."""
        for offset, _ in islice(_records(lines, self.delimiter, start), 1, None):  # without the header
            yield offset

    def read(self, number: int, lines: Iterable[bytes]) -> InputRow:
        _, record = next(_records(lines, self.delimiter))
        fields = {
            name: record[column] for name, column in zip(self.header, self.columns, strict=True) if column < len(record)
        }
        id = own_id(fields, number)
        try:
            if not self.columns[-1] < len(record) <= self.width:
                raise InvalidRow(
                    f"it has {format_count(len(record), 'field')}, but the header has {self.width}",
                    "invalid_record",
                )
            return prompt_row(number, id, self.template.render(fields), fields)
        except InvalidRow as invalid:
            return invalid_row(number, id, None, invalid, fields)


def open_table(
    source: InputFile, shape: str, delimiters: Sequence[str], template: Template | None, hint: str = ""
) -> TableRows:
    """Open a table with the delimiter that separates the columns with prompts from others.

    Raises UsageError, which begins with this hint if one of these columns is missing.
    """
    first_line = source.head.partition(b"\n")[0].decode(errors="replace")
    problems = []
    for delimiter in sorted(delimiters, key=first_line.count, reverse=True):
        try:
            return _open_table(source, shape, delimiter, template or _PROMPT_COLUMN, hint)
        except UsageError as problem:
            problems.append(problem)
    raise problems[0]


def _open_table(source: InputFile, shape: str, delimiter: str, template: Template, hint: str) -> TableRows:
    _, record = next(_records(source.lines(source.start), delimiter), (0, []))
    header = tuple(name.strip() for name in record)
    for name in template.fields:
        if header and name not in header:
            raise UsageError(f"the input has no column `{name}`", f"{hint}the columns are: {', '.join(header)}")
    if repeated := [name for name, count in Counter(header).items() if name and count > 1]:
        names = ", ".join(f"`{name}`" for name in repeated)
        raise UsageError(f"the input has more than one column {names}", "rename or remove all but one of them")
    columns: Sequence[int] = range(len(header))
    if "" in header:
        records = _records(source.lines(source.start), delimiter)
        columns = _columns_to_read(header, (record for _, record in records))
    return TableRows(shape, delimiter, tuple(header[column] for column in columns), columns, len(header), template)


def _columns_to_read(header: Texts, records: Iterable[Sequence[str]]) -> Sequence[int]:
    """The positions of the columns that have a name or values: spreadsheets also write columns that have neither.

    Raises UsageError for several with values, but without names.
    """
    nameless = {column for column, name in enumerate(header) if not name}
    with_values = {
        column for record in records for column in nameless.intersection(range(len(record))) if record[column].strip()
    }
    if len(with_values) > 1:
        numbers = ", ".join(str(column + 1) for column in sorted(with_values))
        raise UsageError(f"several columns have values, but no name: {numbers}", "name them in the first line")
    return [column for column in range(len(header)) if column not in nameless - with_values]


def _records(lines: Iterable[bytes], delimiter: str, start: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, each with the offset at which it begins."""
    csv.field_size_limit(MAX_LINE_BYTES)  # of an unclosed quote, the rest of the input would be a field
    end = start  # offset behind the lines that the reader has taken

    def taken() -> Iterator[str]:
        nonlocal end
        for number, line in enumerate(lines, 1):
            end += len(line) + 1
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as error:
                raise UsageError(f"the input is not UTF-8 text (line {number})", "convert it to UTF-8") from error

    offset, line = start, 1  # of the record that is read
    reader = csv.reader(taken(), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if record:
                yield offset, record
            offset, line = end, reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"invalid quoting in the input: {error} (row at line {line})",
            'double the quotes in a quoted field: "like ""this"""',
        ) from error
