"""Read the rows of a batch from txt, jsonl, csv or tsv, in order, as they are needed; those of Parquet as jsonl.

A problem with one row becomes that row's error; UsageError is for problems with the whole input, such as bad quoting in
a table: an unclosed quote swallows the records after it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from io import BufferedReader, FileIO, RawIOBase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from cerebrum_cli.batch.input_row import InputRow, invalid_row, name_row, prompt_row, row_flags
from cerebrum_cli.batch.json_rows import read_json_row
from cerebrum_cli.batch.table_rows import TableRows, open_table
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import UNKNOWN_FIELD, InvalidRow, Template
from cerebrum_cli.core.text import Texts, format_size
from cerebrum_cli.results.output_tables import ANSWER_KEYS, DELIMITERS, PARQUET, table_for, table_type
from cerebrum_cli.results.rows import Digest, RowKind, digest_of

if TYPE_CHECKING:
    from _typeshed import SupportsRead, WriteableBuffer

    from cerebrum_cli.results.rows import Results

Shape = Literal["txt", "jsonl", "csv", "tsv"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
STANDARD = Path("-")  # standard input or output
HEAD_ROWS = 4096  # of an input that is read only once: a small one is known before anything is asked
MAX_LINE_BYTES = 64_000_000
BOM = b"\xef\xbb\xbf"
_ARRAY = re.compile(rb"\s*\[\s*\{")  # how a JSON array of objects begins
_BUFFER = 1 << 16
_TYPES: dict[str, Shape] = {shape: shape for shape in SHAPES} | {"ndjson": "jsonl", PARQUET: "jsonl"}  # of files
_TEXT_FIELDS = ("text", "prompt")  # names of a line of text in a template
_TAB_NAMES = {"tab": "\t", r"\t": "\t"}

Record = tuple[int, Any]
"""A row that is not parsed: its number, and its line or fields."""


@frozen
class LineRows:
    """The rows of an input that has one on each line; blank lines are skipped, and in txt those that begin with #."""

    shape: Shape
    template: Template | None
    has_settings: bool = True

    unit = "line"
    header = None
    digest = staticmethod(digest_of)

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
            return read_json_row(number, text, self.template, self.has_settings)
        prompt = self.template.render(dict.fromkeys(_TEXT_FIELDS, text)) if self.template else text
        return prompt_row(number, number, prompt, text)


@frozen
class InputOptions:
    """How the rows of an input are read.

    `template` renders a prompt from the fields of each row; the field of a txt line is `text` or `prompt`. With
    `include_input`, each row has its `input`: text, a JSON value, or fields. A csv has this `delimiter` if given, or
    else one that its header shows. `template_use` tells how to write a template, for an error. Without `has_settings`,
    keys of a row that are names of settings are fields like others. `only` has the digests of the rows to read; None
    means all.
    """

    template: Template | None = None
    delimiter: str | None = None
    include_input: bool = False
    template_use: str = 'use --template "{NAME}"'
    has_settings: bool = True
    only: Container[Digest] | None = None

    @contextmanager
    def open(self, source: Path, piped: SupportsRead[bytes] | None, output: Path) -> Iterator[BatchInput]:
        """Open the rows of a file, or of what is `piped` in for `-`; at least one. Raises UsageError.

        Rows with fields include their input if the output is a table.
        """
        copies_columns = table_type(output) in DELIMITERS
        if source == STANDARD and piped is None:
            raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
        with InputFile(source, piped) as file:
            shape = self.detect_shape(source, file.head)
            if shape == "jsonl" and _ARRAY.match(file.head.removeprefix(BOM)):
                problem = f"{file.name} is a JSON array, not an object on each line"
                raise UsageError(problem, "convert it: jq -c '.[]' ARRAY > ROWS.jsonl")
            includes_input = self.include_input or (copies_columns and shape != "txt")
            rows = BatchInput(file, self._form(file, shape), replace(self, include_input=includes_input))
            if next(rows.known_rows(), None) is None:
                if self.only is not None:
                    raise UsageError(f"no undecided row is in {file.name}", "name the input of the earlier output")
                if rows.form.header:
                    raise UsageError("the input has a header, but no rows", "put one on each line below it")
                raise UsageError("the input has no prompts", "put one on each line")
            if shape == "jsonl" and self.template:
                rows.require_fields()
            yield rows

    def detect_shape(self, source: Path, head: bytes) -> Shape:
        """The shape that the file name's suffix names. Raises UsageError for an unknown one.

        Without a suffix (`-`, /dev/fd/63), an input whose `head` begins with a brace is jsonl, and any other is txt.
        """
        name = source.suffix.lower().removeprefix(".")
        if name in _TYPES:
            return _TYPES[name]
        if name:
            raise UsageError(f"unknown input format {name!r}", f"name it .{', .'.join(SHAPES)} or .{PARQUET}")
        return "jsonl" if head.removeprefix(BOM).lstrip().startswith(b"{") else "txt"

    def _form(self, file: InputFile, shape: Shape) -> LineRows | TableRows:
        delimiter, template = _TAB_NAMES.get(self.delimiter or "", self.delimiter), self.template
        if delimiter is not None and len(delimiter) != 1:
            raise UsageError.invalid("--delimiter", delimiter, "one character, or tab")
        if b"\0" in file.head:
            hint = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
            raise UsageError("the input is not UTF-8: it has NUL bytes", hint)
        if shape == "txt" and template and (unknown := [name for name in template.fields if name not in _TEXT_FIELDS]):
            raise UsageError(f"a line of text has no field `{unknown[0]}`", f"use {{{_TEXT_FIELDS[0]}}}")
        if shape in DELIMITERS:
            hint = "" if template else f"{self.template_use}; "
            return open_table(file.head.removeprefix(BOM), shape, delimiter or DELIMITERS[shape], template, hint)
        if delimiter:
            raise UsageError(f"--delimiter does not apply to {shape}", "omit it")
        return LineRows(shape, template, self.has_settings)


class InputFile:
    """An open input. The lines of a regular file can be read repeatedly, those of a pipe only once.

    `head` is its first part, without consuming it. The rows of a Parquet file are read as lines of JSON.
    """

    def __init__(self, source: Path, piped: SupportsRead[bytes] | None = None, name: str = "") -> None:
        self.name = name or ("standard input" if source == STANDARD else str(source))
        if source == STANDARD and piped is not None:
            raw: RawIOBase = _Piped(piped)
        else:
            with readable(source):
                raw = FileIO(source)
        self._file = BufferedReader(raw, _BUFFER)
        self._is_parquet = source.suffix.lower() == f".{PARQUET}"
        self._stamp = self._current_stamp()
        self.head = b"" if self._is_parquet else self._file.peek(_BUFFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_file(self) -> bool:
        return self._stamp is not None

    def lines(self, hint: str = "check the file, or write its values as text") -> Iterator[bytes]:
        """Yield the lines, from the first on if it is a file.

        Raises UsageError for a line that is too long, and, with the hint, for a damaged Parquet file.
        """
        if self._is_parquet:
            from cerebrum_cli.batch.parquet import json_lines

            yield from json_lines(self._file, self.name, hint)
            return
        if self.is_file:
            self._file.seek(0)
        line = self._file.readline(MAX_LINE_BYTES + 1).removeprefix(BOM)
        while line:
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                problem = f"{self.name} has a line that is larger than {format_size(MAX_LINE_BYTES)}"
                raise UsageError(problem, "shorten it")
            yield line
            line = self._file.readline(MAX_LINE_BYTES + 1)

    def require_unchanged(self) -> None:
        """Raise BatchError if the file has changed since it was opened; what was read before is good."""
        if self._current_stamp() != self._stamp:
            raise BatchError(f"{self.name} was changed while the batch ran", "unchanged rows keep their answers")

    def _current_stamp(self) -> tuple[int, int] | None:
        """What changes with the file; None if it is no file."""
        if not isinstance(self._file.raw, FileIO):
            return None
        status = os.fstat(self._file.fileno())
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


class _Piped(RawIOBase):
    """What is piped in, for a reader with a buffer."""

    def __init__(self, piped: SupportsRead[bytes]) -> None:
        self._piped = piped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._piped.read(len(view))
        view[: len(data)] = data
        return len(data)


class BatchInput:
    """The rows of an input, in order.

    Each method reads a regular file from its start. A pipe is read once; its first HEAD_ROWS rows stay in memory.
    """

    def __init__(self, file: InputFile, form: LineRows | TableRows, options: InputOptions) -> None:
        self.form = form
        self._file = file
        self._options = options
        self._head: list[Record] = []
        self._rest: Iterator[Record] | None = None
        if not file.is_file:
            self._rest = self._read_records()
            self._head = list(islice(self._rest, HEAD_ROWS))

    @cached_property
    def columns(self) -> Texts | None:
        """The names of the fields of known rows: the header of a table, or the keys of JSON objects.

        None for lines of text, and for requests of messages, whose values a table does not hold.
        """
        if self.form.header or self.form.shape == "txt":
            return self.form.header
        columns: dict[str, None] = {}
        for row in self._known():
            if isinstance(row.input, dict):
                columns |= dict.fromkeys(row.input)
        return None if {"messages", "body"} & columns.keys() else tuple(columns)

    def require_fields(self) -> None:
        """Raise UsageError if all known rows lack fields of the template."""
        errors = []
        for row in self._known():
            if row.error is None or row.error.type != UNKNOWN_FIELD:
                return
            errors.append(row.error.message)
        problem, _, hint = errors[0].partition("; ")
        raise UsageError(f"{problem} in any row", hint)

    def keep(self, digests: Container[Digest]) -> None:
        """Leave out the rows with other digests."""
        self._options = replace(self._options, only=digests)
        self._head = [(number, data) for number, data in self._head if self.form.digest(data) in digests]

    @property
    def is_whole(self) -> bool:
        """Whether `known_rows` are all."""
        return self._file.is_file or len(self._head) < HEAD_ROWS

    def known_rows(self) -> Iterator[tuple[Digest, int]]:
        """Yield the digests of the rows that can be read more than once, each with its number in the input."""
        digest = self.form.digest
        for number, data in self._known_records():
            yield digest(data), number
        self._file.require_unchanged()

    def _known_records(self) -> Iterable[Record]:
        return self._read_records() if self._file.is_file else self._head

    def _known(self) -> Iterator[InputRow]:
        return (self.form.read(number, data) for number, data in self._known_records())

    def missing_rows(self, results: Results) -> Iterator[tuple[int, InputRow]]:
        """Yield the rows that results lack, by position; rows that are read only once are added to these.

        Raises BatchError if the file has changed.
        """
        flags = results.finished.flags
        for position, (number, data) in enumerate(self._records()):
            if position == len(flags):
                results.add_rows([(self.form.digest(data), number)])
            if not flags[position]:
                self._file.require_unchanged()
                yield position, self._read(number, data)
        results.has_more = False

    def __iter__(self) -> Iterator[InputRow]:
        """Yield all rows."""
        for number, data in self._records():
            yield self._read(number, data)

    def _records(self) -> Iterator[Record]:
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
        only = self._options.only
        for number, data in self.form.records(self._file.lines()):
            if only is None or self.form.digest(data) in only:
                yield number, data

    def _read(self, number: int, data: Any) -> InputRow:
        row = self.form.read(number, data)
        return row if self._options.include_input else replace(row, input=None)

    @property
    def fingerprint(self) -> JsonDict:
        """How the rows are read, by readable names."""
        template = self._options.template
        return {"input format": self.form.shape, "template": template and template.text}

    def kind_for(self, output: Path, keys: Texts = ANSWER_KEYS, fields: Texts = ()) -> RowKind:
        """The rows of a result, which is a table or JSON Lines by the name of its file. Raises UsageError.

        A table has columns for the `fields` of an answer that is a JSON object, and for the `keys` of any answer.
        """
        columns = self.columns if table_type(output) else None
        return RowKind(row_flags, partial(name_row, self.form.unit), table_for(output, columns, keys, fields))
