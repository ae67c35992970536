"""Results as tables: CSV or TSV, by the suffix of the output."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Texts
from cerebrum_cli.results.rows import Table

DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}  # of the tables that are read; those written have the first
PARQUET = "parquet"
_JSON_SUFFIXES = ("", ".jsonl", ".ndjson", ".json")
ANSWER_KEYS = ("text", "final_answer", "finish_reason")


def table_type(output: Path) -> str | None:
    """Suffix of a result that is a table, without the dot; None for JSON Lines. Raises UsageError for others."""
    suffix = output.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return None
    if (name := suffix.removeprefix(".")) in DELIMITERS:
        return name
    if name == PARQUET:
        convert = 'python -c \'import pandas; pandas.read_json("OUT.jsonl", lines=True).to_parquet("OUT.parquet")\''
        raise UsageError(f"{output}: Parquet files are only read", f"name it .jsonl, then convert it: {convert}")
    raise UsageError(f"{output}: unsupported file type {suffix}", "name it .jsonl, .csv or .tsv")


def table_for(output: Path, header: Texts | None, keys: Texts = ANSWER_KEYS) -> Table | None:
    """Encoder of the table that an output is, for an input with this header if it has one; None for JSON Lines.

    Its columns for an answer have the values of `keys`.
    """
    name = table_type(output)
    return partial(table_lines, DELIMITERS[name][0], header, keys) if name else None


def table_lines(delimiter: str, columns: Texts | None, keys: Texts, objects: Iterable[JsonObject]) -> Iterator[bytes]:
    """Encode the objects of rows as a table: the columns of an input that is one, or `id` and `prompt`, and the answer.

    The name of an answer's column that the input has ends with _2.
    """
    first = columns or ("id", "prompt")
    yield _table_line(delimiter, (*first, *(_free_name(key, first) for key in (*keys, "error"))))
    for object in objects:
        fields = object["input"] if columns else object
        error = object["error"] and f"{object['error']['type']}: {object['error']['message']}"
        yield _table_line(delimiter, [*map(fields.get, first), *map(object.get, keys), error])


def _free_name(name: str, taken: tuple[str, ...]) -> str:
    while name in taken:
        name += "_2"
    return name


def _table_line(delimiter: str, values: Iterable[Any]) -> bytes:
    line: list[str] = []
    csv.writer(SimpleNamespace(write=line.append), delimiter=delimiter, lineterminator="\n").writerow(values)
    return line[0].encode()
