"""The files of a batch result, which decide how the next run begins, resumes or completes it, or is refused.

The record beside a result, OUTPUT.meta.json, has the settings, the SHA-256 of a file that may be replaced, and that of
the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, field
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cerebrum_cli.core.declaration import LORA, parse_adapter
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import atomic_write, read_small_json, translate_os_errors, write_all
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json
from cerebrum_cli.core.row_events import RowCounts
from cerebrum_cli.core.text import enumeration, one_line, truncate
from cerebrum_cli.results.schema import DELIMITERS, to_json

VERSION = 1
_WRITTEN_TOGETHER = 64  # lines of a result
MADE_BY = ("cerebrum", "llama.cpp")  # keys of a fingerprint: versions of the programs, which older ones lack
PARQUET = "parquet"
_JSON_SUFFIXES = ("", ".jsonl", ".ndjson", ".json")
_MAX_DIFFERENCES = 3  # in an error message
_MAX_VALUE = 40  # characters
_DIGEST = re.compile(rf"[0-9a-f]{{{_MAX_VALUE - 1}}}")
RESUME = ", then run it again without --restart to resume"
REPLACE = "use --restart to replace it, or choose another -o"
Differences = dict[str, tuple[Any, Any]]  # both values of each key for which they differ
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

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.output, self.partial, self.meta)


def paths_of(output: Path) -> OutputPaths:
    """The paths for an output; for a symbolic link, of its target. Raises UsageError if it cannot be a file."""
    try:
        mode = output.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}", "choose another -o") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{output} is a directory", "name a file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{output} is not a regular file", "use `-o -` to stream to standard output")
    return OutputPaths(output.resolve() if output.is_symlink() else output)


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """Like `paths_of`. Raises UsageError if it cannot be written, or would overwrite `source`, the input."""
    paths = paths_of(output)
    folder = paths.output.parent
    if not folder.is_dir():
        raise UsageError(f"directory {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"directory {folder} is not writable", "choose another -o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the output would overwrite the input {source}", "choose another -o")
    return paths


def table_type(output: Path) -> str | None:
    """Suffix of a result that is a table, without the dot; None for JSON Lines. Raises UsageError for others."""
    suffix = output.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return None
    if (name := suffix.removeprefix(".")) in (PARQUET, *DELIMITERS):
        return name
    raise UsageError(f"{output}: unsupported file type {suffix}", "name it .jsonl, .csv, .tsv or .parquet")


def write_result(file: FileIO, lines: Iterable[bytes]) -> str:
    """Write and sync the lines; their SHA-256."""
    digest, lines = hashlib.sha256(), iter(lines)
    for chunk in iter(lambda: b"".join(islice(lines, _WRITTEN_TOGETHER)), b""):
        write_all(file.fileno(), chunk)
        digest.update(chunk)
    os.fsync(file.fileno())
    return digest.hexdigest()


def identify(path: Path) -> str | None:
    """The SHA-256 of a file; None if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def output_errors(path: Path, then: str = RESUME) -> AbstractContextManager[None]:
    return translate_os_errors(BatchError, path, then, "choose an -o on another file system")


@frozen
class BatchRecord:
    """The record of a batch: `fingerprint` holds everything the answers depend on, by readable names.

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
    result: str | None = None
    extent: Mapping[str, int] = field(default_factory=dict)
    notes: JsonObject = field(default_factory=dict)

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self.failed or 0, self.truncated or 0, self.undecided or 0)

    @property
    def has_failed(self) -> bool:
        """Whether rows have an error or an undecided vote."""
        return bool(self.failed or self.undecided)

    @property
    def identity(self) -> JsonDict:
        """What the positions of rows depend on."""
        return {"input": self.input, "extent": dict(self.extent)}

    @property
    def adapter_files(self) -> str:
        """Names of the adapters' files, each with its scale unless that is 1."""
        adapters = map(parse_adapter, self.notes.get(LORA, ()))
        return ", ".join(Path(path).name + (f":{scale:g}" if scale != 1 else "") for path, scale in adapters) or "none"


def read_record(path: Path) -> BatchRecord | None:
    """Read a record; None if the file does not exist. Raises BatchError if it is not a record."""
    try:
        value = read_small_json(path)
        if value.pop("version") != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", "choose another -o, or --restart")
        record = from_json(BatchRecord, value)
        sum(record.extent.values())  # raises TypeError unless they are numbers
        return record
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BatchError(
            f"{path} is not a batch record", "move it elsewhere, choose another -o, or use --restart to replace it"
        ) from error


def write_record(paths: OutputPaths, record: BatchRecord, then: str = RESUME) -> None:
    """Replace the record atomically. Raises BatchError, whose hint ends with what to do `then`."""
    fields = {key: value for key, value in asdict(record).items() if value != {}}
    text = to_json({"version": VERSION, **fields}, indent=2) + "\n"
    with output_errors(paths.meta, then):
        atomic_write(paths.meta, text.encode(), mode=0o666)


def normalize(fingerprint: JsonObject) -> JsonDict:
    return dict(json.loads(to_json(dict(fingerprint))))


def differing_values(first: JsonObject, second: JsonObject) -> Differences:
    found = {}
    for key in {**second, **first}:
        pair = first.get(key), second.get(key)
        if to_json(pair[0]) != to_json(pair[1]):
            found[key] = pair
    return found


def record_differences(before: BatchRecord, after: BatchRecord) -> Differences:
    """Differences between two fingerprints; of adapters, with the names of their files."""
    found = differing_values(before.fingerprint, after.fingerprint)
    if "adapter" in found:
        found["adapter"] = before.adapter_files, after.adapter_files
    return found


def describe_difference(before: BatchRecord, now: BatchRecord) -> str:
    """Describe how two fingerprints differ, like "another model (a, now b)"; empty if they are equal."""
    descriptions = [
        f"another {name.replace('_', ' ')}{shown_values(old, ', now', new)}"
        for name, (old, new) in record_differences(before, now).items()
    ]
    if more := descriptions[_MAX_DIFFERENCES:]:
        descriptions[_MAX_DIFFERENCES:] = [f"{len(more)} more"]
    return enumeration(descriptions)


def shown_values(before: Any, between: str, after: Any) -> str:
    """Two values of a fingerprint in parentheses; empty where they look alike, or are digests of files."""
    texts = [_short_value(value) for value in (before, after)]
    if texts[0] == texts[1] or all(_DIGEST.match(text) for text in texts):
        return ""
    return f" ({texts[0]}{between} {texts[1]})"


def _short_value(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else to_json(value)
    return truncate(one_line(text), _MAX_VALUE)


def decide(
    record: BatchRecord | None, has_rows: bool, output: str | None, new: BatchRecord, paths: OutputPaths
) -> Step:
    """Decide the next step without --restart. Raises BatchError where it would lose or mix answers.

    The files on disk are a record, a partial file if it `has_rows`, and an output; `new` is the record of a new result.

    The files are written in this order, each synced before the next, so that they show how far a batch came: the
    record; rows in the partial file; the record with the hash of the result; the result. Then the partial file is
    deleted, unless the result is a table.
    """
    if record is None and has_rows:
        raise BatchError(
            f"{paths.partial} exists, but its record {paths.meta.name} is missing",
            "move it elsewhere, choose another -o, or use --restart to start over",
        )
    is_complete = record is not None and record.result is not None and record.result == output
    difference = describe_difference(record, new) if record else ""
    if difference and has_rows and not is_complete:
        raise BatchError(
            f"{paths.partial} was started with {difference}",
            "run the previous command to resume, or use --restart to start over",
        )
    if record is None or difference:
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


def _require_no_fewer(record: BatchRecord, new: BatchRecord, paths: OutputPaths) -> None:
    before, now = record.extent, new.extent
    if smaller := [f"{name} ({before[name]}, now {now[name]})" for name in now if now[name] < before.get(name, 0)]:
        raise BatchError(
            f"{paths.output} already has more {' and '.join(smaller)}",
            "use the same number or more, choose another -o, or use --restart to start over",
        )
