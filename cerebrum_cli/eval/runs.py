"""A run: the file of finished rows that an evaluation made, complete or not, with its record."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.differences import Differences
from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, known_values
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import Texts, text_digest
from cerebrum_cli.core.version import __version__
from cerebrum_cli.eval.run_rows import RunRow, read_row
from cerebrum_cli.results.output_tables import COLUMNS, INCLUDE_INPUT
from cerebrum_cli.results.saved import SavedResult, read_saved

if TYPE_CHECKING:
    from cerebrum_cli.replies.source import ModelSource

Match = Literal["answer", "exact", "math", "code"]  # how replies are scored
MATCHES: tuple[Match, ...] = get_args(Match)[:-1]  # to choose from; "code" is for tasks

MATCH = "match"  # a key of the notes: a run is scored whenever it is shown
# Keys of a fingerprint.
TASK, MODEL = "task", "model"
SAMPLES, CHECK = "samples", "check"  # the number of samples, and the language of programs that vote, too
REFERENCE = "reference"  # key of a row: its right answer
SUFFIX = ".jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_DIGITS = 8  # of a digest in a name
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some


@frozen
class _Made:
    """What a run was made with: the values of its record that are read."""

    task: str
    model: str
    match: Match = "exact"  # of decisions
    samples: int | None = None
    check: str | None = None
    think: str | None = None
    lora: Texts = ()
    remarks: Texts = ()
    conditions: tuple[JsonObject, ...] = ()


class Run:
    """The finished rows of an evaluation, and what they were made with. Raises one of DAMAGE for another result."""

    def __init__(self, path: Path, saved: SavedResult) -> None:
        self.name = path.name.removesuffix(SUFFIX)
        self.path = path
        self.saved = saved
        self.fingerprint: JsonObject = saved.record.fingerprint
        self.notes: JsonObject = saved.record.notes
        made = from_json(_Made, known_values(_Made, {**self.notes, **self.fingerprint}))
        self.task, self.model, self.match = made.task, made.model, made.match
        self.samples = made.samples or 1
        self.checks = made.check is not None
        self.remarks, self.conditions = made.remarks, made.conditions
        known = {key: self.fingerprint[key] for key in SAMPLERS if self.fingerprint.get(key) is not None}
        self.sampling = samplers_in_effect(known) | ({"think": made.think} if made.think else {})

    @cached_property
    def rows(self) -> list[RunRow]:
        """The finished rows. Raises UsageError for a damaged file."""
        try:
            return list(map(read_row, self.saved.objects()))
        except (BatchError, *DAMAGE) as error:
            raise not_a_run(self.path) from error

    def differences(self, other: Run) -> Differences:
        """What two runs were made with, besides their models: names and both values."""
        found = self.saved.record.differences(other.saved.record)
        if self.match != other.match:
            found[MATCH] = self.match, other.match
        unnamed = {TASK, COLUMNS, INCLUDE_INPUT}
        if MODEL in found:
            unnamed |= {MODEL, "model file"}
        return {key: values for key, values in found.items() if key not in unnamed}


def read_run(path: Path) -> Run:
    """The run at a path. Raises UsageError."""
    try:
        if saved := read_saved(path):
            return Run(path, saved)
    except (BatchError, *DAMAGE) as error:
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
    if output == Path("-"):
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
