"""`cerebrum merge` on the terminal: its preview."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.reference import looks_like_path
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

COLUMNS = ("layers", "model", "source layers")


def print_merge(streams: Streams, merge: Mapping[str, Any]) -> None:
    """Print the origin of each layer, and the resources a merge needs."""
    print_table(streams, COLUMNS, [row for run in runs(merge["layers"]) for row in rows(run, merge["models"])])
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    copied = merge["copied"] / merge["size"]
    facts = {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{format_size(merge['size'])} ({merge['size']} bytes), {copied:.0%} copied unchanged",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes per token",
        "memory": f"{format_size(merge['memory_to_merge'])} to merge,"
        f" {format_size(merge['memory'])} to run with a context of {merge['context']} tokens",
        "disk": f"{format_size(merge['size'])} needed, {format_size(merge['free'])} free",
    }
    width = max(map(len, facts))
    streams.answer("\n" + "".join(f"{name:<{width}}  {fact}\n" for name, fact in facts.items()))


def runs(layers: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Split layers into runs that are consecutive in their source models too."""
    begin = 0
    for before, layer in pairwise(layers):
        following = [{**source, "layer": source["layer"] + 1} for source in before["sources"]]
        if layer["sources"] != following:
            yield layers[begin : layer["layer"]]
            begin = layer["layer"]
    yield layers[begin:]


def rows(run: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Table rows of a run, one per source model; only the first has the layer numbers of the merge."""
    first, last = run[0], run[-1]
    for number, (begin, end) in enumerate(zip(first["sources"], last["sources"], strict=True)):
        layers = span(first["layer"], last["layer"]) if number == 0 else ""
        reference = models[begin["model"]]
        name = Path(reference).stem if looks_like_path(reference) else reference
        yield layers, name, span(begin["layer"], end["layer"])


def span(first: int, last: int) -> str:
    """Format a range of layer numbers, such as "0-7"."""
    return str(first) if first == last else f"{first}-{last}"
