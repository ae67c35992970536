"""Read the rows of a batch from txt, jsonl, csv or tsv.

A problem with one row becomes that row's error; UsageError is for problems with the whole input.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from cerebrum_cli.batches.csv_rows import read_table
from cerebrum_cli.batches.json_rows import read_json_row
from cerebrum_cli.batches.rows import InvalidRow, Row, invalid_row, prompt_row, require_prompt
from cerebrum_cli.batches.template import Template, parse_template
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import read_at_most
from cerebrum_cli.core.text import format_size

Shape = Literal["txt", "jsonl", "csv", "tsv"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
_SUFFIXES: dict[str, Shape] = {f".{shape}": shape for shape in SHAPES} | {".ndjson": "jsonl"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_TEXT_FIELDS = ("text", "prompt")  # names of a line of text in a template
MAX_LINE_BYTES = 16_000_000
MAX_INPUT_BYTES = 1_000_000_000
_BOM = b"\xef\xbb\xbf"


def read_input(source: Path) -> bytes:
    """Read a file. Raises UsageError."""
    try:
        data = read_at_most(source, MAX_INPUT_BYTES)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror or error}", "check the path") from error
    return require_size(data, str(source))


def require_size(data: bytes | None, name: str) -> bytes:
    """Raise UsageError for too long an input, None included, and for one with too long a line; return any other."""
    if data is None or len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"{name} has more than {format_size(MAX_INPUT_BYTES)}", "split it into several batches")
    start, number = 0, 1
    while len(data) - start > MAX_LINE_BYTES:
        end = data.rfind(b"\n", start, start + MAX_LINE_BYTES + 1)
        number += data.count(b"\n", start, end + 1) if end >= 0 else 0
        if end < 0:
            raise UsageError(f"{name}: line {number} has more than {format_size(MAX_LINE_BYTES)}", "shorten it")
        start = end + 1
    return data


def detect_shape(source: Path, given: str | None, data: bytes) -> Shape:
    """The given shape, or the one of the file name's suffix. Raises UsageError for an unknown one.

    Without a suffix (`-`, /dev/fd/63), data that begins with a brace is jsonl, and any other is txt.
    """
    for shape in SHAPES:
        if given == shape:
            return shape
    known = ", ".join(SHAPES)
    if given is not None:
        raise UsageError(f"unknown --shape {given!r}", f"use one of {known}")
    suffix = source.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix:
        raise UsageError(f"{source}: unsupported file type {suffix}", f"rename it, or set --shape to one of {known}")
    return "jsonl" if data.removeprefix(_BOM).lstrip().startswith(b"{") else "txt"


def read_rows(
    data: bytes, shape: Shape, column: str | None = None, template: str | None = None, carry: bool = False
) -> tuple[Row, ...]:
    """Read the rows of an input, in order; at least one. Raises UsageError.

    `column` names the prompt column of a table; `template` renders a prompt from the fields of each row. The field of a
    txt line is `text` or `prompt`. With `carry`, each row has its `input`: text, a JSON value, or fields by name.
    """
    parsed_template = None if template is None else parse_template(template)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError("the input is UTF-16, not UTF-8", "convert it: iconv -f UTF-16 -t UTF-8")
    data = data.removeprefix(_BOM)
    if shape in _DELIMITERS:
        if column is not None and parsed_template:
            raise UsageError("--column and --template cannot be used together", "omit one")
        rows = tuple(read_table(_decoded(data), _DELIMITERS[shape], column, parsed_template, carry))
    elif column is not None:
        raise UsageError(f"--column is for csv and tsv, but the input is {shape}", 'use --template "{NAME}"')
    else:
        rows = tuple(_line_rows(data, shape, parsed_template, carry))
    if not rows:
        raise UsageError("the input has no prompts", "put one prompt on each line" if shape == "txt" else "")
    return rows


def _line_rows(data: bytes, shape: Shape, template: Template | None, carry: bool) -> Iterator[Row]:
    if shape == "txt" and template:
        for name in template.fields:
            if name not in _TEXT_FIELDS:
                raise UsageError(f"a line of text has no field `{name}`", f"use {{{_TEXT_FIELDS[0]}}}")
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        if not text.strip() or (shape == "txt" and text.lstrip().startswith("#")):
            continue
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield invalid_row(number, number, None, InvalidRow("invalid_utf8", f"byte {error.start + 1} is not UTF-8"))
            continue
        row = read_json_row(number, text, template) if shape == "jsonl" else _text_row(number, text, template)
        yield replace(row, input=_carried(text, shape)) if carry else row


def _carried(line: str, shape: Shape) -> Any:
    """A line as the output carries it; one that is not JSON as text."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line) if shape == "jsonl" else line
    return line


def _text_row(number: int, text: str, template: Template | None) -> Row:
    if template:
        text = template.render(dict.fromkeys(_TEXT_FIELDS, text))
    return prompt_row(number, number, require_prompt(text))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"the input is not UTF-8 text (line {line})", "convert it to UTF-8") from error
