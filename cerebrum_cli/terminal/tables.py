"""Print values as tables, and as lines of names and values."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import setting_text
from cerebrum_cli.core.text import format_count, format_size, strip_controls
from cerebrum_cli.terminal.streams import PIPE_WIDTH, Streams

MIN_COLUMNS = 2  # of a table; an even narrower terminal wraps the lines itself
MIN_SHORTENED = 15  # columns of the terminal
EXCERPT_LENGTH = 100  # characters
LISTED = 20  # sessions that a terminal shows unless asked for more
SIZES = ("size", "memory")  # columns of numbers of bytes
UPDATED = "updated"  # a column of times, shown up to the minute
_ONE_LINE = str.maketrans("\t\n", "  ")


Row = JsonObject
Fields = Mapping[str, str]  # texts by name
Column = str | Callable[[Row], Any]  # the key of a row, or what is shown of the row


def output_width(streams: Streams) -> int:
    """Columns of the terminal that shows the output, or of a pipe."""
    return streams.columns if streams.out_is_terminal else PIPE_WIDTH


def print_columns(
    columns: Mapping[str, Column], streams: Streams, rows: Iterable[Row], shorten: str = "", drop: Sequence[str] = ()
) -> list[str]:
    """Print a table of rows, as `print_table` does."""
    cells = [[column_value(row, column) for column in columns.values()] for row in rows]
    return print_table(streams, tuple(columns), cells, shorten, drop)


def column_value(row: Row, column: Column) -> Any:
    if not isinstance(column, str):
        return column(row)
    value = row[column]
    if value is None:
        return None
    if column in SIZES:
        return format_size(value)
    if column == UPDATED:
        return str(value)[:16].replace("T", " ")
    return value


def model_name(row: Row) -> str | None:
    reference: str | None = row["model"]
    if reference and Path(reference).is_absolute():
        return Path(reference).name
    return reference


def excerpt(text: str) -> str:
    return textwrap.shorten(text, EXCERPT_LENGTH, placeholder=" ...")


def print_table(
    streams: Streams,
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    shorten: str = "",
    drop: Sequence[str] = (),
    numbers: Collection[str] = (),
) -> list[str]:
    """Print a table; on a narrow terminal, the column `shorten` is truncated, then columns are left out.

    They are left out in the order of `drop`, and after these from the last on. The cells of `numbers` stand on the
    right of their columns. Returns the headings of the columns that are left out.
    """
    from rich.cells import cell_len
    from rich.console import Console

    cells = [headings]
    for row in rows:
        cells.append([_cell(value).translate(_ONE_LINE) for value in row])
    columns = dict(zip(headings, zip(*cells, strict=True), strict=True))
    widths = {heading: max(map(cell_len, column)) for heading, column in columns.items()}
    if streams.out_is_terminal:
        _fit_widths(widths, Console(file=streams.out).width, shorten, drop)
    padded = [
        [_fit_cell(cell, width, heading in numbers) for cell in columns[heading]] for heading, width in widths.items()
    ]
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    lines[0] = streams.styled(lines[0], "bold")
    streams.answer("".join(f"{line}\n" for line in lines), is_styled=True)
    return [heading for heading in headings if heading not in widths]


def _fit_widths(widths: dict[str, int], width: int, shorten: str, drop: Sequence[str]) -> None:
    droppable = list(drop)
    for heading in reversed(widths):
        if heading not in (*drop, shorten):
            droppable.append(heading)
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
    while droppable and len(widths) > MIN_COLUMNS:
        if excess <= max(0, widths.get(shorten, 0) - MIN_SHORTENED):
            break
        excess -= widths.pop(droppable.pop(0)) + 2
    if shorten in widths and excess > 0:
        least = MIN_SHORTENED if len(widths) > MIN_COLUMNS else 1
        widths[shorten] = max(least, widths[shorten] - excess)


def _fit_cell(cell: str, width: int, is_number: bool) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(cell) <= width:
        return " " * (width - cell_len(cell)) + cell if is_number else set_cell_size(cell, width)
    return set_cell_size(cell, width - 1) + "…"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return strip_controls(str(value))


def field_lines(fields: JsonObject) -> str:
    width = max(map(len, fields))
    return "".join(f"{name:<{width}}  {_cell(value)}\n" for name, value in fields.items())


def settings_lines(values: JsonObject, origins: Fields) -> str:
    texts = {key: setting_text(value) for key, value in values.items()}
    width = max((len(text) for key, text in texts.items() if key in origins), default=0)
    for key, text in texts.items():
        if key in origins:
            texts[key] = f"{text:<{width}}  {origins[key]}"
    return field_lines(texts).rstrip("\n")


def print_rows(
    streams: Streams,
    rows: list[JsonDict],
    json: bool,
    as_table: Callable[[Streams, Sequence[Row]], object],
    empty: str,
) -> None:
    """Print rows as one JSON list or as a table; without any, print the message `empty`, if there is one."""
    if json:
        streams.answer(rows)
    elif rows:
        as_table(streams, rows)
    else:
        streams.note(empty)


_print_prompts = partial(
    print_columns,
    {
        "name": "name",
        "placeholders": lambda row: ", ".join(row["placeholders"]) or None,
        "model": model_name,
        "prompt": lambda row: excerpt(row["prompt"] or row["system"] or ""),
    },
    shorten="prompt",
    drop=("model", "placeholders"),
)


def print_prompts(streams: Streams, rows: list[JsonDict], json: bool = False) -> None:
    print_rows(streams, rows, json, _print_prompts, "no saved prompts; cerebrum prompts edit NAME creates one")


print_sessions = partial(
    print_columns,
    {
        "name": "name",
        "messages": "messages",
        "updated": "updated",
        "model": model_name,
        "first message": lambda row: excerpt(row["first"]),
    },
    shorten="first message",
    drop=("model", "messages", "updated"),
)


def print_matches(streams: Streams, matches: Sequence[Row]) -> None:
    """Print messages that were found, the latest of which comes first, and stands last on a terminal."""
    for match in matches[::-1] if streams.out_is_terminal else matches:
        line = _cell("{session}  {created:.10}  {role}: {excerpt}".format_map(match)).translate(_ONE_LINE)
        streams.answer(f"{streams.wrapped(line, indent=2)}\n")


def print_latest(
    streams: Streams, rows: Sequence[Row], number: int | None = None, lists_all: bool = False, lister: str = "--all"
) -> None:
    """Print the latest sessions, which come first: in a pipe all, and the latest last on a terminal.

    There, single answers to scripts are only counted unless it `lists_all`, as the command `lister` does.
    """
    if not rows:
        streams.note("no saved sessions; cerebrum ask and cerebrum chat create them")
    elif not streams.out_is_terminal:
        print_sessions(streams, rows[:number])
    else:
        own = [row for row in rows if lists_all or row["origin"] != "script" or row["messages"] > 2]
        listed = own[: number or LISTED]
        if listed:
            print_sessions(streams, listed[::-1])
        parts = [f"the latest {LISTED} of {len(own)}"] if number is None and len(listed) < len(own) else []
        if scripts := len(rows) - len(own):
            parts.append(f"not listed: {format_count(scripts, 'answer')} in pipes or files")
        if parts:
            streams.note(f"{'; '.join(parts)}; {lister} lists them")
