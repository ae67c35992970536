"""Differences between two JSON objects, and how messages show them."""

from __future__ import annotations

import re
from typing import Any

from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.text import one_line, truncate

Differences = dict[str, tuple[Any, Any]]  # both values of each key for which they differ

_MAX_VALUE = 40  # characters
_DIGEST = re.compile(r"([0-9a-f]{8})[0-9a-f]{56}")  # a SHA-256
_SHORT_DIGEST = re.compile(r"[0-9a-f]{8}…")


def differing_values(first: JsonObject, second: JsonObject) -> Differences:
    pairs = {key: (first.get(key), second.get(key)) for key in {**second, **first}}
    return {key: (before, after) for key, (before, after) in pairs.items() if to_json(before) != to_json(after)}


def describe_differences(found: Differences, between: str) -> list[str]:
    """Each difference with both values in parentheses, unless they look alike or are digests of files."""
    described = []
    for name, values in found.items():
        before, after = map(_short_value, values)
        if before == after or (_SHORT_DIGEST.match(before) and _SHORT_DIGEST.match(after)):
            described.append(name)
        else:
            described.append(f"{name} ({before}{between} {after})")
    return described


def _short_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = one_line(value if isinstance(value, str) else to_json(value))
    return truncate(_DIGEST.sub(r"\1…", text), _MAX_VALUE)
