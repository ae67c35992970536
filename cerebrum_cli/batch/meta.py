"""The record beside a result, OUTPUT.meta.json, and what it says about the next run: begin, resume, complete or refuse.

It has the settings, the identity of a file that may be replaced, and that of the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cerebrum_cli.batch.output_files import Identity, OutputPaths
from cerebrum_cli.batch.result import to_json
from cerebrum_cli.core.conversion import LORA, parse_adapter
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import RowCounts

VERSION = 1
_MAX_DIFFERENCES = 3  # in an error message
_MAX_VALUE = 40  # characters
_SHORTStep = Literal["begin", "resume", "extend", "complete"]
_SMALLER = "use the same number or more, choose another -o, or use --restart to start over"
_REPLACE = "use --restart to replace it, or choose another -o"
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
Step = Literal["begin", "resume", "extend", "complete"]
_SMALLER = "use the same number or more, choose another -o, or use --restart to start over"
_REPLACE = "use --restart to replace it, or choose another -o"
_DIGEST = re.compile(rf"[0-9a-f]{{{_MAX_VALUE - 1}}}")


@dataclass(frozen=True, slots=True)
class BatchRecord:
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
        """Names of the adapters' files, each with its scale unless that is 1."""
        adapters = map(parse_adapter, self.notes.get(LORA, ()))
        return ", ".join(Path(path).name + (f":{scale:g}" if scale != 1 else "") for path, scale in adapters) or "none"


def encode_record(record: BatchRecord) -> bytes:
    fields = {key: value for key, value in asdict(record).items() if value != {}}
    value = json.loads(to_json({"version": VERSION, **fields}))
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def read_record(path: Path) -> BatchRecord | None:
    """Read a record; None if the file does not exist. Raises BatchError if it is not a record."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", "choose another -o, or --restart")
        identities = {key: value[key] and Identity(**value[key]) for key in ("replaces", "result")}
        counts = (value["failed"], value["truncated"], value["undecided"])
        more = (dict(value.get("extent", {})), dict(value.get("notes", {})))
        return BatchRecord(
            dict(value["fingerprint"]), value["rows"], identities["replaces"], *counts, identities["result"], *more
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} is not a batch record"
        raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to replace it") from error


def normalize(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a fingerprint to the values that JSON gives back."""
    value: dict[str, Any] = json.loads(to_json(dict(fingerprint)))
    return value


def describe_difference(before: BatchRecord, now: BatchRecord) -> str | None:
    """Describe how two fingerprints differ, like "another model (a, now b)"; None if they are equal."""
    old, new = before.fingerprint, now.fingerprint
    names = [name for name in {**new, **old} if to_json(old.get(name)) != to_json(new.get(name))]
    if not names:
        return None
    descriptions = []
    for name in names[:_MAX_DIFFERENCES]:
        is_adapter = name == "adapter"  # the names of its files show more than the digests of their contents
        values = (before.adapter_files, now.adapter_files) if is_adapter else (old.get(name), new.get(name))
        descriptions.append(f"another {name.replace('_', ' ')}{shown_values(values[0], ', now', values[1])}")
    if more := len(names) - len(descriptions):
        descriptions.append(f"{more} more")
    return enumeration(descriptions)


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


def decide(
    record: BatchRecord | None, has_rows: bool, output: Identity | None, new: BatchRecord, paths: OutputPaths
) -> Step:
    """Decide the next step without --restart. Raises BatchError where it would lose or mix answers.

    The files on disk are a record, a partial file if it `has_rows`, and an output. `new` is the record of a result that
    would begin. With a larger extent, a complete result is extended.

    The files are written in this order, each synced before the next, so that they show how far a batch came: the
    record; rows in the partial file; the record with the hash of the result; the result. Then the partial file is
    deleted.
    """
    if record is None:
        if has_rows:
            message = f"{paths.partial} exists, but its record {paths.meta.name} is missing"
            raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to start over")
        if output:
            raise BatchError(f"{paths.output} already exists", _REPLACE)
        return "begin"
    if difference := describe_difference(record, new):
        if has_rows:
            message = f"{paths.partial} was started with {difference}"
            raise BatchError(message, "run the previous command to resume, or use --restart to start over")
        if output:
            problem = f"was made with {difference}" if output == record.result else "already exists"
            raise BatchError(f"{paths.output} {problem}", _REPLACE)
        return "begin"
    if smaller := describe_smaller(record.extent, new.extent):
        raise BatchError(f"{paths.output} already has more {smaller}", _SMALLER)
    if record.result and record.result == output:
        return "complete" if record.extent == new.extent else "extend"
    if output is None:
        return "resume" if has_rows else "begin"
    if has_rows:
        if output == record.replaces:
            return "resume"
        message = f"{paths.output} was changed after {paths.partial} was started"
        raise BatchError(message, "move it elsewhere to resume, or use --restart to start over and replace it")
    if output == record.replaces and record.result is None:
        return "begin"  # --restart was interrupted before the first row
    raise BatchError(f"{paths.output} was changed after it was completed", _REPLACE)


def describe_smaller(before: Mapping[str, int], now: Mapping[str, int]) -> str | None:
    """Describe what an extent has less of, like "questions (40, now 20)"; None if it has not."""
    smaller = [f"{name} ({before[name]}, now {now[name]})" for name in now if now[name] < before.get(name, 0)]
    return " and ".join(smaller) or None
