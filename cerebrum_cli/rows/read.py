"""Read the rows of an input from txt, jsonl, csv or tsv, in order, as they are needed; those of Parquet as jsonl.

A problem with one row becomes that row's error; UsageError is for problems with the whole input, such as bad quoting in
a table: an unclosed quote swallows the records after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import UNKNOWN_FIELD, InvalidRow, RowError, Template
from cerebrum_cli.core.text import Texts, enumeration
from cerebrum_cli.rows.input_file import STANDARD, InputFile
from cerebrum_cli.rows.json_rows import NO_OBJECT, read_json_row
from cerebrum_cli.rows.keys import Digest, digest_of
from cerebrum_cli.rows.output_tables import ANSWER_KEYS, DELIMITERS, PARQUET, ResultTable, table_for, table_type
from cerebrum_cli.rows.row import InputRow, RowOf, invalid_row, prompt_row
from cerebrum_cli.rows.table_rows import TableRows, open_table

if TYPE_CHECKING:
    from _typeshed import SupportsRead

Shape = Literal["txt", "jsonl", "csv", "tsv"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
HEAD_ROWS = 4096  # of a pipe that are read ahead, so that a small input is known before the first question
_ARRAY = re.compile(rb"\s*\[\s*(\{)?")  # how a JSON array begins, perhaps of objects
_TYPES: dict[str, Shape] = {shape: shape for shape in SHAPES} | dict.fromkeys(("ndjson", "json", PARQUET), "jsonl")
_TEXT_FIELDS = ("text", "prompt")  # names of a line of text in a template
CHAT = 'convert it to {"messages": [{"role": "user", "content": "..."}]}'
ONE_LINE = "put each object on a line of its own: jq -c . FILE > NEW.jsonl"
_TAB_NAMES = {"tab": "\t", r"\t": "\t"}

Record = tuple[int, Any]
"""A row that is not parsed: its number, and its line or fields."""


class Rows(Protocol):
    """The rows of an input as a run needs them, in order. They are read again, except those of a long pipe."""

    @property
    def is_whole(self) -> bool:
        """Whether `rereadable_records` are all."""

    @property
    def unit(self) -> str:
        """What a row's number counts."""

    def rereadable_records(self) -> Iterable[Record]:
        """The records that can be read more than once."""

    def records(self) -> Iterable[Record]:
        """All records, the unknown ones once."""

    def source_of(self, data: Any) -> Digest:
        """The digest of the text of a record."""

    def read(self, number: int, data: Any) -> InputRow:
        """The row of a record."""

    def require_unchanged(self) -> None:
        """Raise BatchError if the input has changed since it was opened."""


@frozen
class RowList:
    """Rows in memory, each with the digest of its text."""

    rows: tuple[tuple[Digest, InputRow], ...]
    unit: str = "line"

    is_whole = True

    def records(self) -> Iterator[Record]:
        return ((row.number, (source, row)) for source, row in self.rows)

    rereadable_records = records

    def source_of(self, data: tuple[Digest, InputRow]) -> Digest:
        return data[0]

    def read(self, number: int, data: tuple[Digest, InputRow]) -> InputRow:  # noqa: ARG002
        return data[1]

    def require_unchanged(self) -> None:
        """Rows in memory cannot change."""


@frozen
class LineRows:
    """The rows of an input that has one on each line; blank lines are skipped, and in txt those that begin with #."""

    shape: Shape
    template: Template | None
    has_settings: bool = True
    row_of: RowOf | None = None

    unit = "line"
    header = None
    source_of = staticmethod(digest_of)

    def records(self, lines: Iterator[bytes]) -> Iterator[Record]:
        """Yield the rows of the lines of a whole input."""
        skips_comments = self.shape == "txt"
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or (skips_comments and text.startswith(b"#")):
                continue
            if text[0] < 0x80 or line.decode(errors="replace").strip():  # there are other spaces, too
                yield number, line.rstrip(b"\r\n")

    def read(self, number: int, line: bytes) -> InputRow:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            id = read_json_row(number, line.decode(errors="replace"), None).id
            return invalid_row(number, id, None, InvalidRow(f"byte {error.start + 1} is not UTF-8", "invalid_utf8"))
        if self.shape == "jsonl":
            return read_json_row(number, text, self.template, self.has_settings, self.row_of)
        prompt = self.template.render(dict.fromkeys(_TEXT_FIELDS, text)) if self.template else text
        return prompt_row(number, number, prompt, text)


@frozen
class InputOptions:
    """How the rows of an input are read.

    `template` renders a prompt from the fields of each row; the field of a txt line is `text` or `prompt`. A csv has
    this `delimiter` if given, or else one that its header shows. `template_use` tells how to write a template, for an
    error. Without `has_settings`, keys of a row that are names of settings are fields like others. With `row_of`, that
    makes a row of its fields. `completed` adds to a row what follows from its input. `only` has digests of the rows to
    read, of their texts or of what they ask; None means all.
    """

    template: Template | None = None
    delimiter: str | None = None
    template_use: str = 'use --template "{NAME}"'
    has_settings: bool = True
    row_of: RowOf | None = None
    completed: Callable[[InputRow], InputRow] = lambda row: row
    only: Container[Digest] | None = None

    @contextmanager
    def open(self, source: Path, piped: SupportsRead[bytes] | None, output: Path = STANDARD) -> Iterator[Input]:
        """Open the rows of a file, or of what is `piped` in for `-`; at least one. Raises UsageError.

        Rows with fields include their input if the output is a table.
        """
        if source == STANDARD and piped is None:
            raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
        with InputFile(source, piped) as file:
            yield self.rows_of(file, source, output)

    def rows_of(self, file: InputFile, source: Path, output: Path = STANDARD) -> Input:
        shape = self.detect_shape(source, file.head)
        is_array = _ARRAY.match(file.head)
        if shape == "jsonl" and is_array and (is_array[1] or source.suffix.lower() == ".json"):
            problem = f"{file.name} is a JSON array, not an object on each line"
            raise UsageError(problem, "convert it: jq -c '.[]' ARRAY > ROWS.jsonl")
        copies_input = table_type(output) in DELIMITERS and shape != "txt"
        rows = Input(file, self._form(file, shape), self, copies_input)
        if next(iter(rows.rereadable_records()), None) is None:
            if self.only is not None:
                raise UsageError(f"no undecided row is in {file.name}", "name the input of the earlier output")
            if rows.form.header:
                raise UsageError("the input has a header, but no rows", "put one on each line below it")
            if self.row_of:
                raise UsageError("there are no questions", 'put one {"question": "...", "answer": "..."} on each line')
            raise UsageError("the input has no prompts", "put one on each line")
        if shape == "jsonl":
            rows.require_usable()
        return rows

    def detect_shape(self, source: Path, head: bytes) -> Shape:
        """The shape that the file name's suffix names, without that of gzip. Raises UsageError for an unknown one.

        Without a suffix (`-`, /dev/fd/63), an input whose `head` begins with a brace is jsonl, and any other is txt.
        """
        suffix = Path(source.name.lower().removesuffix(".gz")).suffix
        name = suffix.removeprefix(".")
        if name in _TYPES:
            return _TYPES[name]
        if name:
            raise UsageError(f"unknown input format {name!r}", f"name it .{', .'.join(SHAPES)} or .{PARQUET}")
        return "jsonl" if head.lstrip().startswith(b"{") else "txt"

    def _form(self, file: InputFile, shape: Shape) -> LineRows | TableRows:
        delimiter, template = _TAB_NAMES.get(self.delimiter or "", self.delimiter), self.template
        if delimiter is not None and len(delimiter) != 1:
            raise UsageError.invalid("--delimiter", delimiter, "one character, or tab")
        if shape == "txt" and template and (unknown := [name for name in template.fields if name not in _TEXT_FIELDS]):
            raise UsageError(f"a line of text has no field `{unknown[0]}`", f"use {{{_TEXT_FIELDS[0]}}}")
        if shape == "txt" and self.row_of:
            raise UsageError(f"{file.name} is text, without fields", "use .jsonl, .csv, .tsv or .parquet")
        if shape in DELIMITERS:
            hint = "" if template else f"{self.template_use}; "
            return open_table(file.head, shape, delimiter or DELIMITERS[shape], template, hint, self.row_of)
        if delimiter:
            raise UsageError(f"--delimiter does not apply to {shape}", "omit it")
        return LineRows(shape, template, self.has_settings, self.row_of)


def _reason(error: RowError) -> str:
    is_value = error.type == "invalid_json" or error.message == NO_OBJECT
    return "no object" if is_value else error.type


class Input:
    """The rows of an input, in order.

    A regular file is read from its start each time. A pipe is read once; its first HEAD_ROWS rows stay in memory.
    """

    def __init__(self, file: InputFile, form: LineRows | TableRows, options: InputOptions, copies_input: bool) -> None:
        self.form = form
        self.source_of = form.source_of
        self.require_unchanged = file.require_unchanged
        self._file = file
        self._options = options
        self._copies_input = copies_input
        self._head: list[Record] = []
        self._rest: Iterator[Record] | None = None
        if not file.is_file:
            self._rest = self._read_records()
            self._head = list(islice(self._rest, HEAD_ROWS))

    @property
    def unit(self) -> str:
        return self.form.unit

    @cached_property
    def columns(self) -> Texts | None:
        """The names of the fields of known rows: the header of a table, or the keys of JSON objects.

        None for lines of text, and for requests of messages, whose values a table does not hold.
        """
        if self.form.header or self.form.shape == "txt":
            return self.form.header
        columns: dict[str, None] = {}
        for _, row in self.rereadable_rows():
            if isinstance(row.input, dict):
                columns |= dict.fromkeys(row.input)
        return None if {"messages", "body"} & columns.keys() else tuple(columns)

    def require_usable(self) -> None:
        """Raise UsageError if no row of JSON can be asked, for one reason."""
        errors: list[RowError] = []
        first: InputRow | None = None
        for _, row in self.rereadable_rows():
            if row.error is None or (errors and _reason(row.error) != _reason(errors[0])):
                return
            first = first or row
            errors.append(row.error)
        assert first
        problem, _, more = errors[0].message.partition("; ")
        reason, is_asked = _reason(errors[0]), self._options.row_of is None
        if reason == "no object" and len(errors) > 1:
            problem = f"no line of {self._file.name} is a JSON object; line {first.number}: {problem}"
            raise UsageError(problem, ONE_LINE)
        if reason == UNKNOWN_FIELD and is_asked:
            raise UsageError(f"{problem} in any row", more)
        if reason == "no_prompt" and more and is_asked and isinstance(first.input, dict) and len(errors) > 1:
            texts = [name for name, value in first.input.items() if isinstance(value, str)]
            ways = [self._options.template_use.replace("NAME", name) for name in texts[:1]]
            problem = f"no row has a `prompt` or `messages`; {more}"
            raise UsageError(problem, enumeration([*ways, CHAT], "or"))

    def keep(self, digests: Container[Digest]) -> None:
        """Leave out the rows of other texts."""
        self._options = replace(self._options, only=digests)
        self._head = [(number, data) for number, data in self._head if self.source_of(data) in digests]

    @property
    def is_whole(self) -> bool:
        return self._file.is_file or len(self._head) < HEAD_ROWS

    def rereadable_records(self) -> Iterable[Record]:
        return self._read_records() if self._file.is_file else self._head

    def rereadable_rows(self) -> Iterator[tuple[Digest, InputRow]]:
        """Yield the rows that can be read more than once as they were read, each with the digest of its text."""
        return ((self.source_of(data), self.form.read(number, data)) for number, data in self.rereadable_records())

    def __iter__(self) -> Iterator[InputRow]:
        """Yield all rows."""
        for number, data in self.records():
            yield self.read(number, data)

    def records(self) -> Iterator[Record]:
        if self._file.is_file:
            yield from self._read_records()
            return
        yield from self._head
        if self.is_whole:
            return
        if self._rest is None:
            raise UsageError(f"{self._file.name} can be read only once", "save it as a file, and name that")
        rest, self._rest = self._rest, None
        yield from rest

    def _read_records(self) -> Iterator[Record]:
        records, only = self.form.records(self._file.lines()), self._options.only
        if only is None:
            return records
        return (
            (number, data)
            for number, data in records
            if self.source_of(data) in only or self._options.completed(self.form.read(number, data)).asked in only
        )

    def read(self, number: int, data: Any) -> InputRow:
        row = self._options.completed(self.form.read(number, data))
        return row if self._copies_input else replace(row, input=None)

    @property
    def fingerprint(self) -> JsonDict:
        """How the rows are read, by readable names."""
        template = self._options.template
        return {"input format": self.form.shape, "template": template and template.text}

    def table(self, output: Path, keys: Texts = ANSWER_KEYS, fields: Texts = ()) -> ResultTable | None:
        """The table that an output is by its name; None for JSON Lines. Raises UsageError.

        It has columns for the `fields` of an answer that is a JSON object, and for the `keys` of any answer.
        """
        return table_for(output, self.columns if table_type(output) else None, keys, fields)
