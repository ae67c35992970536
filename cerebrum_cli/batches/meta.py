"""The record beside a result, OUTPUT.meta.json: what made it, what it may replace, and what it was when it was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cerebrum_cli.batches.result import to_json
from cerebrum_cli.core.errors import BatchError

VERSION = 1
_MAX_DIFFERENCES = 3  # differences
_MAX_VALUE = 40  # characters of a value that is told


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from another: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a batch: `fingerprint` is all that makes its answers, by names that can be told to a user.

    `replaces` is the older result that was to be replaced. `result` is None until all rows are done.
    """

    fingerprint: Mapping[str, Any]
    rows: int
    replaces: Identity | None = None
    failed: int | None = None
    result: Identity | None = None


def encode_record(record: Record) -> bytes:
    """Return a record as it is written."""
    return (to_indented_json({"version": VERSION, **asdict(record)}) + "\n").encode()


def read_record(path: Path) -> Record | None:
    """Return the record in a file; None if there is no such file, BatchError if it holds something else."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", "choose another -o, or --restart")
        identities = {key: value[key] and Identity(**value[key]) for key in ("replaces", "result")}
        return Record(dict(value["fingerprint"]), value["rows"], failed=value["failed"], **identities)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"{path} is not the record of a batch"
        raise BatchError(what, "move it away, or choose another -o; --restart replaces it") from error


def normalize(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint as it is read again."""
    value: dict[str, Any] = json.loads(to_json(dict(fingerprint)))
    return value


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words how two fingerprints differ: "another model (a, now b)"; None if they do not."""
    names = [name for name in {**now, **before} if to_json(before.get(name)) != to_json(now.get(name))]
    if not names:
        return None
    described = [_describe(name, before.get(name), now.get(name)) for name in names[:_MAX_DIFFERENCES]]
    if more := len(names) - len(described):
        described.append(f"{more} more")
    return " and ".join(filter(None, [", ".join(described[:-1]), described[-1]]))


def to_indented_json(value: Any) -> str:
    """Return a value as JSON for people, which can be written as UTF-8."""
    return json.dumps(json.loads(to_json(value)), ensure_ascii=False, indent=2)


def _describe(name: str, before: Any, now: Any) -> str:
    words = f"another {name.replace('_', ' ')}"
    texts = [_short(value) for value in (before, now)]
    return words if texts[0] == texts[1] else f"{words} ({texts[0]}, now {texts[1]})"


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else to_json(value)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
