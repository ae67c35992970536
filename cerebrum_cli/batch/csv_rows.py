"""Read rows from a table: CSV (RFC 4180) or the same with tabs, with a header.

An unclosed quote swallows the records after it, so bad quoting is an error of the whole table. A record with too many
or too few fields is an error of its row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from cerebrum_cli.batch.json_rows import ID_KEYS
from cerebrum_cli.batch.rows import InvalidRow, Row, RowId, Template, invalid_row, prompt_row, require_prompt
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import well_formed

MAX_LINE_BYTES = 16_000_000
PROMPT_COLUMN = "prompt"


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table with a header.

    The prompt is in the column `prompt`, or is rendered from the record by `template`.
    """

    delimiter: str
    header: Sequence[str]
    template: Template | None
    include_input: bool

    def find(self, lines: Iterable[bytes], start: int) -> Iterator[int]:
        """Yield the offsets of the rows in a whole input that begins at `start`. Raises UsageError for bad quoting."""
        records = _records(lines, self.delimiter, start)
        next(records, None)  # the header
        for offset, _ in records:
            yield offset

    def read(self, number: int, lines: Iterable[bytes]) -> Row:
        """Read the row that begins with the first of some lines."""
        with closing(_records(lines, self.delimiter)) as records:
            _, record = next(records)
        row = self._row(number, record)
        return replace(row, input=dict(zip(self.header, record, strict=False))) if self.include_input else row

    def _row(self, number: int, record: list[str]) -> Row:
        fields = dict(zip(self.header, record, strict=False))
        id: RowId = well_formed(next(filter(None, map(fields.get, ID_KEYS)), "")) or number
        try:
            if len(record) != len(self.header):
                problem = f"the record has {len(record)} fields, but the header has {len(self.header)}"
                raise InvalidRow("invalid_record", problem)
            text = self.template.render(fields) if self.template else fields[PROMPT_COLUMN]
            return prompt_row(number, id, require_prompt(text))
        except InvalidRow as invalid:
            return invalid_row(number, id, None, invalid)


def open_table(lines: Iterable[bytes], delimiter: str, template: Template | None, include_input: bool) -> TableRows:
    """Read the header of a table. Raises UsageError for bad quoting, and for a missing or duplicate column."""
    with closing(_records(lines, delimiter)) as records:
        _, record = next(records, (0, []))
    header = [name.strip() for name in record]
    for name in template.fields if template else (PROMPT_COLUMN,):
        _require_column(name, header, has_template=template is not None)
    return TableRows(delimiter, header, template, include_input)


def _require_column(name: str, header: Sequence[str], has_template: bool) -> None:
    if header and header.count(name) != 1:
        problem = "no column" if name not in header else "more than one column"
        hint = f"the columns are: {', '.join(header)}"
        raise UsageError(
            f"the input has {problem} `{name}`", hint if has_template else f'use --template "{{NAME}}"; {hint}'
        )


class _TextLines:
    """The lines of a table as text, and the offset behind those taken so far."""

    def __init__(self, lines: Iterable[bytes], offset: int) -> None:
        self.offset = offset
        self._lines = _decoded(lines)

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        text = next(self._lines)
        self.offset += len(text) if text.isascii() else len(text.encode())
        return text


def _records(lines: Iterable[bytes], delimiter: str, start: int = 0) -> Generator[tuple[int, list[str]], None, None]:
    """Yield the records that are not blank, each with the offset at which it begins."""
    before = csv.field_size_limit(MAX_LINE_BYTES)  # of an unclosed quote, the rest of the input would be a field
    try:
        text = _TextLines(lines, start)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            offset, line = text.offset, reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                message = f"invalid quoting in the input: {error} (record at line {line})"
                raise UsageError(message, 'double the quotes in a quoted field: "like ""this"""') from error
            if record is None:
                return
            if record:
                yield offset, record
    finally:
        csv.field_size_limit(before)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield lines with their ends; a carriage return ends one, too."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode() + "\n"
        except UnicodeDecodeError as error:
            raise UsageError(f"the input is not UTF-8 text (line {number})", "convert it to UTF-8") from error
        if text.find("\r", 0, -2) < 0:
            yield text
        else:
            yield from io.StringIO(text, newline="")
