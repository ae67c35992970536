"""The files of a result, and the record of what it was made with, which decides whether a run continues it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Any, Self

from cerebrum_cli.core.declaration import LORA, parse_adapter
from cerebrum_cli.core.differences import Differences, describe_differences, differing_conditions
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import atomic_write, read_small_json, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject, from_json, to_json
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.core.text import enumeration

VERSION = 3
_MAX_DIFFERENCES = 3  # in an error message
REPLACE = "use --restart to replace it, or choose another -o"


@frozen
class OutputPaths:
    """The path of a result, and those of the files beside it.

    `partial` has the finished rows until all are, with the settings that they are made with; `meta` has the settings of
    the result, and changes together with it. `removed` has answers to rows that the input no longer had.
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

    `notes` are worth remembering, such as the machine, and how large a run is. Once it is complete, `rows` and the
    other numbers count its rows.
    """

    fingerprint: JsonObject
    notes: JsonObject = field(default_factory=dict)
    rows: int | None = None
    failed: int | None = None
    truncated: int | None = None
    undecided: int | None = None
    empty: int | None = None

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


def read_record(path: Path) -> Record | None:
    """Read a record; None if the file does not exist. Raises BatchError if it is not a record."""
    try:
        value = read_small_json(path)
        if value.pop("version") != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", REPLACE)
        return from_json(Record, value)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BatchError(f"{path} is not the record of a result", REPLACE) from error


def write_record(paths: OutputPaths, record: Record, counts: tuple[int, RowCounts] | None = None) -> None:
    """Replace the record atomically, with the number and the counts of the rows of a result that is complete.

    Raises BatchError.
    """
    fields: dict[str, Any] = {"version": VERSION, "fingerprint": record.fingerprint, "notes": record.notes}
    if counts:
        rows, found = counts
        numbers = {"failed": found.failed, "truncated": found.truncated, "undecided": found.undecided}
        fields |= {"rows": rows, **numbers, "empty": found.empty}
    with output_errors(paths.meta):
        atomic_write(paths.meta, (to_json(fields, indent=2) + "\n").encode(), mode=0o666)
