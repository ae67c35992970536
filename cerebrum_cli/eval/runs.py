"""A run: the file of finished rows that an evaluation made, complete or not, with its record."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.differences import Differences
from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import text_digest
from cerebrum_cli.core.version import __version__
from cerebrum_cli.results.output_tables import table_type
from cerebrum_cli.results.rows import Key
from cerebrum_cli.results.saved import SavedResult, read_saved

if TYPE_CHECKING:
    from cerebrum_cli.replies.source import ModelSource

Match = Literal["answer", "exact", "math", "code"]  # how replies are scored
MATCHES: tuple[Match, ...] = get_args(Match)[:-1]  # to choose from; "code" is for tasks

# Keys of a fingerprint.
TASK, MODEL, MATCH = "task", "model", "match"
SAMPLES, CHECK = "samples", "check"  # the number of samples, and the language of programs that vote, too
REFERENCE = "reference"  # key of a row: its right answer
SUFFIX = ".jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some


class Run:
    """The finished rows of an evaluation, and what they were made with."""

    def __init__(self, path: Path, saved: SavedResult) -> None:
        self.name = path.name.removesuffix(SUFFIX)
        self.path = path
        self.saved = saved
        self.fingerprint: JsonObject = saved.record.fingerprint
        self.notes: JsonObject = saved.record.notes
        self.task: str = self.fingerprint[TASK]
        self.model: str = self.fingerprint[MODEL]
        self.match: Match = self.fingerprint[MATCH]
        self.samples: int = self.fingerprint.get(SAMPLES) or 1

    @cached_property
    def objects(self) -> list[JsonDict]:
        """The finished rows. Raises UsageError for a damaged file."""
        try:
            objects = list(self.saved.objects())
            for object in objects:
                Key.parse(object["key"])
            return objects
        except (BatchError, *DAMAGE) as error:
            raise not_a_run(self.path) from error

    @property
    def sampling(self) -> JsonDict:
        known = {key: self.fingerprint[key] for key in SAMPLERS if self.fingerprint.get(key) is not None}
        think = self.fingerprint.get("think")
        return samplers_in_effect(known) | ({"think": think} if think else {})

    def differences(self, other: Run) -> Differences:
        """What two runs were made with, besides their models: names and both values."""
        found = self.saved.record.differences(other.saved.record)
        unnamed = {TASK}
        if MODEL in found:
            unnamed |= {MODEL, "model file"}
        return {key: values for key, values in found.items() if key not in unnamed}


def read_run(path: Path) -> Run:
    """The run at a path. Raises UsageError, BatchError."""
    saved = read_saved(path) if path.parent.is_dir() else None
    if saved is None or not {TASK, MODEL, MATCH} <= saved.record.fingerprint.keys():
        raise not_a_run(path)
    return Run(path, saved)


def not_a_run(path: Path) -> UsageError:
    return UsageError(f"{path} is not a run of cerebrum eval", "check the path")


def run_path(task: str, model: str) -> Path:
    """The path of a run, here, if none is given."""
    parts = [_NOT_IN_NAMES.sub("-", part).strip("-.") for part in (task, model)]
    name = "-".join(filter(None, parts))
    return Path(name.encode()[:_MAX_NAME].decode(errors="ignore") + SUFFIX)


def require_run_file(output: Path) -> None:
    """Raise UsageError for an output that cannot hold a run."""
    if output == Path("-"):
        raise UsageError("a run cannot be written to standard output", "omit -o; use --json to print the report")
    if table_type(output):
        raise UsageError(f"{output}: a run is not a table, but JSON Lines", "name it .jsonl")


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
