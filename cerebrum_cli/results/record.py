"""The paths of a result, and the record beside it, which decides how the next run begins, resumes or is refused.

The record, OUTPUT.meta.json, has the settings, the SHA-256 of a file that may be replaced, and that of the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, field
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.declaration import LORA, parse_adapter
from cerebrum_cli.core.differences import Differences, describe_differences, differing_values
from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import atomic_write, read_small_json, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, to_json
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.core.text import enumeration

VERSION = 1
_MAX_DIFFERENCES = 3  # in an error message
RESUME = ", then run it again without --restart to resume"
REPLACE = "use --restart to replace it, or choose another -o"
Step = Literal["begin", "resume", "extend", "complete"]


@frozen
class OutputPaths:
    """The path of a result, and those of the files beside it.

    `partial` is the store of finished rows, and `meta` has the settings that the result was made with.
    """

    output: Path

    @property
    def partial(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def meta(self) -> Path:
        return self.output.with_name(f"{self.output.name}.meta.json")

    def objects(self) -> Iterator[JsonDict]:
        """Yield the objects of a complete result."""
        with self.output.open("rb") as lines:
            yield from map(json.loads, lines)

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.output, self.partial, self.meta)


def output_errors(path: Path, then: str = RESUME) -> AbstractContextManager[None]:
    return translate_os_errors(BatchError, path, then)


@frozen
class Record:
    """The record of a result: `fingerprint` holds everything the answers depend on, by readable names.

    `input` is the SHA-256 of an input that may change. `replaces` is that of an older result to replace. `result` is
    None until all rows are finished. `extent` holds what may grow from one run to the next, such as the number of
    questions, and `notes` what is worth remembering.
    """

    fingerprint: JsonObject
    rows: int
    input: str | None = None
    replaces: str | None = None
    failed: int | None = None
    truncated: int | None = None
    undecided: int | None = None
    empty: int | None = None
    result: str | None = None
    extent: Mapping[str, int] = field(default_factory=dict)
    notes: JsonObject = field(default_factory=dict)

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self.failed or 0, self.truncated or 0, self.undecided or 0, self.empty or 0)

    @property
    def identity(self) -> JsonDict:
        """What the positions of rows depend on."""
        return {"input": self.input, "extent": dict(self.extent)}

    def differences(self, other: Record) -> Differences:
        """Differences between two fingerprints; of adapters, with the names of their files."""
        found = differing_values(self.fingerprint, other.fingerprint)
        if "adapter" in found:
            found["adapter"] = self._adapter_files, other._adapter_files
        return found

    def how_other_differs(self, other: Record) -> str:
        """Describe how the fingerprint of another differs, like "another model (a, now b)"; empty if it is equal."""
        described = describe_differences(self.differences(other), ", now")
        clauses = [f"another {clause}" for clause in described[:_MAX_DIFFERENCES]]
        if more := len(described) - len(clauses):
            clauses.append(f"{more} more")
        return enumeration(clauses)

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
            raise BatchError(f"{path} was written by another version of cerebrum", "choose another -o, or --restart")
        record = from_json(Record, value)
        sum(record.extent.values())  # raises TypeError unless they are numbers
        return record
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BatchError(
            f"{path} is not a batch record", "move it elsewhere, choose another -o, or use --restart to replace it"
        ) from error


def write_record(paths: OutputPaths, record: Record, then: str = RESUME) -> None:
    """Replace the record atomically. Raises BatchError, whose hint ends with what to do `then`."""
    fields = {key: value for key, value in asdict(record).items() if value != {}}
    text = to_json({"version": VERSION, **fields}, indent=2) + "\n"
    with output_errors(paths.meta, then):
        atomic_write(paths.meta, text.encode(), mode=0o666)


def decide(record: Record | None, has_rows: bool, output: str | None, new: Record, paths: OutputPaths) -> Step:
    """Decide the next step without --restart. Raises BatchError where it would lose or mix answers.

    The files on disk are a record, a partial file if it `has_rows`, and an output; `new` is the record of a new result.

    The files are written in this order, each synced before the next, so that they show how far a batch came: the
    record; rows in the partial file; the record with the hash of the result; the result. Then the partial file is
    deleted, unless the result is a table.
    """
    if record is None:
        if has_rows:
            raise BatchError(
                f"{paths.partial} exists, but its record {paths.meta.name} is missing",
                "move it elsewhere, choose another -o, or use --restart to start over",
            )
        if output:
            raise BatchError(f"{paths.output} already exists", REPLACE)
        return "begin"
    is_complete = output is not None and record.result == output
    if difference := record.how_other_differs(new):
        if has_rows and not is_complete:
            raise BatchError(
                f"{paths.partial} was started with {difference}",
                "run the previous command to resume, or use --restart to start over",
            )
        if output:
            problem = f"was made with {difference}" if is_complete else "already exists"
            raise BatchError(f"{paths.output} {problem}", REPLACE)
        return "begin"
    _require_no_fewer(record, new, paths)
    if is_complete:
        return "complete" if record.identity == new.identity else "extend"
    is_to_be_replaced = output == record.replaces and (has_rows or record.result is None)
    if output is None or is_to_be_replaced:
        return "resume"
    raise BatchError(
        f"{paths.output} was changed by another program",
        "move it elsewhere to resume, or use --restart to start over and replace it",
    )


def _require_no_fewer(record: Record, new: Record, paths: OutputPaths) -> None:
    before, now = record.extent, new.extent
    if smaller := [f"{name} ({before[name]}, now {now[name]})" for name in now if now[name] < before.get(name, 0)]:
        raise BatchError(
            f"{paths.output} already has more {' and '.join(smaller)}",
            "use the same number or more, choose another -o, or use --restart to start over",
        )
