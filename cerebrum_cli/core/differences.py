"""Differences between what two results were made with, and how messages show them."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import one_line, truncate

MODEL, MODEL_FILE = "model", "model file"  # the name of a model; the digest of its file, or the model of its servers
Differences = dict[str, tuple[Any, Any]]  # both values of each key for which they differ

_MAX_VALUE = 40  # characters
_DIGEST = re.compile(r"([0-9a-f]{8})[0-9a-f]{56}")  # a SHA-256
_SHORT_DIGEST = re.compile(r"[0-9a-f]{8}…")


def differing_conditions(first: JsonObject, second: JsonObject) -> Differences:
    """Both values of each key for which two results were made differently.

    A setting that one lacks has its default there, so that a new setting leaves older results as they are. A model is
    the same by another name.
    """
    defaults = asdict(Settings())
    found = {}
    for key in {**second, **first}:
        before, after = (conditions.get(key, defaults.get(key)) for conditions in (first, second))
        if to_json(_unless_off(before)) != to_json(_unless_off(after)):
            found[key] = before, after
    if MODEL in found:
        is_known = MODEL_FILE in first and MODEL_FILE in second
        found.pop(MODEL if is_known and MODEL_FILE not in found else MODEL_FILE, None)
    return found


def _unless_off(value: Any) -> Any:
    """The value, or None for a switch that is off: older results may lack the switch."""
    return None if value is False else value


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
