"""Results as tables: CSV or TSV, by the suffix of the output."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import field_text
from cerebrum_cli.core.text import Texts, well_formed

DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}  # of the tables that are read; those written have the first
PARQUET = "parquet"
INCLUDE_INPUT = "include input"  # of a fingerprint: whether objects have the input, for a table
COLUMNS = "columns"  # of a fingerprint: the keys of an answer, if they are others
ANSWER_KEYS = ("text", "final_answer", "finish_reason")
MAX_FIELD_BYTES = 64_000_000  # of an unclosed quote, the rest of a table would be a field
RECORD = "record"  # the only key, besides `key`, of a row that was read from a table
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
        first = tuple(map(well_formed, self.columns or ("id", "prompt")))
        names = [*first]
        for key in (*self.fields, *self.keys, "error", "key"):
            names.append(_free_name(key, names))
        return tuple(names)

    def lines(self, objects: Iterable[JsonObject]) -> Iterator[bytes]:
        """Encode the objects of rows, with a header before them."""
        line = _Line()
        write = csv.writer(line, delimiter=self.delimiter, lineterminator="\n").writerow
        write(self.header)
        yield line.text.encode()
        for object in objects:
            write(self._record(object))
            yield line.text.encode()

    def _record(self, object: JsonObject) -> list[Any]:
        if RECORD in object:
            return [*object[RECORD], object["key"]]
        error = object["error"] and f"{object['error']['type']}: {object['error']['message']}"
        fields = object.get("input") if self.columns else object
        read = fields if isinstance(fields, dict) else {}  # of a line that is no object, nothing
        first = self.columns or ("id", "prompt")
        answer = json_object(object["text"]) if self.fields else {}
        cells = [*(cell(read.get(name)) for name in first), *(cell(answer.get(name)) for name in self.fields)]
        return [*cells, *map(object.get, self.keys), error, object["key"]]

    def objects(self, file: BinaryIO) -> Iterator[JsonDict]:
        """Yield the rows of a table as objects that `lines` encodes as they were. Raises ValueError for another."""
        csv.field_size_limit(MAX_FIELD_BYTES)
        records = csv.reader((line.decode() for line in file), delimiter=self.delimiter)
        try:
            if tuple(next(records, ())) != self.header:
                raise ValueError("other columns")
            for *record, key in records:
                yield {RECORD: record, "key": key}
        except csv.Error as error:
            raise ValueError(str(error)) from error


def read_table(output: Path, keys: Texts) -> Iterator[JsonDict]:
    """Yield the rows of a table as objects with its columns as text, the values of `keys`, the error and the key.

    Raises ValueError for another file.
    """
    csv.field_size_limit(MAX_FIELD_BYTES)
    names = (*keys, "error", "key")
    with output.open(encoding="utf-8", newline="") as file:
        records = csv.reader(file, delimiter=DELIMITERS[str(table_type(output))][0])
        try:
            header = next(records, [])
            for number, record in enumerate(records, 1):
                object: JsonDict = {"id": number, "prompt": "", **dict(zip(header, record, strict=True))}
                object |= {name: text or None for name, text in zip(names, record[-len(names) :], strict=True)}
                if object["error"]:
                    kind, _, message = object["error"].partition(": ")
                    object["error"] = {"type": kind, "message": message}
                yield object
        except csv.Error as error:
            raise ValueError(str(error)) from error


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
