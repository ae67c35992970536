"""A run: the file of finished rows that an evaluation made, complete or not, with its record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.differences import MODEL, Differences
from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, known_values
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import Texts, text_digest
from cerebrum_cli.core.version import __version__
from cerebrum_cli.eval.answered import Answered, read_answered
from cerebrum_cli.eval.scores import Match
from cerebrum_cli.rows.input_file import STANDARD
from cerebrum_cli.rows.output_tables import COLUMNS
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.saved import read_saved

if TYPE_CHECKING:
    from cerebrum_cli.replies.source import ModelSource

MATCH = "match"  # a key of the notes: a run is scored whenever it is shown
# Keys of a fingerprint.
TASK = "task"
SAMPLES, CHECK = "samples", "check"  # the number of samples, and the language of programs that vote, too
SUFFIX = ".jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_DIGITS = 8  # of a digest in a name
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some


@frozen
class SavedRun:
    """The finished rows of an evaluation, and what they were made with."""

    path: Path
    record: Record
    is_complete: bool
    rows: tuple[Answered, ...]
    task: str
    model: str
    match: Match
    samples: int = 1
    check: str | None = None
    think: str | None = None
    remarks: Texts = ()
    conditions: tuple[JsonObject, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def sampling(self) -> JsonDict:
        made_with = self.record.fingerprint
        known = {key: made_with[key] for key in SAMPLERS if made_with.get(key) is not None}
        return samplers_in_effect(known) | ({"think": self.think} if self.think else {})

    def differences(self, other: SavedRun) -> Differences:
        """What two runs were made with, besides their models: names and both values."""
        found = self.record.differences(other.record)
        if self.match != other.match:
            found[MATCH] = self.match, other.match
        return {key: values for key, values in found.items() if key not in (TASK, COLUMNS, MODEL)}


def read_run(path: Path) -> SavedRun:
    """The run at a path. Raises UsageError, also for a damaged one."""
    try:
        result = read_saved(path)
        if result:
            made_with = {**result.record.notes, **result.record.fingerprint}
            rows = tuple(read_answered(object, key.source) for object, key in result.rows())
            made = known_values(SavedRun, made_with)
            files = {"path": path, "record": result.record, "is_complete": result.is_complete}
            return from_json(SavedRun, {**made, **files, "rows": rows})
    except (BatchError, OSError, *DAMAGE) as error:
        raise not_a_run(path) from error
    if path.exists():
        raise not_a_run(path)
    named = path.with_name(f"{path.name}{SUFFIX}")
    raise UsageError(f"{path} does not exist", f"name {named}" if named.exists() else "check the path")


def not_a_run(path: Path) -> UsageError:
    return UsageError(f"{path} is not a result of cerebrum eval, or of decide --label", "check the path")


def run_path(task: str, model: str, digest: str = "") -> Path:
    """The path of a run, here, if none is given. It ends with the digest of what else is asked, if there is one."""
    parts = [_NOT_IN_NAMES.sub("-", part).strip("-.") for part in (task, model)]
    name = "-".join(filter(None, parts))
    end = f"-{digest[:_DIGITS]}" if digest else ""
    return Path(name.encode()[:_MAX_NAME].decode(errors="ignore") + end + SUFFIX)


def require_run_file(output: Path) -> None:
    """Raise UsageError for an output that cannot hold a run."""
    if output == STANDARD:
        raise UsageError("a run cannot be written to standard output", "omit -o; use --json to print the report")
    if output.suffix.lower() not in ("", SUFFIX):
        raise UsageError(f"{output}: a run is JSON Lines", "name it .jsonl")


def provenance(source: ModelSource) -> JsonDict:
    """What a run depends on besides settings and questions: versions, and the text around a question.

    That is the text of a built-in format with its own system prompt, or the digest of a chat template. Builds of
    servers are notes of the run.
    """
    chosen = source.chosen_format
    versions = {"cerebrum": __version__, "llama.cpp": None}
    if source.servers is None:
        from cerebrum_cli.engine.capacity import build_version

        versions["llama.cpp"] = build_version()
    if chosen.plain is None:
        return {**versions, "chat template": text_digest(chosen.template or "")}
    parts = chosen.plain.render(Conversation().user("{question}"))
    return {**versions, "prompt": "".join(part.value for part in parts if isinstance(part, Text))}
