"""Stored runs, each a file of samples with its record, at a path or under a name; their provenance and reports."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, get_args

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.errors import BatchError, EngineError, UsageError
from cerebrum_cli.core.files import exists, remove_abandoned, translate_os_errors
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.core.version import __version__
from cerebrum_cli.eval.math_equality import INSTALL
from cerebrum_cli.eval.questions import SAMPLES, Sample, parse_sample
from cerebrum_cli.eval.report import Report, summarize
from cerebrum_cli.eval.scorers import MATH_VERIFY, SCORING_RULES, Match, describe_rules, rules_of
from cerebrum_cli.formats.plain import PLAIN_FORMATS
from cerebrum_cli.runs.output_files import (
    MADE_BY,
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
    from cerebrum_cli.model.source import ModelSource
    from cerebrum_cli.models.model import InstalledModel

DEFAULT_TEMPLATE = "default template"
SUFFIX = ".jsonl"
AGAIN = ", then run it again"
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some
PROBE_TOKENS = 256  # of the text on which two quantizations are compared
_REQUIRED = {"task", "model", "match"}  # keys of a run's fingerprint


@dataclass(frozen=True, slots=True)
class Run:
    """A run, complete or not."""

    name: str
    path: Path
    record: BatchRecord

    @property
    def task(self) -> str:
        return str(self.record.fingerprint["task"])

    @property
    def model(self) -> str:
        return str(self.record.fingerprint["model"])

    @property
    def match(self) -> Match:
        """Method of scoring its replies. Raises UsageError for one that only newer versions know."""
        match: Match = self.record.fingerprint["match"]
        if match not in get_args(Match):
            raise UsageError(f"{self.name} was made by a newer version of cerebrum", "update cerebrum")
        return match

    @property
    def scored_by(self) -> str | None:
        """The rules that scored it; None while new scores are being saved."""
        rules = self.record.fingerprint.get(SCORING_RULES)
        return None if rules is None else str(rules)

    @property
    def outdated(self) -> str:
        """By which rules it was scored, in words; empty if these are the rules of this version."""
        before, now = self.scored_by, rules_of(self.match)
        text = f"{self.name} was scored by {describe_rules(before)}, not {describe_rules(now)}"
        return "" if before == now else text

    def how_to_rescore(self, reference: str) -> str:
        """Hint for scoring the run with this name or path again, by rules that are no worse than before."""
        lacks = MATH_VERIFY in (self.scored_by or "") and MATH_VERIFY not in rules_of(self.match)
        first = f"install Math-Verify: {INSTALL}; or, without it, " if lacks else ""
        code = " --run-code" if self.match == "code" else ""
        return f"{first}score it again: cerebrum runs show {quote(reference)} --rescore --save{code}"

    @property
    def versions(self) -> dict[str, Any]:
        """Versions that made it, and builds of servers."""
        builds = ", ".join(f"{server['kind']} {server['build']}" for server in self.record.notes.get("servers", ()))
        recorded = {key: self.record.fingerprint.get(key) for key in MADE_BY}
        return {**recorded, **({"llama.cpp": builds} if builds else {})}

    @property
    def sampling(self) -> dict[str, Any]:
        """The samplers that were in effect, with their values, and `think` if it was set."""
        recorded = {key: self.record.fingerprint.get(key.replace("_", " ")) for key in (*SAMPLERS, "think")}
        think = {"think": recorded["think"]} if recorded["think"] else {}
        return samplers_in_effect({key: value for key, value in recorded.items() if value is not None}) | think

    @property
    def row_files(self) -> tuple[Path, Path]:
        """The file of the complete run, and that of an unfinished one."""
        paths = output_paths(self.path)
        return paths.output, paths.partial

    @property
    def changed_at(self) -> float:
        return max((path.stat().st_mtime for path in self.row_files if path.exists()), default=0.0)

    @property
    def samples_per_question(self) -> int:
        return int(self.record.extent[SAMPLES])

    @property
    def is_complete(self) -> bool:
        """Whether the file is the whole run: a new one takes its place only after the record is written."""
        whole, partial = self.row_files
        if self.record.result is None or not whole.exists():
            return False
        return not has_rows(partial) or identify(whole) == self.record.result

    @property
    def current_file(self) -> Path:
        """The file that has its samples."""
        whole, partial = self.row_files
        return whole if self.is_complete else partial

    def samples(self) -> list[Sample]:
        """The finished samples. Raises UsageError for a file that is not a run."""
        path = self.current_file
        try:
            with path.open("rb") as lines:  # the last line of a running or killed run may be incomplete
                return [parse_sample(json.loads(line)) for line in lines if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _not_a_run(path) from error


class RunStore:
    """The runs in a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs with a readable record, oldest first."""
        runs = []
        for meta in self._directory.glob(f"*{SUFFIX}.meta.json"):
            with contextlib.suppress(BatchError):
                runs.append(read_run(meta.with_name(meta.name.removesuffix(".meta.json"))))
        yield from sorted(filter(None, runs), key=lambda run: (run.changed_at, run.name))

    def find(self, reference: str) -> Run:
        """The run with a name, or at a path. Raises UsageError."""
        named = self._directory / f"{reference}{SUFFIX}"
        run = (read_run(named) if "/" not in reference else None) or read_run(Path(reference))
        if run is not None:
            return run
        if exists(Path(reference)):
            raise _not_a_run(reference)
        raise UsageError(
            f"no run named {reference!r}",
            did_you_mean(reference, [run.name for run in self], 3) + "list the stored runs with cerebrum runs list",
        )

    def path_for(self, fingerprint: Mapping[str, Any]) -> tuple[Path, str]:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model.

        With it, in words, why a new run does not extend the one whose name is numbered before it. One that was scored
        by other rules is refused later, with how to score it again: that takes no time.
        """
        new = BatchRecord(normalize(fingerprint), 0)
        base, previous = _name(str(fingerprint["task"]), str(fingerprint["model"])), None
        for number in count(1):
            path = self._directory / f"{base if number == 1 else f'{base}-{number}'}{SUFFIX}"
            if not any(file.exists() for file in OutputPaths(path).all):
                break
            previous = None
            with contextlib.suppress(BatchError):
                previous = read_run(path)
            if previous and without_rules(previous.record.fingerprint) == without_rules(new.fingerprint):
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
    paths = output_paths(run.path)
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
    """The run at a path; None without a record of one. Raises UsageError, BatchError."""
    record = read_record(output_paths(path).meta) if path.parent.is_dir() else None
    if record is None or SAMPLES not in record.extent or not record.fingerprint.keys() >= _REQUIRED:
        return None
    return Run(path.name.removesuffix(SUFFIX), path, record)


def require_run(path: Path) -> Run:
    run = read_run(path)
    if run is None:
        raise _not_a_run(path)
    return run


def _not_a_run(path: str | Path) -> UsageError:
    return UsageError(f"{path} is not a run of cerebrum eval", "check the path")


def provenance(source: ModelSource, llama_version: Callable[[], str]) -> dict[str, Any]:
    """Everything a run depends on besides settings and questions: versions, and the text around a question.

    That is the text of a built-in format with its own system prompt, or the digest of a chat template. Builds of
    servers are notes of the run.
    """
    from cerebrum_cli.model.source import format_of

    name, template = format_of(source.settings, source.model)
    is_remote = source.servers is not None
    versions = {"cerebrum": __version__, "llama.cpp": None if is_remote else llama_version()}
    if name not in PLAIN_FORMATS:
        return {**versions, "chat template": sha256((template or "").encode()).hexdigest()}
    parts = PLAIN_FORMATS[name].render(Conversation().user("{question}"))
    return {**versions, "prompt": "".join(part.value for part in parts if isinstance(part, Text))}


def require_same_rules(path: Path, fingerprint: Mapping[str, Any], reference: str) -> None:
    """Raise BatchError, with what to do, if all that differs from the run at a path are the rules that scored it.

    `reference` is how a user names that run.
    """
    run = read_run(path)
    if run is None or without_rules(run.record.fingerprint) != without_rules(normalize(fingerprint)):
        return
    if run.outdated and any(map(has_rows, run.row_files)):
        raise BatchError(run.outdated, run.how_to_rescore(reference))


def samples_to_keep(path: Path, fingerprint: Mapping[str, Any], extent: Mapping[str, int]) -> list[Sample]:
    """The samples of a run that resumes or extends the one at a path. Raises BatchError where that is refused."""
    if not path.parent.is_dir():
        return []
    paths = output_paths(path)
    new = BatchRecord(normalize(fingerprint), 0, extent=extent)
    step = decide(read_record(paths.meta), has_rows(paths.partial), identify(paths.output), new, paths)
    return [] if step == "begin" else require_run(path).samples()


def _name(*parts: str) -> str:
    """A file name of some parts, without what is special in a shell or an option."""
    name = "-".join(filter(None, (_NOT_IN_NAMES.sub("-", part).strip("-.") for part in parts)))
    return name.encode()[:_MAX_NAME].decode(errors="ignore")


def has_rows(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def without_rules(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint as far as replies depend on it; None is as good as nothing."""
    return {key: value for key, value in fingerprint.items() if key != SCORING_RULES and value is not None}


def report_of(run: Run, samples: Sequence[Sample]) -> Report:
    """The report of a run, of which at least one sample counts. Skipped ones take no time."""
    notes = run.record.notes
    seconds = notes["seconds"] * len(samples) / notes["timed_samples"] if notes.get("timed_samples") else None
    counted = [sample for sample in samples if not sample.is_skipped]
    report = summarize(run.task, counted, run.samples_per_question, seconds)
    return replace(report, maj={}) if run.match == "code" else report  # programs are not put to a vote


def measure_divergence(
    reference: InstalledModel, other: InstalledModel, settings: Settings, open_bench: BenchFactory
) -> Closeness:
    """Compare two quantizations of one model on a probe text, each in a child process.

    Raises ModelFileError, UsageError if their vocabularies or layers differ, EngineError if they cannot be loaded.
    """
    from cerebrum_cli.engine.bench import BenchError
    from cerebrum_cli.gguf.header import require_generative
    from cerebrum_cli.model.source import load_options

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
        closing(open_bench(load_options(reference, settings), reference.paths)) as reference_bench,
        closing(open_bench(load_options(other, settings), other.paths)) as other_bench,
    ):
        try:
            logits = reference_bench.write_logits(count)
            reference_bench.release()  # memory may hold only one of them
            return other_bench.compare_logits(logits, count)
        except BenchError as error:
            raise EngineError(f"cannot compare these models: {error.message}", error.hint) from error
