"""Read the rows of a batch from txt, jsonl, csv or tsv, each when it is asked for; those of Parquet as jsonl.

A problem with one row becomes that row's error; UsageError is for problems with the whole input, such as bad quoting in
a table: an unclosed quote swallows the records after it.
"""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cerebrum_cli.batch.input_file import BOM, InputFile, chunks, spool_input
from cerebrum_cli.batch.input_row import InputRow, invalid_row, prompt_row, result_rows
from cerebrum_cli.batch.json_rows import read_json_row
from cerebrum_cli.batch.output_tables import ANSWER_KEYS, DELIMITERS, PARQUET, table_for, table_type
from cerebrum_cli.batch.table_rows import TableRows, open_table
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import InvalidRow, Template
from cerebrum_cli.core.text import Texts
from cerebrum_cli.results.rows import ResultRows

if TYPE_CHECKING:
    from _typeshed import SupportsRead

Shape = Literal["txt", "jsonl", "csv", "tsv"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
STANDARD = Path("-")  # standard input or output
_TYPES: dict[str, Shape] = {shape: shape for shape in SHAPES} | {"ndjson": "jsonl", PARQUET: "jsonl"}  # of files
_TEXT_FIELDS = ("text", "prompt")  # names of a line of text in a template
_TAB_NAMES = {"tab": "\t", r"\t": "\t"}


@frozen
class LineRows:
    """The rows of an input that has one on each line; blank lines are skipped, and in txt those that begin with #."""

    shape: Shape
    template: Template | None
    has_settings: bool = True

    unit = "line"
    header = None

    def find(self, lines: Iterable[bytes], start: int) -> Iterator[int | None]:
        """Yield the offset of each row in a whole input that begins at `start`, and None for each line skipped."""
        for line in lines:
            text = line.decode(errors="replace").strip()
            is_comment = self.shape == "txt" and text.startswith("#")
            yield start if text and not is_comment else None
            start += len(line) + 1

    def read(self, number: int, lines: Iterable[bytes]) -> InputRow:
        line = next(iter(lines)).removesuffix(b"\r")
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
    keys of a row that are names of settings are fields like others.
    """

    template: Template | None = None
    input_format: str | None = None
    delimiter: str | None = None
    include_input: bool = False
    template_use: str = 'use --template "{NAME}"'
    has_settings: bool = True

    def open(self, source: Path, piped: SupportsRead[bytes] | None, output: Path) -> IndexedRows:
        """Find the rows of a file, or of what is `piped` in for `-`; at least one. Raises UsageError.

        Rows of a table include their input if the output is a table as well.
        """
        copies_columns = table_type(output) in DELIMITERS
        if source != STANDARD:
            file = open_input(source)
        elif piped is not None:
            file = spool_input(chunks(piped), "standard input")
        else:
            raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
        try:
            shape = self.detect_shape(source, file.head)
            includes_input = self.include_input or (copies_columns and shape in DELIMITERS)
            form = self._form(file, shape)
            rows = IndexedRows(file, form, replace(self, include_input=includes_input))
            if not rows:
                raise UsageError("the input has no prompts", "put one on each line")
            return rows
        except BaseException:
            file.close()
            raise

    def detect_shape(self, source: Path, head: bytes) -> Shape:
        """The given shape, or the one of the file name's suffix. Raises UsageError for an unknown one.

        Without a suffix (`-`, /dev/fd/63), an input whose `head` begins with a brace is jsonl, and any other is txt.
        """
        name = source.suffix.lower().removeprefix(".") if self.input_format is None else self.input_format
        if name in _TYPES:
            return _TYPES[name]
        if name:
            raise UsageError(f"unknown input format {name!r}", f"set --input-format to one of {', '.join(SHAPES)}")
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
            return open_table(file, shape, delimiter or DELIMITERS[shape], template, hint)
        if delimiter:
            raise UsageError(f"--delimiter does not apply to {shape}", "omit it, or add --input-format csv")
        return LineRows(shape, template, self.has_settings)


class IndexedRows:
    """The rows of an input by position: memory holds 8 bytes for each, the offset at which it begins.

    `sha256` is the hexadecimal digest of the input. Close it.
    """

    def __init__(self, source: InputFile, form: LineRows | TableRows, options: InputOptions) -> None:
        self._source = source
        self.form = form
        self._options = options
        self._offsets = array("Q")
        self._skipped = array("Q")  # for each line that is no row, the number of rows before it
        for offset in form.find(source.lines(source.start), source.start):
            if offset is None:
                self._skipped.append(len(self._offsets))
            else:
                self._offsets.append(offset)
        self.sha256 = source.sha256
        self.close = source.close
        source.require_unchanged()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> InputRow:
        number = position + 1 + bisect_right(self._skipped, position)
        row = self.form.read(number, self._source.lines(self._offsets[position]))
        self._source.require_unchanged()
        return row if self._options.include_input else replace(row, input=None)

    @property
    def fingerprint(self) -> JsonDict:
        """How the rows are read, by readable names."""
        options = self._options
        fingerprint: JsonDict = {
            "input format": self.form.shape,
            "template": options.template and options.template.text,
        }
        if options.include_input:
            fingerprint["include input"] = True
        return fingerprint

    def for_output(self, output: Path, keys: Texts = ANSWER_KEYS) -> ResultRows:
        """The rows of a result, which is a table or JSON Lines by the name of its file. Raises UsageError.

        A table has columns for the `keys` of an answer.
        """
        return result_rows(self, self.sha256, self.form.unit, table_for(output, self.form.header, keys))


def open_input(
    source: Path,
    name: str | None = None,
    hint: str = "check the file, or write its values as text",
) -> InputFile:
    """Open a file; one that cannot be read by offset, such as a pipe, is copied, and a Parquet file as JSON Lines.

    Raises UsageError, whose hint for a Parquet file that is damaged may be given, and BatchError.
    """
    with readable(source):
        file = source.open("rb")
    name = name or str(source)
    parts = chunks(file)
    if source.suffix.lower() == f".{PARQUET}":
        from cerebrum_cli.batch.parquet import json_lines

        parts = json_lines(file, name, hint)
    elif stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return InputFile(file, name)
    with file:
        return spool_input(parts, name)
