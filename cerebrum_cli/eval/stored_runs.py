"""Stored runs, each a file of samples with its record, at a path or under a name; their provenance and reports."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, get_args

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import exists, remove_abandoned, translate_os_errors
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.core.version import __version__
from cerebrum_cli.eval.questions import SAMPLES, Match, Sample, parse_sample
from cerebrum_cli.eval.report import Report, group_by_question, mean_accuracy, summarize
from cerebrum_cli.eval.scorers import SCORING_RULES, describe_rules, rules_of
from cerebrum_cli.eval.vote_costs import with_votes
from cerebrum_cli.formats.plain import PLAIN_FORMATS
from cerebrum_cli.results.output_files import (
    BatchRecord,
    OutputPaths,
    decide,
    describe_difference,
    identify,
    lock_partial,
    normalize,
    output_paths,
    read_record,
)

if TYPE_CHECKING:
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.engine.bench import BenchFactory, Closeness
    from cerebrum_cli.library.model import InstalledModel
    from cerebrum_cli.replies.source import ModelSource

DEFAULT_TEMPLATE = "default template"
CHECK = "check"  # key of a fingerprint: the language of programs that vote, too
SUFFIX = ".jsonl"
AGAIN = ", then run it again"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some
PROBE_TOKENS = 256  # of the text on which two quantizations are compared
_OF_SAMPLING = {CHECK, "seed", *(key.replace("_", " ") for key in SAMPLERS)}
_REQUIRED = {"task", "model", "match"}  # keys of a run's fingerprint


@dataclass(frozen=True, slots=True)
class Run:
    """A run, complete or not: what it evaluated, and the method of scoring its replies."""

    name: str
    path: Path
    paths: OutputPaths
    record: BatchRecord
    task: str
    model: str
    match: Match
    scored_by: str | None  # the rules that scored it; None while new scores are being saved
    samples_per_question: int

    @property
    def outdated(self) -> str:
        """By which rules it was scored, in words; empty if these are the rules of this version."""
        before, now = self.scored_by, rules_of(self.match)
        text = f"{self.name} was scored by {describe_rules(before)}, not {describe_rules(now)}"
        return "" if before == now else text

    def how_to_rescore(self, reference: str) -> str:
        code = " --run-code" if self.match == "code" else ""
        return f"score it again: cerebrum runs show {quote(reference)} --rescore --save{code}"

    @property
    def sampling(self) -> dict[str, Any]:
        recorded = {key: self.record.fingerprint.get(key.replace("_", " ")) for key in (*SAMPLERS, "think")}
        think = {"think": recorded["think"]} if recorded["think"] else {}
        return samplers_in_effect({key: value for key, value in recorded.items() if value is not None}) | think

    @property
    def changed_at(self) -> float:
        files = (self.paths.output, self.paths.partial)
        return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)

    @property
    def is_complete(self) -> bool:
        """Whether the file is the whole run: a new one takes its place only after the record is written."""
        if self.record.result is None or not self.paths.output.exists():
            return False
        return not has_rows(self.paths.partial) or identify(self.paths.output) == self.record.result

    def samples(self) -> list[Sample]:
        path = self.paths.output if self.is_complete else self.paths.partial
        try:
            with path.open("rb") as lines:  # the last line of a running or killed run may be incomplete
                return [parse_sample(json.loads(line)) for line in lines if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _not_a_run(path) from error


@dataclass(frozen=True, slots=True)
class RunStore:
    directory: Path

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs with a readable record, oldest first."""
        runs = []
        for meta in self.directory.glob(f"*{SUFFIX}.meta.json"):
            with contextlib.suppress(BatchError):
                runs.append(read_run(meta.with_name(meta.name.removesuffix(".meta.json"))))
        yield from sorted(filter(None, runs), key=lambda run: (run.changed_at, run.name))

    def find(self, reference: str) -> Run:
        named = self.directory / f"{reference}{SUFFIX}"
        run = (read_run(named) if "/" not in reference else None) or read_run(Path(reference))
        if run is not None:
            return run
        if exists(Path(reference)):
            raise _not_a_run(reference)
        raise UsageError(
            f"no run named {reference!r}",
            did_you_mean(reference, [run.name for run in self], 3) + "list the stored runs with cerebrum runs list",
        )

    def greedy(self, run: Run) -> list[Sample]:
        """The samples of the latest run that differs from another only in its sampling, at temperature 0, if any."""
        fingerprint, samples = run.record.fingerprint, list[Sample]()
        for other in self:
            keys = fingerprint.keys() | other.record.fingerprint.keys()
            differing = {key for key in keys if fingerprint.get(key) != other.record.fingerprint.get(key)}
            if "temperature" in differing <= _OF_SAMPLING and not other.record.fingerprint["temperature"]:
                with contextlib.suppress(UsageError):  # of a damaged file
                    samples = other.samples()
        return [sample for sample in samples if not sample.is_skipped]

    def path_for(self, fingerprint: Mapping[str, Any]) -> tuple[Path, str]:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model.

        With it, in words, why a new run does not extend the one whose name is numbered before it.
        """
        new = BatchRecord(normalize(fingerprint), 0)
        parts = (_NOT_IN_NAMES.sub("-", str(fingerprint[key])).strip("-.") for key in ("task", "model"))
        base = "-".join(filter(None, parts)).encode()[:_MAX_NAME].decode(errors="ignore")
        previous = None
        for number in count(1):
            path = self.directory / f"{base if number == 1 else f'{base}-{number}'}{SUFFIX}"
            if not any(file.exists() for file in OutputPaths(path).all):
                break
            previous = None
            with contextlib.suppress(BatchError):
                previous = read_run(path)
            if previous and not describe_difference(previous.record, new):
                return path, ""
        made = previous and f"{previous.name} was made with {describe_difference(previous.record, new)}"
        return path, f"{made}; this is a new run, {path.stem}" if made else ""

    def delete(self, run: Run) -> None:
        """Delete the files of a run. Raises BatchError if a process is writing it, or they cannot be deleted."""
        with writing(run) as paths:
            for path in paths.all:
                path.unlink(missing_ok=True)
            remove_abandoned(run.path.parent, f".{run.path.name}.")


@contextlib.contextmanager
def writing(run: Run) -> Iterator[OutputPaths]:
    """Lock the files of a run. Raises BatchError if a process is writing them, and in place of an OSError."""
    paths = run.paths
    with (
        translate_os_errors(BatchError, paths.output, AGAIN, "move the run to another file system"),
        lock_partial(paths.partial, "wait until it has ended") as partial,
    ):
        try:
            yield paths
        finally:
            if not os.fstat(partial.fileno()).st_size:
                paths.partial.unlink(missing_ok=True)


def read_run(path: Path) -> Run | None:
    """The run at a path; None without a record of one that this version knows. Raises UsageError, BatchError."""
    if not path.parent.is_dir():
        return None
    paths = output_paths(path)
    record = read_record(paths.meta)
    if record is None or SAMPLES not in record.extent or not record.fingerprint.keys() >= _REQUIRED:
        return None
    task, model, match = (record.fingerprint[key] for key in ("task", "model", "match"))
    if match not in get_args(Match):
        return None
    rules = record.fingerprint.get(SCORING_RULES)
    scored_by = None if rules is None else str(rules)
    name, samples = path.name.removesuffix(SUFFIX), int(record.extent[SAMPLES])
    return Run(name, path, paths, record, task, model, match, scored_by, samples)


def require_run(path: Path) -> Run:
    run = read_run(path)
    if run is None:
        raise _not_a_run(path)
    return run


def _not_a_run(path: str | Path) -> UsageError:
    return UsageError(f"{path} is not a run of cerebrum eval", "check the path")


def provenance(source: ModelSource) -> dict[str, Any]:
    """Everything a run depends on besides settings and questions: versions, and the text around a question.

    That is the text of a built-in format with its own system prompt, or the digest of a chat template. Builds of
    servers are notes of the run.
    """
    from cerebrum_cli.replies.source import format_of

    name, template = format_of(source.settings, source.model)
    versions = {"cerebrum": __version__, "llama.cpp": None}
    if source.servers is None:
        from cerebrum_cli.engine.llama.devices import version

        versions["llama.cpp"] = version()
    if name not in PLAIN_FORMATS:
        return {**versions, "chat template": sha256((template or "").encode()).hexdigest()}
    parts = PLAIN_FORMATS[name].render(Conversation().user("{question}"))
    return {**versions, "prompt": "".join(part.value for part in parts if isinstance(part, Text))}


def samples_to_keep(path: Path, fingerprint: Mapping[str, Any], extent: Mapping[str, int]) -> list[Sample]:
    """The samples of a run that resumes or extends the one at a path. Raises BatchError where that is refused."""
    if not path.parent.is_dir():
        return []
    paths = output_paths(path)
    new = BatchRecord(normalize(fingerprint), 0, extent=extent)
    step = decide(read_record(paths.meta), has_rows(paths.partial), identify(paths.output), new, paths)
    return [] if step == "begin" else require_run(path).samples()


def has_rows(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def report_of(run: Run, samples: Sequence[Sample], greedy: Sequence[Sample] = ()) -> Report:
    """The report of a run, of which at least one sample counts. Skipped ones take no time.

    Its votes with programs are reported beside the `greedy` samples, if these are of the same questions.
    """
    notes = run.record.notes
    seconds = notes["seconds"] * len(samples) / notes["timed_samples"] if notes.get("timed_samples") else None
    counted = [sample for sample in samples if not sample.is_skipped]
    report = summarize(run.task, counted, run.samples_per_question, seconds)
    if len(counted) < len(samples):
        report = replace(report, with_skipped=mean_accuracy(list(group_by_question(samples).values())))
    if CHECK in run.record.fingerprint:
        report = with_votes(report, counted, greedy)
    return replace(report, maj={}) if run.match == "code" else report  # programs are not put to a vote


def measure_divergence(
    reference: InstalledModel, other: InstalledModel, settings: Settings, open_bench: BenchFactory
) -> Closeness:
    """Compare two quantizations of one model on a probe text, each in a child process.

    Raises ModelFileError, UsageError if their vocabularies or layers differ, EngineError if they cannot be loaded.
    """
    from cerebrum_cli.gguf.header import require_generative
    from cerebrum_cli.replies.source import load_options

    for model in (reference, other):
        require_generative(model.path, model.header)
    first, second = (
        (model.vocabulary, model.header.architecture, model.header.n_layers) for model in (reference, other)
    )
    if first != second:
        raise UsageError(
            f"{reference.label} and {other.label} are not quantizations of the same model",
            "compare two with the same vocabulary, architecture and number of layers",
        )
    count = min(PROBE_TOKENS, reference.trained_context, other.trained_context)
    with (
        closing(open_bench(load_options(reference, settings))) as reference_bench,
        closing(open_bench(load_options(other, settings))) as other_bench,
    ):
        logits = reference_bench.write_logits(count)
        reference_bench.release()  # memory may hold only one of them
        return other_bench.compare_logits(logits, count)
