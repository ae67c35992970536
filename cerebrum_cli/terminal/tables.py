"""Print values as tables."""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import MATCH_BEGIN, MATCH_END, format_size
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns, is_plain_terminal

if TYPE_CHECKING:
    from cerebrum_cli.models.fit import Capacity, DownloadPlan

PIPE_WIDTH = 10_000  # columns of text in a pipe, where nothing is truncated or wrapped
MIN_COLUMNS = 2  # of a table; an even narrower terminal wraps the lines itself
MIN_SHORTENED = 16  # columns of the terminal
EXCERPT_LENGTH = 100  # characters
MIN_NOTE_WIDTH = 20
FIELD_LABELS = {"system": "full name", "licence": "license"}  # of JSON keys that would be unclear on a screen
NO_PROMPTS = "no saved prompts; cerebrum prompts edit NAME creates one"
_ONE_LINE = str.maketrans("\t\n", "  ")


def shorten_home(path: str) -> str:
    """Path with `~` for the home directory."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{Path(path).relative_to(Path.home())}"
    return path


def print_models(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
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
                _location(row),
            )
            for row in rows
        ],
    )


def _location(row: Mapping[str, Any]) -> str:
    place = f"hf.co/{row['repo_id']}" if row["repo_id"] else shorten_home(row["path"])
    return f"{place}, merged from {' and '.join(row['merged_from'])}" if row["merged_from"] else place


def print_catalogue(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the models of the catalog, each with the quantization recommended for this machine."""
    print_table(
        streams,
        ("name", "installed", "best fit", "size", "verdict", "license", "full name"),
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
        shorten="name",
        drop=("full name", "license", "installed", "best fit"),
    )


def print_sessions(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    cells = [
        (
            row["name"],
            row["messages"],
            row["updated"][:16].replace("T", " "),
            row["model"] and short_reference(row["model"]),
            textwrap.shorten(row["first"], EXCERPT_LENGTH, placeholder=" ..."),
        )
        for row in rows
    ]
    print_table(
        streams,
        ("name", "messages", "updated", "model", "first message"),
        cells,
        "first message",
        ("model", "messages", "updated"),
    )


def print_prompts(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    cells = [
        (
            row["name"],
            row["model"] and short_reference(row["model"]),
            textwrap.shorten(row["prompt"] or row["system"] or "", EXCERPT_LENGTH, placeholder=" ..."),
        )
        for row in rows
    ]
    print_table(streams, ("name", "model", "prompt"), cells, "prompt", ("model",))


def short_reference(reference: str) -> str:
    """A model reference for a table: of a path, the file's name."""
    return Path(reference).name if Path(reference).is_absolute() else reference


def print_matches(streams: Streams, matches: Iterable[Mapping[str, Any]]) -> None:
    """Print search results; on a terminal the words found are bold."""
    is_styled = streams.out_is_terminal and not is_plain_terminal()
    on, off = ("\x1b[1m", "\x1b[0m") if is_styled else ("", "")
    for match in matches:
        pieces = [strip_controls(piece) for piece in re.split(f"[{MATCH_BEGIN}{MATCH_END}]", match["excerpt"])]
        pieces[1::2] = [f"{on}{found}{off}" for found in pieces[1::2]]
        with streams.writing_answer():
            streams.out.write(f"{strip_controls(match['session'])}  {match['role']}: {''.join(pieces)}\n")


def print_candidates(streams: Streams, plan: DownloadPlan) -> None:
    """Print the quantizations of a model, their memory needs, and whether they fit this machine."""
    head = f"{plan.name} at a context of {plan.context} tokens; {capacity_text(plan.capacity)}"
    streams.answer(f"\n{wrapped(streams, head)}\n\n")
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
            for each in plan.candidates
        ],
    )
    streams.answer("\n* recommended for this machine\n")


def capacity_text(capacity: Capacity) -> str:
    """Memory and GPUs of this machine, as a clause."""
    memory = f"this machine has {format_size(capacity.memory)} of memory"
    if capacity.devices is None:
        return f"{memory}; GPUs are detected when a model is first loaded"
    if not capacity.devices:
        return f"{memory} and no GPU supported by llama.cpp"
    gpus = " and ".join(f"{format_size(device.free)} on {device.description}" for device in capacity.devices)
    return f"{memory}, {gpus}"


def print_description(streams: Streams, description: Mapping[str, Any]) -> None:
    """Print the fields of a model, one per line; its file's metadata is printed only by --json."""
    hidden = ("metadata", "files")
    hidden_if_empty = ("notes", "merged_from", "unsupported")
    shown = {
        key: value for key, value in description.items() if key not in hidden and (value or key not in hidden_if_empty)
    }
    labels = {key: FIELD_LABELS.get(key, key) for key in shown}
    width = max(map(len, labels.values()))
    for key, value in shown.items():
        text = _describe(key, value)
        if key == "notes":
            text = wrapped(streams, text, indent=width + 2)
        streams.answer(f"{labels[key]:<{width}}  {text}\n")


def _describe(key: str, value: Any) -> str:
    if key == "size" and value is not None:
        return f"{format_size(value)} ({value} bytes)"
    if key == "merged_from":
        return ", ".join(map(strip_controls, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_joined(item)}" for name, item in value.items())
    return _cell(value)


def _joined(value: Any) -> str:
    """The text of a value, or the texts of several."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return " and ".join(strip_controls(str(item)) for item in items)


def print_table(
    streams: Streams,
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    shorten: str = "",
    drop: Sequence[str] = (),
) -> None:
    """Print a table on standard output, as wide as the terminal allows; see `table_lines`."""
    head, *lines = table_lines(headings, rows, _table_width(streams), shorten, drop)
    if streams.out_is_terminal and not is_plain_terminal():
        head = f"\x1b[1m{head}\x1b[0m"
    with streams.writing_answer():
        streams.out.write("".join(f"{line}\n" for line in (head, *lines)))
        streams.out.flush()


def table_lines(
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    width: int,
    shorten: str = "",
    drop: Sequence[str] = (),
) -> list[str]:
    """The lines of a table of a width: first the column `shorten` is truncated, then columns are left out.

    Columns are left out in the order of `drop`, and after these from the last on.
    """
    from rich.cells import cell_len

    table = {
        heading: [heading, *(_cell(row[index]).translate(_ONE_LINE) for row in rows)]
        for index, heading in enumerate(headings)
    }
    order = [*drop, *(heading for heading in reversed(headings) if heading not in (*drop, shorten))]
    widths = {heading: max(map(cell_len, cells)) for heading, cells in table.items()}
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
    while excess > max(0, widths.get(shorten, 0) - MIN_SHORTENED) and len(widths) > MIN_COLUMNS and order:
        excess -= widths.pop(order.pop(0)) + 2
    if shorten in widths and excess > 0:
        widths[shorten] = max(MIN_SHORTENED if len(widths) > MIN_COLUMNS else 1, widths[shorten] - excess)
    padded = [[_fit(cell, width) for cell in table[heading]] for heading, width in widths.items()]
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def _table_width(streams: Streams) -> int:
    if not streams.out_is_terminal:
        return PIPE_WIDTH
    from rich.console import Console

    return Console(file=streams.out).width


def _fit(cell: str, width: int) -> str:
    """Pad or truncate a cell to a number of columns."""
    from rich.cells import cell_len, set_cell_size

    missing = width - cell_len(cell)
    return cell + " " * missing if missing >= 0 else set_cell_size(cell, width - 1) + "…"


def wrapped(streams: Streams, text: str, indent: int = 0) -> str:
    """Wrap a sentence to the width of a terminal, all lines but the first indented; unchanged in a pipe."""
    if not streams.out_is_terminal:
        return text
    width = max(MIN_NOTE_WIDTH, columns(streams.out) - indent)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)


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
