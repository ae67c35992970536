"""The preview of a merge on a terminal: which layers come from where, sizes and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from cerebrum_cli.core.files import looks_like_path
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import field_lines, print_table

TableRow = tuple[str, str, str]


def print_merge(streams: Streams, merge: JsonObject) -> None:
    rows: list[TableRow] = []
    for _, run in groupby(merge["layers"], source_offsets):
        rows += source_rows(list(run), merge["models"])
    print_table(streams, ("layers", "model", "source layers"), rows)
    streams.answer(f"\n{field_lines(merge_facts(merge))}")


def merge_facts(merge: JsonObject) -> JsonDict:
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    size = format_size(merge["size"])
    return {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{size} ({merge['size']} bytes), {merge['copied'] / merge['size']:.0%} copied unchanged",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes per token",
        "memory": f"{format_size(merge['memory'])} to run with a context of {merge['context']} tokens",
        "disk": f"{size} needed, {format_size(merge['free'])} free",
    }


def source_offsets(layer: JsonObject) -> list[JsonDict]:
    """The sources of a layer by their distance from it: layers in a row that have the same are listed together."""
    return [{**source, "layer": source["layer"] - layer["layer"]} for source in layer["sources"]]


def source_rows(run: Sequence[JsonObject], models: Mapping[str, str]) -> Iterator[TableRow]:
    first = run[0]
    last = run[-1]
    layers = span(first["layer"], last["layer"])
    for begin, end in zip(first["sources"], last["sources"], strict=True):
        name = models[begin["model"]]
        if looks_like_path(name):
            name = Path(name).stem
        yield layers, name, span(begin["layer"], end["layer"])
        layers = ""  # only once


def span(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}"
