"""Tables of models: installed, in the catalog, on the Hub, of other programs; and what is known of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.tables import field_lines, print_columns, print_table

if TYPE_CHECKING:
    from cerebrum_cli.terminal.streams import Streams

HIDDEN = ("metadata", "files")  # fields of a model that only --json prints
OPTIONAL = ("notes", "merged_from", "converted_from", "unsupported")  # fields that are left out if they are empty
WRAPPED = ("notes", "sampling", "converted_from")  # beginnings of the names of fields with long texts
NO_FORMAT = "unknown; choose one with --format, or use ask --raw"

Row = JsonObject


def speed_text(row: Row) -> str | None:
    """Forecast of a model in a table: "9.1 t/s after 8 s", or "9.1 t/s, 4 min of reasoning"."""
    speed = row["speed"]
    if speed is None:
        return None
    if reasoning := _reasoning_time(speed):
        return f"{speed['tokens_per_second']:g} t/s, {reasoning}"
    return f"{speed['tokens_per_second']:g} t/s after {speed['first_token_s']:g} s"


def forecast(row: Row) -> str | None:
    """Forecast of a model as a sentence: "about 9.1 tokens/s; first word after 8 s for a 200-token prompt"."""
    from cerebrum_cli.engine.capacity import PROMPT_TOKENS

    speed = row["speed"]
    if speed is None:
        return None
    first = f"first word after {speed['first_token_s']:g} s for a {PROMPT_TOKENS}-token prompt"
    if reasoning := _reasoning_time(speed):
        first = f"{reasoning} before the answer"
    return f"about {speed['tokens_per_second']:g} tokens/s; {first}"


def _reasoning_time(speed: JsonObject) -> str:
    seconds = speed["thinking_s"]
    return f"{max(1, round(seconds / 60))} min of reasoning" if seconds else ""


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


def _unique_name(row: Row) -> str:
    if is_url(row["reference"]):
        return f"{Path(row['path']).name}@{row['revision'][:7]}"
    return str(row["reference"])


def mark(is_marked: bool) -> str:
    return "*" if is_marked else ""


print_models = partial(
    print_columns,
    {
        "": lambda row: mark(row["default"]),
        "name": _unique_name,
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
        "fit": "fit",
        "speed": speed_text,
        "good for": "good_for",
        "license": "license",
    },
    shorten="license",
    drop=("quant", "memory", "license", "good for", "speed"),
)
print_repositories = partial(
    print_columns,
    {
        "repository": lambda row: f"{row['repo_id']} (gated)" if row["gated"] else row["repo_id"],
        "license": "license",
        "updated": "updated",
        "downloads": lambda row: f"{row['downloads']:,}",
    },
    drop=("updated", "license"),
)


def print_candidates(streams: Streams, heading: str, candidates: Iterable[Row]) -> None:
    """Print the quantizations of a model, with sizes and which of them fit."""
    streams.answer(f"\n{streams.wrapped(heading)}\n\n")
    rows = []
    for row in candidates:
        sizes = format_size(row["size"]), format_size(row["needed"])
        installed = "yes" if row["installed"] else ""
        rows.append((mark(row["recommended"]), row["quantization"], *sizes, row["fit"], speed_text(row), installed))
    print_table(streams, ("", "quant", "size", "memory", "fit", "speed", "installed"), rows)
    streams.answer("\n* recommended for this machine\n")


def print_description(streams: Streams, description: JsonObject) -> None:
    fields: JsonDict = {}
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


def _sampling_by_mode(modes: Mapping[str, Mapping[str, Row]]) -> dict[str, str]:
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


def _describe(key: str, value: Any) -> Any:
    if key == "size" and value is not None:
        return f"{format_size(value)} ({value} bytes)"
    if key == "format" and value is None:
        return NO_FORMAT
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_item_text(item)}" for name, item in value.items() if item is not None)
    return value


def _item_text(item: Any) -> str:
    items = item if isinstance(item, (list, tuple)) else [item]
    return " and ".join(map(str, items))
