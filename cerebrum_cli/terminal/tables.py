"""Values as lines and tables for people."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.ground.events import FinishEvent
from cerebrum_cli.ground.text import size_text
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns

if TYPE_CHECKING:
    from cerebrum_cli.application.fitting import Capacity
    from cerebrum_cli.application.offers import Offer

PIPE_WIDTH = 10_000  # columns of a table nobody looks at: nothing is cut or wrapped in a pipe
LEAST_WIDTH = 80  # a terminal that is narrower wraps the lines itself
LEAST_NOTES = 20
FLEXIBLE = ("format", "where", "system")  # columns that may wrap


def stats_line(finish: FinishEvent, model: str, form: str) -> str:
    """Return the line `--stats` prints of a reply."""
    timings = finish.timings
    cached = f" ({finish.cached_tokens} cached)" if finish.cached_tokens else ""
    return " | ".join(
        (
            model,
            f"format {form}",
            f"load {timings.load_s:.2f} s",
            f"prompt {finish.prompt_tokens} tokens{cached}{_rate(timings.prompt_tokens_per_second)}",
            f"answer {finish.completion_tokens} tokens{_rate(timings.tokens_per_second)}",
            f"first token {timings.ttft_s:.2f} s",
            f"context {finish.context_size}",
            f"seed {finish.seed}",
            f"ended by {finish.reason}",
        )
    )


def _rate(tokens_per_second: float) -> str:
    return f" {tokens_per_second:.1f}/s" if tokens_per_second else ""


def at_home(path: str) -> str:
    """Return a path with `~` for the user's home."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{Path(path).relative_to(Path.home())}"
    return path


def print_models(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models that are here."""
    _print_table(
        streams,
        ("", "name", "quant", "size", "format", "context", "last used", "where"),
        [
            (
                "*" if row["default"] else "",
                row["name"],
                row["quantization"],
                _size(row["size"]),
                row["format"],
                row["context_size"],
                row["last_used"] and row["last_used"][:10],
                row["error"] or (f"hf.co/{row['repo_id']}" if row["repo_id"] else at_home(row["path"])),
            )
            for row in rows
        ],
    )


def print_catalogue(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models the catalogue knows, and the quantisation of each that is recommended here."""
    _print_table(
        streams,
        ("name", "here", "fitting", "size", "verdict", "licence", "system"),
        [
            (
                row["name"],
                row["here"],
                row["recommended"],
                _size(best["size"] if best else None),
                best and best["verdict"],
                row["licence"],
                row["system"],
            )
            for row in rows
            for best in [next((each for each in row["quantizations"] if each["recommended"]), None)]
        ],
    )


def print_candidates(streams: Streams, offer: Offer) -> None:
    """Print the quantisations of a model, what they need, and how that goes with this machine."""
    streams.answer(f"\n{offer.stock.name} at a context of {offer.context} tokens; {capacity_text(offer.capacity)}\n\n")
    _print_table(
        streams,
        ("", "quant", "size", "memory", "verdict", "installed"),
        [
            (
                "*" if each.recommended else "",
                each.quantization,
                size_text(each.size),
                size_text(each.needed),
                each.verdict,
                "yes" if each.installed else "",
            )
            for each in offer.candidates
        ],
    )
    streams.answer("\n* is recommended here\n")


def capacity_text(capacity: Capacity) -> str:
    """Return what a machine can hold, as a clause."""
    memory = f"this machine has {size_text(capacity.memory)} of memory"
    if capacity.devices is None:
        return f"{memory}; whether a GPU helps is unknown until a model has been loaded once"
    if not capacity.devices:
        return f"{memory} and no GPU that llama.cpp can use"
    gpus = " and ".join(f"{size_text(device.free)} on {device.description}" for device in capacity.devices)
    return f"{memory}, {gpus}"


def print_description(streams: Streams, description: Mapping[str, Any]) -> None:
    """Print what is known of one model, a line each; its file's metadata is left to --json."""
    shown = {key: value for key, value in description.items() if key not in ("metadata", "files") and value != ""}
    width = max(map(len, shown))
    for key, value in shown.items():
        text = _described(key, value)
        if key == "notes" and streams.out_is_terminal:
            lines = textwrap.wrap(text, max(LEAST_NOTES, columns(streams.out) - width - 2))
            text = ("\n" + " " * (width + 2)).join(lines)
        streams.answer(f"{key:<{width}}  {text}\n")


def _described(key: str, value: Any) -> str:
    if key == "size" and value is not None:
        return f"{size_text(value)} ({value} bytes)"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return _cell(value)


def _print_table(streams: Streams, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; on a terminal its long cells wrap, and nothing is ever cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=head not in FLEXIBLE, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    if streams.out_is_terminal:
        console = Console(file=streams.out)
        console.width = max(LEAST_WIDTH, console.width)
        console.print(table)
        return
    drawn = StringIO()
    Console(file=drawn, width=PIPE_WIDTH).print(table)
    streams.answer("".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines()))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else strip_controls(str(value))


def _size(size: int | None) -> str | None:
    return None if size is None else size_text(size)
