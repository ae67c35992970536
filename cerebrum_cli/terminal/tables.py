"""Values as lines and tables for people."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.events import FinishEvent, RowEvent, TallyEvent
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns

if TYPE_CHECKING:
    from cerebrum_cli.application.models.availability import DownloadPlan
    from cerebrum_cli.application.models.fit import Capacity

PIPE_WIDTH = 10_000  # columns of a table nobody looks at: nothing is cut or wrapped in a pipe
LEAST_COLUMNS = 3  # of a table; a terminal that is narrower still wraps the lines itself
BEGINNING = 50  # characters of a question in a table
LEAST_NOTES = 20


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


def tally_text(event: TallyEvent) -> str:
    """Return how a vote stands: "4/5 5 of 8, 0.9 1 of 8", of the chains that have come to an end."""
    said = [f"{' '.join(answer.split())} {count} of {event.finished}" for answer, count in event.tally]
    return ", ".join(said) or f"no answer in {event.finished} of {event.finished}"


def batch_text(event: RowEvent, tokens: int, seconds: float) -> str:
    """Return how far a batch is, and how fast."""
    failed = f", {event.failed} failed" if event.failed else ""
    speed = f", {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f}/s)" if tokens and seconds else ""
    return f"{event.done} of {event.total} done{failed}{speed}"


def gauge_text(used: int, size: int) -> str:
    """Return how much of a context is used."""
    return f"context {used}/{size} ({used / size:.0%})"


def settings_lines(values: Mapping[str, Any]) -> str:
    """Return settings, a line each."""
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {_setting(value)}" for key, value in values.items())


def _setting(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(repr, value)) or "none"
    return "as usual" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _rate(tokens_per_second: float) -> str:
    return f" {tokens_per_second:.1f}/s" if tokens_per_second else ""


def at_home(path: str) -> str:
    """Return a path with `~` for the user's home."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{Path(path).relative_to(Path.home())}"
    return path


def print_models(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models that are here."""
    print_table(
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
                _where(row),
            )
            for row in rows
        ],
    )


def _where(row: Mapping[str, Any]) -> str:
    if row["derived_from"]:
        return f"as {row['name'].rpartition(':')[2]} of {row['derived_from']}"
    place = f"hf.co/{row['repo_id']}" if row["repo_id"] else at_home(row["path"])
    return f"{place}, merged from {' and '.join(row['merged_from'])}" if row["merged_from"] else place


def print_catalogue(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models the catalogue knows, and the quantisation of each that is recommended here."""
    print_table(
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


def print_sessions(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the sessions that are kept."""
    cells = [
        (row["name"], row["messages"], row["updated"][:16].replace("T", " "), row["model"], _first_line(row["first"]))
        for row in rows
    ]
    print_table(streams, ("name", "messages", "changed", "model", "begins"), cells)


def print_hits(streams: Streams, hits: Iterable[Mapping[str, Any]]) -> None:
    """Print messages that were found."""
    for hit in hits:
        streams.answer(f"{hit['session']}  {hit['role']}: {hit['excerpt']}\n")


def _first_line(text: str) -> str:
    """Return how a text begins, short enough for a table."""
    return textwrap.shorten(text, BEGINNING, placeholder=" ...")


def print_candidates(streams: Streams, offer: DownloadPlan) -> None:
    """Print the quantisations of a model, what they need, and how that goes with this machine."""
    head = f"{offer.availability.name} at a context of {offer.context} tokens; {capacity_text(offer.capacity)}"
    streams.answer(f"\n{_wrapped(streams, head)}\n\n")
    print_table(
        streams,
        ("", "quant", "size", "memory", "verdict", "installed"),
        [
            (
                "*" if each.recommended else "",
                each.quantization,
                format_size(each.size),
                format_size(each.needed),
                each.verdict,
                "yes" if each.installed else "",
            )
            for each in offer.candidates
        ],
    )
    streams.answer("\n* is recommended here\n")


def capacity_text(capacity: Capacity) -> str:
    """Return what a machine can hold, as a clause."""
    memory = f"this machine has {format_size(capacity.memory)} of memory"
    if capacity.devices is None:
        return f"{memory}; whether a GPU helps is unknown until a model has been loaded once"
    if not capacity.devices:
        return f"{memory} and no GPU that llama.cpp can use"
    gpus = " and ".join(f"{format_size(device.free)} on {device.description}" for device in capacity.devices)
    return f"{memory}, {gpus}"


def print_description(streams: Streams, description: Mapping[str, Any]) -> None:
    """Print what is known of one model, a line each; its file's metadata is left to --json."""
    unshown, only_where_true = ("metadata", "files"), ("notes", "derived_from", "merged_from", "encodings")
    shown = {
        key: value for key, value in description.items() if key not in unshown and (value or key not in only_where_true)
    }
    width = max(map(len, shown))
    for key, value in shown.items():
        text = _described(key, value)
        if key == "notes":
            text = _wrapped(streams, text, indent=width + 2)
        streams.answer(f"{key:<{width}}  {text}\n")


def _described(key: str, value: Any) -> str:
    if key == "size" and value is not None:
        return f"{format_size(value)} ({value} bytes)"
    if key == "encodings":
        return ", ".join(f"{each['name']}{' (answers for this model)' * each['preferred']}" for each in value)
    if key == "merged_from":
        return ", ".join(map(strip_controls, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return _cell(value)


def print_table(streams: Streams, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; where a terminal is too narrow for all columns, the last ones are left out, and nothing is cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[_cell(value) for value in row] for row in rows]
    drawn = StringIO()
    console = Console(file=streams.out) if streams.out_is_terminal else Console(file=drawn, width=PIPE_WIDTH)
    shown = len(heads)
    while shown > LEAST_COLUMNS and _width(heads[:shown], cells) > console.width:
        shown -= 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads[:shown]:
        table.add_column(head, no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row[:shown]))
    console.width = max(console.width, _width(heads[:shown], cells))
    console.print(table)
    if not streams.out_is_terminal:
        streams.answer("".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines()))


def _wrapped(streams: Streams, text: str, indent: int = 0) -> str:
    """Return a sentence in the lines a terminal has room for, all but the first indented; in a pipe as it is."""
    if not streams.out_is_terminal:
        return text
    lines = textwrap.wrap(text, max(LEAST_NOTES, columns(streams.out) - indent))
    return ("\n" + " " * indent).join(lines)


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how wide a table of these columns is."""
    from rich.cells import cell_len

    widest = [max(map(cell_len, (head, *(row[index] for row in rows)))) for index, head in enumerate(heads)]
    return sum(widest) + 2 * (len(heads) - 1)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else strip_controls(str(value))


def _size(size: int | None) -> str | None:
    return None if size is None else format_size(size)


def print_rows(
    streams: Streams,
    rows: list[dict[str, Any]],
    json: bool,
    as_table: Callable[[Streams, list[dict[str, Any]]], None],
    empty: str,
) -> None:
    """Print rows as one JSON list or as a table; without any, print the message `empty`, if there is one."""
    if json:
        streams.answer_object(rows)
    elif rows:
        as_table(streams, rows)
    elif empty:
        streams.info(empty)
