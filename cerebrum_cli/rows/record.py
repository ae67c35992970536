"""The files of a result, and the record of what it was made with, which decides whether a run continues it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Self

from cerebrum_cli.core.declaration import LORA, parse_adapter
from cerebrum_cli.core.differences import Differences, describe_differences, differing_conditions
from cerebrum_cli.core.errors import DAMAGE, BatchError
from cerebrum_cli.core.files import atomic_write, read_small, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, known_values, to_json
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.core.text import enumeration

VERSION = 3
_MAX_DIFFERENCES = 3  # in an error message
REPLACE = "use --restart to replace it, or choose another -o"


@frozen
class OutputPaths:
    """The path of a result, and those of the files beside it.

    `partial` holds the finished rows and their settings until all rows are finished. `meta` has the settings of the
    result, and is replaced together with it. `removed` has answers to rows that the input no longer had.
    """

    output: Path

    @classmethod
    def of(cls, output: Path) -> Self:
        """The paths for an output; for a symbolic link, of its target."""
        return cls(output.resolve() if output.is_symlink() else output)

    @property
    def partial(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def meta(self) -> Path:
        return self.output.with_name(f"{self.output.name}.meta.json")

    @property
    def removed(self) -> Path:
        return self.output.with_name(f"{self.output.name}.removed.jsonl")

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.output, self.partial, self.meta, self.removed)


def output_errors(path: Path) -> AbstractContextManager[None]:
    return translate_os_errors(BatchError, path)


@frozen
class Record:
    """What a result is made with: `fingerprint` holds everything the answers depend on, by readable names.

    `notes` are worth remembering, such as the machine.
    """

    fingerprint: JsonObject
    notes: JsonObject = field(default_factory=dict)

    @property
    def object(self) -> JsonDict:
        return {"version": VERSION, "fingerprint": self.fingerprint, "notes": self.notes}

    def differences(self, other: Record) -> Differences:
        """Differences between two fingerprints; of adapters, with the names of their files."""
        found = differing_conditions(self.fingerprint, other.fingerprint)
        if "adapter" in found:
            found["adapter"] = self._adapter_files, other._adapter_files
        return found

    def how_other_differs(self, other: Record) -> str:
        """Describe how the fingerprint of another differs, like "other settings: top_k (1, now 2)"; empty if equal."""
        described = describe_differences(self.differences(other), ", now")
        if not described:
            return ""
        more = len(described) - _MAX_DIFFERENCES
        shown = [*described[:_MAX_DIFFERENCES], *([f"{more} more"] if more > 0 else [])]
        return f"other settings: {enumeration(shown)}"

    @property
    def _adapter_files(self) -> str:
        """Names of the adapters' files, each with its scale unless that is 1."""
        adapters = map(parse_adapter, self.notes.get(LORA, ()))
        return ", ".join(Path(path).name + (f":{scale:g}" if scale != 1 else "") for path, scale in adapters) or "none"


def parse_record(text: bytes, path: Path) -> Record:
    """The record in a file. Raises BatchError for another text."""
    try:
        values = json.loads(text)
        if values.pop("version") != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", REPLACE)
        return from_json(Record, known_values(Record, values))
    except DAMAGE as error:
        raise BatchError(f"{path} is damaged: {error!r}", REPLACE) from error


def read_record(path: Path) -> Record | None:
    """Read a record; None if the file does not exist. Raises BatchError if it is not a record."""
    try:
        return parse_record(read_small(path), path)
    except FileNotFoundError:
        return None


def write_record(paths: OutputPaths, record: Record, rows: int, counts: RowCounts) -> None:
    """Replace the record of a complete result atomically, with how many rows it has. Raises BatchError."""
    numbers = {name: getattr(counts, name) for name in ("failed", "truncated", "undecided", "empty")}
    text = to_json({**record.object, "rows": rows, **numbers}, indent=2)
    with output_errors(paths.meta):
        atomic_write(paths.meta, f"{text}\n".encode(), mode=0o666)
