"""Read the rows of a batch from txt, jsonl, csv or tsv, each when it is asked for; those of Parquet as jsonl.

The input is a file that is read by offset and must not change while the batch runs. A problem with one row becomes that
row's error; UsageError is for problems with the whole input, such as bad quoting in a table: an unclosed quote swallows
the records after it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import BufferedRandom, BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cerebrum_cli.batch.json_rows import PROMPT_KEYS, own_id, read_json_row
from cerebrum_cli.batch.rows import InputRow, InvalidRow, Template, invalid_row, parse_template, prompt_row
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.text import Texts, format_count, format_size
from cerebrum_cli.results.output_files import PARQUET
from cerebrum_cli.results.schema import DELIMITERS

if TYPE_CHECKING:
    from _typeshed import SupportsRead

Shape = Literal["txt", "jsonl", "csv", "tsv"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
_TYPES: dict[str, Shape] = {shape: shape for shape in SHAPES} | {"ndjson": "jsonl", PARQUET: "jsonl"}  # of files
_TEXT_FIELDS = ("text", "prompt")  # names of a line of text in a template
_PROMPT_COLUMN = Template("{prompt}", ("prompt",))
MAX_LINE_BYTES = 64_000_000
BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16  # bytes that decide what the input is
_CHUNK = 1 << 20


class InputFile:
    """An open input.

    `head` is its beginning, and `start` where its text begins, after a byte order mark.
    """

    def __init__(self, file: BufferedReader | BufferedRandom, name: str) -> None:
        self._file = file
        self._name = name
        self._stamp = self._current_stamp()
        file.seek(0)
        self.head = file.read(_HEAD)
        self.start = len(BOM) if self.head.startswith(BOM) else 0

    def close(self) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def lines(self, offset: int) -> Iterator[bytes]:
        """Yield the lines from an offset on without their line feeds. Raises UsageError for a line that is too long."""
        self._file.seek(offset)
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            text = line.removesuffix(b"\n")
            _require_length(len(text), self._name)
            yield text

    def require_unchanged(self) -> None:
        """Raise BatchError if the file has changed since it was opened; what was read before is good."""
        if self._current_stamp() != self._stamp:
            raise BatchError(
                f"{self._name} was changed while the batch ran",
                "run it again without --restart to resume: unchanged rows keep their answers",
            )

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _require_length(size: int, name: str) -> None:
    if size > MAX_LINE_BYTES:
        raise UsageError(f"{name} has a line that is larger than {format_size(MAX_LINE_BYTES)}", "shorten it")


def open_input(source: Path, template: str | None = None, all_columns: bool = True) -> InputFile:
    """Open a file; one that cannot be read by offset, such as a pipe, is copied, and a Parquet file as JSON Lines.

    Without `all_columns`, only columns that affect a row are copied. Raises UsageError, BatchError.
    """
    with readable(source):
        file = source.open("rb")
    name, parts = str(source), chunks(file)
    if source.suffix.lower() == f".{PARQUET}":
        from cerebrum_cli.batch.parquet import json_lines

        fields = parse_template(template).fields if template else PROMPT_KEYS
        parts = json_lines(file, name, () if all_columns else fields)
    elif stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return InputFile(file, name)
    with file:
        return spool_input(parts, name)


def chunks(stream: SupportsRead[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(_CHUNK), b"")


def spool_input(parts: Iterable[bytes], name: str) -> InputFile:
    """Copy the parts of a stream to a temporary file without a name.

    Raises BatchError, and UsageError for a line that is too long: a device may have no end.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            size = 0  # of the line that is read
            for part in parts:
                file.write(part)
                _, line_end, rest = part.rpartition(b"\n")
                size = len(rest) if line_end else size + len(rest)
                _require_length(size, name)
            file.flush()
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise BatchError(
            f"{name} cannot be copied to {tempfile.tempdir or 'TMPDIR'}: {error.strerror or error}",
            "set TMPDIR to a directory with more space, or save the input as a file and name it",
        ) from error
    return InputFile(file, name)


@frozen
class LineRows:
    """The rows of an input that has one on each line; blank lines are skipped, and in txt those that begin with #."""

    shape: Shape
    template: Template | None

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
            return read_json_row(number, text, self.template)
        prompt = self.template.render(dict.fromkeys(_TEXT_FIELDS, text)) if self.template else text
        return prompt_row(number, number, prompt, text)


@frozen
class TableRows:
    """The rows of a table with a header: CSV (RFC 4180), or the same with another delimiter.

    The prompt is rendered from the record by `template`. A record with too many or too few fields is an error of its
    row.
    """

    delimiter: str
    header: Texts
    template: Template

    unit = "record"

    def find(self, lines: Iterable[bytes], start: int) -> Iterator[int]:
        """Yield the offsets of the rows as `LineRows.find` does. Raises UsageError for bad quoting."""
        for offset, _ in islice(_records(lines, self.delimiter, start), 1, None):  # without the header
            yield offset

    def read(self, number: int, lines: Iterable[bytes]) -> InputRow:
        _, record = next(_records(lines, self.delimiter))
        fields = dict(zip(self.header, record, strict=False))
        id = own_id(fields, number)
        try:
            if len(record) != len(self.header):
                raise InvalidRow(
                    f"it has {format_count(len(record), 'field')}, but the header has {len(self.header)}",
                    "invalid_record",
                )
            return prompt_row(number, id, self.template.render(fields), fields)
        except InvalidRow as invalid:
            return invalid_row(number, id, None, invalid, fields)


def open_table(source: InputFile, delimiters: Sequence[str], template: Template) -> TableRows:
    """Open a table with the delimiter that separates the columns with prompts from others. Raises UsageError."""
    first_line = source.head.partition(b"\n")[0].decode(errors="replace")
    problems = []
    for delimiter in sorted(delimiters, key=first_line.count, reverse=True):
        try:
            return _open_table(source.lines(source.start), delimiter, template)
        except UsageError as problem:
            problems.append(problem)
    raise problems[0]


def _open_table(lines: Iterable[bytes], delimiter: str, template: Template) -> TableRows:
    _, record = next(_records(lines, delimiter), (0, []))
    header = tuple(name.strip() for name in record)
    for name in template.fields:
        if header and header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            hint = 'use --template "{NAME}"; ' if template is _PROMPT_COLUMN else ""
            raise UsageError(f"the input has {problem} `{name}`", f"{hint}the columns are: {', '.join(header)}")
    return TableRows(delimiter, header, template)


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


class IndexedRows:
    """The rows of an input by position: memory holds 8 bytes for each, the offset at which it begins.

    `sha256` is the hexadecimal digest of the input.
    """

    def __init__(
        self, source: InputFile, form: LineRows | TableRows, includes_input: bool, saved: SavedPrompt | None
    ) -> None:
        self._source = source
        self.form = form
        self._includes_input = includes_input
        self._saved = saved
        self._offsets = array("Q")
        self._skipped = array("Q")  # for each line that is no row, the number of rows before it
        for offset in form.find(source.lines(source.start), source.start):
            if offset is None:
                self._skipped.append(len(self._offsets))
            else:
                self._offsets.append(offset)
        self.sha256 = source.sha256
        source.require_unchanged()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> InputRow:
        number = position + 1 + bisect_right(self._skipped, position)
        row = self.form.read(number, self._source.lines(self._offsets[position]))
        self._source.require_unchanged()
        if not self._includes_input:
            row = replace(row, input=None)
        if self._saved is None or row.conversation is None:
            return row
        conversation = row.conversation.with_question(self._saved.fill(row.conversation.question))
        return replace(row, prompt=conversation.question, conversation=conversation)


def detect_shape(source: Path, given: str | None, head: bytes) -> Shape:
    """The given shape, or the one of the file name's suffix. Raises UsageError for an unknown one.

    Without a suffix (`-`, /dev/fd/63), an input whose `head` begins with a brace is jsonl, and any other is txt.
    """
    name = source.suffix.lower().removeprefix(".") if given is None else given
    if name in _TYPES:
        return _TYPES[name]
    if name:
        raise UsageError(f"unknown input format {name!r}", f"set --input-format to one of {', '.join(SHAPES)}")
    return "jsonl" if head.removeprefix(BOM).lstrip().startswith(b"{") else "txt"


def read_rows(
    source: InputFile,
    shape: Shape,
    template: str | None = None,
    include_input: bool = False,
    saved: SavedPrompt | None = None,
    delimiter: str | None = None,
) -> IndexedRows:
    """Find the rows of an input, at least one; each is read when it is asked for. Raises UsageError.

    `template` renders a prompt from the fields of each row; the field of a txt line is `text` or `prompt`. The result
    is the input of a `saved` prompt. With `include_input`, each row has its `input`: text, a JSON value, or fields. A
    csv has one of the characters in `delimiter` if given, or else one that its header shows.
    """
    parsed = None if template is None else parse_template(template)
    if b"\0" in source.head:
        raise UsageError("the input is not UTF-8: it has NUL bytes", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    if shape == "txt" and parsed and (unknown := [name for name in parsed.fields if name not in _TEXT_FIELDS]):
        raise UsageError(f"a line of text has no field `{unknown[0]}`", f"use {{{_TEXT_FIELDS[0]}}}")
    if shape in DELIMITERS:
        form: LineRows | TableRows = open_table(source, delimiter or DELIMITERS[shape], parsed or _PROMPT_COLUMN)
    elif delimiter:
        raise UsageError(f"--delimiter does not apply to {shape}", "omit it, or add --input-format csv")
    else:
        form = LineRows(shape, parsed)
    rows = IndexedRows(source, form, include_input, saved)
    if not rows:
        raise UsageError("the input has no prompts", "put one on each line")
    return rows
