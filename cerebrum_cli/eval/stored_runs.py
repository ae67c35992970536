"""Stored runs, each a file of samples with its record, at a path or under a name; their provenance and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.errors import DAMAGE, BatchError, UsageError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import did_you_mean, text_digest
from cerebrum_cli.core.version import __version__
from cerebrum_cli.eval.questions import SAMPLES, Match, QuestionId, Sample, parse_sample
from cerebrum_cli.eval.report import Report, Samples, group_by_question, mean_accuracy, summarize
from cerebrum_cli.eval.scorers import SCORING_RULES, describe_rules, rules_of
from cerebrum_cli.results.results import paths_of
from cerebrum_cli.results.saved import SavedResult, keeps_rows, read_saved

if TYPE_CHECKING:
    from cerebrum_cli.replies.source import Installation, ModelSource

# Keys of a fingerprint.
CHECK = "check"  # the language of programs that vote, too
EXTENT = "extent"  # a note: the numbers of questions and of samples
SUFFIX = ".jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some
_REQUIRED = {"task", "model", "match"}  # keys of a run's fingerprint


@frozen
class Run:
    """A run, complete or not: what it evaluated, and the method of scoring its replies."""

    name: str
    path: Path
    saved: SavedResult
    task: str
    model: str
    match: Match
    scored_by: str | None  # the rules that scored it; None while new scores are being saved
    samples_per_question: int

    @property
    def outdated(self) -> str:
        """By which rules it was scored, in words; empty if these are the rules of this version."""
        now = rules_of(self.match)
        if self.scored_by == now:
            return ""
        return f"{self.name} was scored by {describe_rules(self.scored_by)}, not {describe_rules(now)}"

    def how_to_rescore(self, reference: str) -> str:
        code = " --run-code" if self.match == "code" else ""
        return f"score it again: cerebrum runs show {quote(reference)} --rescore --save{code}"

    @property
    def fingerprint(self) -> JsonObject:
        return self.saved.record.fingerprint

    @property
    def notes(self) -> JsonObject:
        return self.saved.record.notes

    @property
    def sampling(self) -> JsonDict:
        recorded = {}
        for key in SAMPLERS:
            value = self.fingerprint.get(key)
            if value is not None:
                recorded[key] = value
        sampling = samplers_in_effect(recorded)
        think = self.fingerprint.get("think")
        if think:
            sampling["think"] = think
        return sampling

    def samples(self) -> list[Sample]:
        try:
            return list(map(parse_sample, self.saved.objects()))
        except (BatchError, *DAMAGE) as error:
            raise _not_a_run(self.saved.paths.output) from error

    def finished_questions(self) -> dict[QuestionId, list[Sample]]:
        """The questions all of whose samples count."""
        questions = group_by_question(sample for sample in self.samples() if not sample.is_skipped)
        return {id: samples for id, samples in questions.items() if len(samples) == self.samples_per_question}


@frozen
class RunStore:
    directory: Path

    @classmethod
    def of(cls, installation: Installation) -> RunStore:
        return cls(installation.data_directory / "runs")

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs with a readable record, oldest first."""
        runs = []
        for meta in self.directory.glob(f"*{SUFFIX}.meta.json"):
            run = _readable_run(meta.with_name(meta.name.removesuffix(".meta.json")))
            if run is not None:
                runs.append(run)
        yield from sorted(runs, key=lambda run: (run.saved.changed_at, run.name))

    def find(self, reference: str) -> Run:
        paths = [Path(reference)]
        if "/" not in reference:
            paths.insert(0, self.directory / f"{reference}{SUFFIX}")
        for path in paths:
            if run := read_run(path):
                return run
        if exists(Path(reference)):
            raise _not_a_run(reference)
        similar = did_you_mean(reference, [run.name for run in self], 3)
        raise UsageError(f"no run named {reference!r}", f"{similar}list the stored runs with cerebrum runs list")

    def path_for(self, fingerprint: JsonObject) -> tuple[Path, str]:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model.

        With it, in words, why a new run does not extend the one whose name is numbered before it.
        """
        base = _name_of(fingerprint)
        why_new = ""
        for number in count(1):
            name = base if number == 1 else f"{base}-{number}"
            path = self.directory / f"{name}{SUFFIX}"
            if not any(file.exists() for file in paths_of(path).all):
                break
            why_new = ""
            previous = _readable_run(path)
            if previous is None:
                continue
            difference = previous.saved.how_differs(fingerprint)
            if not difference:
                return path, ""
            why_new = f"{previous.name} was made with {difference}; this is a new run, "
        return path, why_new and why_new + path.stem


def read_run(path: Path) -> Run | None:
    """The run at a path; None without a record of one that this version knows. Raises UsageError, BatchError."""
    saved = read_saved(path) if path.parent.is_dir() else None
    if saved is None:
        return None
    fingerprint, extent = saved.record.fingerprint, saved.record.notes.get(EXTENT)
    if extent is None or not fingerprint.keys() >= _REQUIRED:
        return None
    values = {
        "name": path.name.removesuffix(SUFFIX),
        "path": path,
        "saved": saved,
        "scored_by": fingerprint.get(SCORING_RULES),
        "samples_per_question": extent[SAMPLES],
        **{key: fingerprint[key] for key in _REQUIRED},
    }
    try:
        return from_json(Run, values)
    except TypeError as error:
        raise BatchError(f"{saved.paths.meta} is damaged: {error}", "move it elsewhere") from error


def _name_of(fingerprint: JsonObject) -> str:
    """A file name from a task and a model."""
    parts = [_NOT_IN_NAMES.sub("-", str(fingerprint[key])).strip("-.") for key in ("task", "model")]
    name = "-".join(filter(None, parts))
    return name.encode()[:_MAX_NAME].decode(errors="ignore")


def _readable_run(path: Path) -> Run | None:
    """The run at a path; None where its record is damaged, too."""
    with suppress(BatchError):
        return read_run(path)
    return None


def require_run(path: Path) -> Run:
    run = read_run(path)
    if run is None:
        raise _not_a_run(path)
    return run


def require_run_file(output: Path) -> None:
    """Raise UsageError for an output that cannot hold a run."""
    if output == Path("-"):
        raise UsageError("a run cannot be written to standard output", "omit -o; use --json to print the report")
    if output.suffix.lower() in (".csv", ".tsv", ".parquet"):
        raise UsageError(f"{output}: a run is not a table, but JSON Lines", "name it .jsonl")


def _not_a_run(path: str | Path) -> UsageError:
    return UsageError(f"{path} is not a run of cerebrum eval", "check the path")


def provenance(source: ModelSource) -> JsonDict:
    """Everything a run depends on besides settings and questions: versions, and the text around a question.

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


def samples_to_keep(path: Path, fingerprint: JsonObject, extent: Mapping[str, int]) -> list[Sample]:
    """The samples of a run that resumes or extends the one at a path. Raises BatchError where that is refused."""
    require_no_fewer(path, fingerprint, extent)
    return require_run(path).samples() if keeps_rows(path, fingerprint) else []


def require_no_fewer(path: Path, fingerprint: JsonObject, extent: Mapping[str, int]) -> None:
    """Raise BatchError if the run at a path has samples that one of this extent, which continues it, would lose."""
    run = read_run(path)
    if run is None or run.saved.how_differs(fingerprint):
        return
    before = run.notes[EXTENT]
    if smaller := [f"{name} ({before[name]}, now {now})" for name, now in extent.items() if now < before[name]]:
        raise BatchError(
            f"{path} already has more {' and '.join(smaller)}",
            "use the same number or more, choose another -o, or use --restart to start over",
        )


def report_of(run: Run, samples: Samples) -> Report:
    """The report of a run, of which at least one sample counts. Skipped ones take no time."""
    notes = run.notes
    seconds = None
    if notes.get("timed_samples"):
        seconds = notes["seconds"] * len(samples) / notes["timed_samples"]
    counted = [sample for sample in samples if not sample.is_skipped]
    report = summarize(run.task, counted, run.samples_per_question, seconds, CHECK in run.fingerprint)
    if len(counted) < len(samples):
        report = replace(report, with_skipped=mean_accuracy([*group_by_question(samples).values()]))
    if run.match == "code":
        report = replace(report, maj={})  # programs are not put to a vote
    return report
