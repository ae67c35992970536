"""Results as tables: CSV or TSV, by the suffix of the output."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import field_text
from cerebrum_cli.core.text import Texts, well_formed
from cerebrum_cli.rows.keys import Key, key_cell, key_of_cells

DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}  # of the tables that are read; those written have the first
PARQUET = "parquet"
ID_AND_PROMPT = ("id", "prompt")  # columns of a table if the input has none
INPUT = "input"  # the key of a row's input in its output object, from which a table has columns
NO_NUMBER = 2**32 - 1  # of a key: the row has to be written anew
COLUMNS = "columns"  # of a fingerprint: the keys of an answer, if they are others
ANSWER_KEYS = ("text", "final_answer", "finish_reason")
MAX_FIELD_BYTES = 64_000_000  # of an unclosed quote, the rest of a table would be a field
_JSON_SUFFIXES = ("", ".jsonl", ".ndjson", ".json")


class _Line:
    """The last line that a csv.writer has written."""

    def write(self, text: str) -> None:
        self.text = text


@frozen
class ResultTable:
    """A table with the columns of an input that has some, or else `id` and `prompt`, and then those of the answer.

    These have the `fields` of an answer that is a JSON object, the values of `keys`, the error and the row's key; the
    name of one that is there before ends with _2.
    """

    delimiter: str
    columns: Texts | None
    keys: Texts
    fields: Texts = ()

    @property
    def header(self) -> Texts:
        return self._header(self.columns or ID_AND_PROMPT)

    def _header(self, columns: Texts) -> Texts:
        names = [well_formed(name) for name in columns]
        for key in (*self.fields, *self.keys, "error", "key"):
            names.append(_free_name(key, names))
        return tuple(names)

    def lines(self, rows: Iterable[tuple[JsonObject, Key]], check: int) -> Iterator[bytes]:
        """Encode the objects of rows with their keys, with a header before them."""
        line = _Line()
        # Line feeds and carriage returns are quoted because the terminator has them.
        write = csv.writer(line, delimiter=self.delimiter, lineterminator="\r\n").writerow
        for cells in chain([self.header], self._records(rows, check)):
            write(cells)
            yield f"{line.text[:-2]}\n".encode()

    def _records(self, rows: Iterable[tuple[JsonObject, Key]], check: int) -> Iterator[Sequence[str]]:
        for object, key in rows:
            cells = ["" if value is None else str(value) for value in self._cells(object)]
            yield *cells, key_cell(cells, key, check)

    def _cells(self, object: JsonObject) -> Iterator[Any]:
        input = object.get(INPUT) if self.columns else object
        cells_by_name = input if isinstance(input, dict) else {}  # of a line that is no object, nothing
        yield from (cell(cells_by_name.get(name)) for name in self.columns or ID_AND_PROMPT)
        answer = json_object(object["text"]) if self.fields else {}
        yield from (cell(answer.get(name)) for name in self.fields)
        yield from map(object.get, self.keys)
        error = object["error"]
        yield error and f"{error['type']}: {error['message']}"

    def read(self, file: Iterable[bytes], check: int) -> Iterator[tuple[JsonDict, Key]]:
        """Yield the objects of the rows, with values as text, and their keys. Raises ValueError for another table.

        Other columns of the input do not matter; the number of a row before other columns is NO_NUMBER.
        """
        csv.field_size_limit(MAX_FIELD_BYTES)
        records = csv.reader((line.decode() for line in file), delimiter=self.delimiter)
        try:
            header = tuple(next(records, ()))
            first = len(header) - len(self.fields) - len(self.keys) - 2
            if header != self._header(header[: max(0, first)]):
                raise ValueError("other columns")
            for *cells, last in filter(None, records):  # some programs end a table with a blank line
                key = key_of_cells(cells, last, check)
                if header != self.header:
                    key = key._replace(number=NO_NUMBER)
                yield self._object(header[:first], cells), key
        except csv.Error as error:
            raise ValueError(str(error)) from error

    def _object(self, columns: Texts, cells: Sequence[str]) -> JsonDict:
        input = dict(zip(columns, cells, strict=False))
        values = zip((*self.keys, "error"), cells[len(columns) + len(self.fields) :], strict=True)
        object: JsonDict = {key: text or None for key, text in values}
        if object["error"]:
            kind, _, message = object["error"].partition(": ")
            object["error"] = {"type": kind, "message": message}
        return {**({INPUT: input} if self.columns else input), **object}


def table_type(output: Path) -> str | None:
    """Suffix of a result that is a table, without the dot; None for JSON Lines. Raises UsageError for others."""
    suffix = output.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return None
    if (name := suffix.removeprefix(".")) in DELIMITERS:
        return name
    if name == PARQUET:
        convert = 'python -c \'import pandas; pandas.read_json("OUT.jsonl", lines=True).to_parquet("OUT.parquet")\''
        raise UsageError(
            f"{output}: Parquet is supported for input only", f"name it .jsonl, then convert it: {convert}"
        )
    raise UsageError(f"{output}: unsupported file type {suffix}", "name it .jsonl, .csv or .tsv")


def table_for(output: Path, header: Texts | None, keys: Texts = ANSWER_KEYS, fields: Texts = ()) -> ResultTable | None:
    """The table that an output is, for an input with this header if it has one; None for JSON Lines."""
    name = table_type(output)
    return ResultTable(DELIMITERS[name][0], header, keys, fields) if name else None


def json_object(text: str | None) -> JsonObject:
    """The object that an answer is; empty if it is none, such as one that is cut off."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def cell(value: Any) -> str | None:
    """A value of the input in a table: text as it is, any other value as JSON."""
    return None if value is None else well_formed(field_text(value))


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_2"
    return name
