"""Print values as tables, and as lines of names and values."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.controls import strip_controls
from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import DEFAULT
from cerebrum_cli.core.text import format_count, format_size, one_line
from cerebrum_cli.terminal.streams import BOLD, Streams

if TYPE_CHECKING:
    from cerebrum_cli.core.events import FinishEvent, TallyEvent
    from cerebrum_cli.library.fit import DownloadPlan
    from cerebrum_cli.replies.interface import Model

PIPE_WIDTH = 10_000  # columns of text in a pipe, where nothing is wrapped
MIN_COLUMNS = 2  # of a table; an even narrower terminal wraps the lines itself
MIN_SHORTENED = 15  # columns of the terminal
EXCERPT_LENGTH = 100  # characters
SIZES = ("size", "memory")  # columns of numbers of bytes
HIDDEN = ("metadata", "files")  # fields of a model that only --json prints
OPTIONAL = ("notes", "merged_from", "converted_from", "unsupported")  # fields that are left out if they are empty
WRAPPED = ("notes", "sampling", "converted_from")  # beginnings of the names of fields with long texts
NO_FORMAT = "unknown; choose one with --format, or use ask --raw"
NO_PROMPTS = "no saved prompts; cerebrum prompts edit NAME creates one"
WEIGHTS = {True: "weights repacked where possible", False: "weights as in the file (not repacked)"}
_ONE_LINE = str.maketrans("\t\n", "  ")


Row = JsonObject
Fields = Mapping[str, str]  # texts by name
Column = str | Callable[[Row], Any]  # the key of a row, or what is shown of the row


def print_columns(
    columns: Mapping[str, Column], streams: Streams, rows: Iterable[Row], shorten: str = "", drop: Sequence[str] = ()
) -> None:
    cells = [[column_value(row, column) for column in columns.values()] for row in rows]
    print_table(streams, tuple(columns), cells, shorten, drop)


def column_value(row: Row, column: Column) -> Any:
    if not isinstance(column, str):
        return column(row)
    if column in SIZES and row[column] is not None:
        return format_size(row[column])
    return row[column]


def speed_text(row: Row) -> str | None:
    """Forecast of a model: "9.1 t/s after 8 s", or "9.1 t/s, thinks 4 min"."""
    speed = row["speed"]
    if speed is None:
        return None
    if seconds := speed["thinking_s"]:
        return f"{speed['tokens_per_second']:g} t/s, thinks {max(1, round(seconds / 60))} min"
    return f"{speed['tokens_per_second']:g} t/s after {speed['first_token_s']:g} s"


def is_url(reference: str) -> bool:
    """Whether a model is referred to by its URL, since another one has its name."""
    return "://" in reference


def _location(row: Row) -> str:
    place = without_home(row["path"])
    if row["repo_id"]:
        place = f"hf.co/{row['repo_id']}"
    if is_url(row["reference"]):
        return f"{place}, commit {row['revision'][:7]}"
    if row["converted_from"]:
        return f"{place}, converted from {row['converted_from']['source']}"
    if row["merged_from"]:
        return f"{place}, merged from {' and '.join(row['merged_from'])}"
    return place


def model_name(row: Row) -> str | None:
    reference: str | None = row["model"]
    if reference and Path(reference).is_absolute():
        return Path(reference).name
    return reference


def mark(is_marked: bool) -> str:
    return "*" if is_marked else ""


def excerpt(text: str) -> str:
    return textwrap.shorten(text, EXCERPT_LENGTH, placeholder=" ...")


def updated(row: Row) -> str:
    return str(row["updated"])[:16].replace("T", " ")


print_models = partial(
    print_columns,
    {
        "": lambda row: mark(row["default"]),
        "name": "name",
        "quant": "quantization",
        "size": "size",
        "format": "format",
        "context": "context_size",
        "speed": speed_text,
        "last used": lambda row: row["last_used"] and row["last_used"][:10],
        "where": _location,
    },
)
print_found = partial(
    print_columns,
    {
        "model": "reference",
        "quant": "quantization",
        "size": "size",
        "context": "context_size",
        "registered as": lambda row: row["name"] or row["error"],
    },
    shorten="registered as",
    drop=("context", "quant"),
)
print_catalogue = partial(
    print_columns,
    {
        "name": "name",
        "installed": "here",
        "best fit": "recommended",
        "size": "size",
        "memory": "memory",
        "fit": "fit",
        "speed": speed_text,
        "good for": "good_for",
        "license": "license",
        "title": "title",
    },
    shorten="license",
    drop=("title", "installed", "best fit", "license", "good for", "memory"),
)
print_choices = partial(
    print_columns,
    {
        "": "number",
        "name": "name",
        "quant": "recommended",
        "size": "size",
        "memory": "memory",
        "speed": speed_text,
        "good for": "good_for",
        "license": "license",
    },
    shorten="license",
    drop=("quant",),
)
print_replies = partial(
    print_columns,
    {"": lambda row: mark(row["current"]), "reply": "reply", "begins with": lambda row: excerpt(row["text"])},
    shorten="begins with",
)
print_prompts = partial(
    print_columns,
    {"name": "name", "model": model_name, "prompt": lambda row: excerpt(row["prompt"] or row["system"] or "")},
    shorten="prompt",
    drop=("model",),
)


def print_matches(streams: Streams, matches: Iterable[Row]) -> None:
    for match in matches:
        line = "{session}  {created:.10}  {role}: {excerpt}".format_map(match)
        streams.answer(f"{strip_controls(line).translate(_ONE_LINE)}\n")


def print_candidates(streams: Streams, plan: DownloadPlan) -> None:
    head = f"{plan.name} at a context of {plan.context} tokens; {plan.capacity.description}"
    streams.answer(f"\n{streams.wrapped(head)}\n\n")
    rows = []
    for candidate in plan.candidates:
        sizes = format_size(candidate.size), format_size(candidate.needed)
        installed = "yes" if candidate.installed else ""
        speed = speed_text(asdict(candidate))
        rows.append((mark(candidate.recommended), candidate.quantization, *sizes, candidate.fit, speed, installed))
    print_table(streams, ("", "quant", "size", "memory", "fit", "speed", "installed"), rows)
    streams.answer("\n* recommended for this machine\n")


def print_description(streams: Streams, description: JsonObject) -> None:
    fields: dict[str, str] = {}
    for key, value in description.items():
        if key == "sampling":
            fields |= _sampling_by_mode(value)
        elif key not in HIDDEN and (value or key not in OPTIONAL):
            fields[key] = _describe(key, value)
    indent = max(map(len, fields)) + 2
    for key, text in fields.items():
        if key.startswith(WRAPPED):
            fields[key] = streams.wrapped(text, indent)
    streams.answer(field_lines(fields))


def _sampling_by_mode(modes: Mapping[str, Mapping[str, Row]]) -> Fields:
    """A field for each mode of thinking, or one if both have the same settings."""
    fields = {}
    for mode, samplers in modes.items():
        values = {name: sampler["value"] for name, sampler in samplers.items()}
        origins = {name: sampler["origin"] for name, sampler in samplers.items()}
        fields[f"sampling, {mode.replace('_', ' ')}"] = sampling_text(values, origins)
    first, *others = modes.values()
    if all(samplers == first for samplers in others):
        return {"sampling": next(iter(fields.values()))}
    return fields


def _describe(key: str, value: Any) -> str:
    if key == "size" and value is not None:
        return f"{format_size(value)} ({value} bytes)"
    if key == "format" and value is None:
        return NO_FORMAT
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_item_text(item)}" for name, item in value.items() if item is not None)
    return _cell(value)


def _item_text(item: Any) -> str:
    items = item if isinstance(item, (list, tuple)) else [item]
    return " and ".join(map(str, items))


def print_table(
    streams: Streams,
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    shorten: str = "",
    drop: Sequence[str] = (),
) -> None:
    """Print a table; on a narrow terminal, the column `shorten` is truncated, then columns are left out.

    Columns are left out in the order of `drop`, and after these from the last on.
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
    padded = [[_fit_cell(cell, widths[heading]) for cell in columns[heading]] for heading in widths]
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    lines[0] = streams.styled(lines[0], BOLD)
    streams.answer("".join(f"{line}\n" for line in lines), is_styled=True)


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


def _fit_cell(cell: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(cell) <= width:
        return set_cell_size(cell, width)
    return set_cell_size(cell, width - 1) + "…"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return strip_controls(str(value))


def field_lines(fields: Fields) -> str:
    width = max(map(len, fields))
    return "".join(f"{name:<{width}}  {strip_controls(value)}\n" for name, value in fields.items())


def settings_lines(values: JsonObject, origins: Fields) -> str:
    texts = {key: _setting_text(value) for key, value in values.items()}
    width = max((len(text) for key, text in texts.items() if key in origins), default=0)
    for key, text in texts.items():
        if key in origins:
            texts[key] = f"{text:<{width}}  {origins[key]}"
    return field_lines(texts).rstrip("\n")


def sampling_text(samplers: JsonObject, origins: Fields | None = None) -> str:
    """Samplers in a line: "temperature 0.6 (model file), top_k 20 (catalog)"; without unknown origins."""
    texts = []
    for key, value in samplers.items():
        text = f"{key} {_setting_text(value)}"
        if origins is not None:
            text += f" ({origins.get(key, DEFAULT)})"
        texts.append(text)
    return ", ".join(texts)


def _setting_text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(repr(str(item)) for item in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)


def print_rows(
    streams: Streams,
    rows: list[JsonDict],
    json: bool,
    as_table: Callable[[Streams, Iterable[Row]], None],
    empty: str,
) -> None:
    """Print rows as one JSON list or as a table; without any, print the message `empty`, if there is one."""
    if json:
        streams.answer_object(rows)
    elif rows:
        as_table(streams, rows)
    else:
        streams.report(empty)


def stats_line(finish: FinishEvent, model: str, format_name: str, repacks: bool | None, sampling: str) -> str:
    """Line printed by `--stats`; `repacks` is None where a server holds the weights."""
    timings = finish.timings
    parts = [model, f"format {format_name}"]
    if repacks is None:
        parts.append("on a server")
    else:
        parts += f"load {timings.load_s:.2f} s", WEIGHTS[repacks]
    cached = ""
    if finish.cached_tokens:
        cached = f" ({finish.cached_tokens} cached)"
    parts.append(
        f"prompt {finish.prompt_tokens or 'of unknown'} tokens{cached}{_rate(timings.prompt_tokens_per_second)}"
    )
    generated = f"generated {finish.completion_tokens} tokens{_rate(timings.tokens_per_second)}"
    if timings.draft_n:
        generated += f", {timings.draft_n_accepted} of {timings.draft_n} draft tokens accepted"
    parts += generated, f"first token {timings.ttft_s:.2f} s", f"context {finish.context_size or 'unknown'}"
    parts += sampling, f"seed {finish.seed}", f"finish reason {finish.reason}"
    return " | ".join(parts)


def _rate(tokens_per_second: float) -> str:
    if tokens_per_second:
        return f", {tokens_per_second:.1f} t/s"
    return ""


def model_text(loaded: Model) -> str:
    """A model with its size and quantization, as far as its file states them; a server may have another file."""
    model = loaded.model
    if loaded.is_remote:
        return model.label
    name = model.label.removesuffix(f":{model.quantization}")
    return " · ".join(filter(None, (name, model.text_of("general.size_label"), model.quantization)))


def context_text(used: int, size: int) -> str:
    return f"context {used}/{size} ({used / size:.0%})"


def result_text(event: TallyEvent) -> str:
    """Result of a vote: "4/5: 5 of 6 votes (83%); runner-up 0.9: 1"."""
    if not event.tally:
        return f"no final answer in {format_count(event.samples, 'sample')}"
    (winner, count), *behind = event.tally
    text = f"{one_line(winner)}: {count} of {event.samples} votes ({count / event.samples:.0%})"
    if not behind:
        return text
    second, second_count = behind[0]
    return f"{text}; runner-up {one_line(second)}: {second_count}"
