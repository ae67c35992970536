"""The record beside a result, OUTPUT.meta.json: its settings, the file it may replace, and the hash of the result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.result import to_json
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import RowCounts
from cerebrum_cli.core.lora import LORA, parse_adapter

VERSION = 1
_ADAPTER = "adapter"  # key of the adapters' content in a fingerprint
_MAX_DIFFERENCES = 3  # in an error message
_MAX_VALUE = 40  # characters
_SHORT_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_DIGEST = re.compile(rf"[0-9a-f]{{{_MAX_VALUE - 1}}}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Size in bytes and hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a batch: `fingerprint` holds everything the answers depend on, by readable names.

    `replaces` identifies an older result to replace. `result` is None until all rows are finished. `extent` holds what
    may grow from one run to the next, such as the number of questions, and `notes` what is worth remembering.
    """

    fingerprint: Mapping[str, Any]
    rows: int
    replaces: Identity | None = None
    failed: int | None = None
    truncated: int | None = None
    undecided: int | None = None
    result: Identity | None = None
    extent: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> RowCounts:
        """Counts of a complete result."""
        return RowCounts(self.failed or 0, self.truncated or 0, self.undecided or 0)

    @property
    def adapter_files(self) -> str:
        """Names of the adapters' files, each with its scale unless that is 1; empty without any."""
        adapters = map(parse_adapter, self.notes.get(LORA, ()))
        return ", ".join(Path(path).name + (f":{scale:g}" if scale != 1 else "") for path, scale in adapters)


def encode_record(record: Record) -> bytes:
    fields = {key: value for key, value in asdict(record).items() if value != {}}
    value = json.loads(to_json({"version": VERSION, **fields}))
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def read_record(path: Path) -> Record | None:
    """Read a record; None if the file does not exist. Raises BatchError if it is not a record."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", "choose another -o, or --restart")
        identities = {key: value[key] and Identity(**value[key]) for key in ("replaces", "result")}
        counts = (value["failed"], value["truncated"], value["undecided"])
        more = (dict(value.get("extent", {})), dict(value.get("notes", {})))
        return Record(
            dict(value["fingerprint"]), value["rows"], identities["replaces"], *counts, identities["result"], *more
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path} is not a batch record"
        raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to replace it") from error


def normalize(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a fingerprint to the values that JSON gives back."""
    value: dict[str, Any] = json.loads(to_json(dict(fingerprint)))
    return value


def describe_difference(before: Record, now: Record) -> str | None:
    """Describe how two fingerprints differ, like "another model (a, now b)"; None if they are equal."""
    old, new = before.fingerprint, now.fingerprint
    names = [name for name in {**new, **old} if to_json(old.get(name)) != to_json(new.get(name))]
    if not names:
        return None
    descriptions = [_describe(name, before, now) for name in names[:_MAX_DIFFERENCES]]
    if more := len(names) - len(descriptions):
        descriptions.append(f"{more} more")
    return enumeration(descriptions)


def _describe(name: str, before: Record, now: Record) -> str:
    values = [each.fingerprint.get(name) for each in (before, now)]
    if name == _ADAPTER:
        digests = [value and _SHORT_DIGEST.sub(r"\1", value) for value in values]
        files = [before.adapter_files, now.adapter_files]
        values = digests if files[0] == files[1] else [file or None for file in files]
    return f"another {name.replace('_', ' ')}{shown_values(values[0], ', now', values[1])}"


def shown_values(before: Any, between: str, after: Any) -> str:
    """Two values of a fingerprint in parentheses; empty where they look alike, or are digests of files."""
    texts = [short_value(value) for value in (before, after)]
    if texts[0] == texts[1] or all(_DIGEST.match(text) for text in texts):
        return ""
    return f" ({texts[0]}{between} {texts[1]})"


def enumeration(clauses: Sequence[str]) -> str:
    """Clauses with commas, and with "and" before the last."""
    return " and ".join(filter(None, [", ".join(clauses[:-1]), clauses[-1]]))


def short_value(value: Any) -> str:
    """A value of a fingerprint as text for a message."""
    text = "none" if value is None else value if isinstance(value, str) else to_json(value)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
