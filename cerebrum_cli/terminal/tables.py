"""Values as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from cerebrum_cli.ground.events import FinishEvent
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.streams import Streams

PIPE_WIDTH = 10_000  # columns of a table nobody looks at: nothing is cut or wrapped in a pipe
LEAST_WIDTH = 80  # a terminal that is narrower wraps the lines itself
FLEXIBLE = ("format", "path", "notes")  # columns that may wrap


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


def size_text(size: int | None) -> str:
    """Return bytes as people read them, in units of 1000 as the Hub does."""
    if size is None:
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def print_models(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models that are here."""
    _print_table(
        streams,
        ("", "name", "quant", "size", "format", "context", "path"),
        [
            (
                "*" if row["default"] else "",
                row["name"],
                row["quantization"],
                size_text(row["size"]),
                row["format"],
                row["context_size"],
                row["error"] or row["path"],
            )
            for row in rows
        ],
    )
    streams.talk("* is the model asked when none is named")


def print_catalogue(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models the catalogue knows."""
    _print_table(
        streams,
        ("name", "here", "licence", "notes"),
        [(row["name"], row["here"], row["licence"], row["notes"]) for row in rows],
    )


def print_description(streams: Streams, description: Mapping[str, Any]) -> None:
    """Print what is known of one model, a line each."""
    width = max(map(len, description))
    for key, value in description.items():
        shown = f"{size_text(value)} ({value} bytes)" if key == "size" else _cell(value)
        streams.answer(f"{key:<{width}}  {shown}\n")


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
