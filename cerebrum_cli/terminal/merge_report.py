"""What a merge would be, and what it has come to, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

LAYERS = ("layers", "model", "its layers")


def print_merge(streams: Streams, merge: Mapping[str, Any]) -> None:
    """Print where the layers of a merge come from, and what it takes."""
    print_table(streams, LAYERS, [row for run in runs(merge["layers"]) for row in rows(run, merge["models"])])
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    copied = merge["copied"] / merge["size"]
    facts = {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{format_size(merge['size'])} ({merge['size']} bytes), {copied:.0%} of it copied as it is",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes a token",
        "memory": f"{format_size(merge['memory_to_merge'])} to merge,"
        f" {format_size(merge['memory'])} to run at a context of {merge['context']} tokens",
        "disk": f"{format_size(merge['size'])}, and {format_size(merge['free'])} are free",
    }
    width = max(map(len, facts))
    streams.answer("\n" + "".join(f"{name:<{width}}  {fact}\n" for name, fact in facts.items()))


def runs(layers: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield layers that follow one another both here and in the models they come from."""
    begin = 0
    for before, layer in pairwise(layers):
        following = [{**source, "layer": source["layer"] + 1} for source in before["sources"]]
        if layer["sources"] != following:
            yield layers[begin : layer["layer"]]
            begin = layer["layer"]
    yield layers[begin:]


def rows(run: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each model that a run of layers comes from; the layers stand in the first one."""
    first, last = run[0], run[-1]
    for number, (begin, end) in enumerate(zip(first["sources"], last["sources"], strict=True)):
        here = span(first["layer"], last["layer"]) if number == 0 else ""
        yield here, models[begin["model"]], span(begin["layer"], end["layer"])


def span(first: int, last: int) -> str:
    """Return numbers from the first to the last."""
    return str(first) if first == last else f"{first}-{last}"
