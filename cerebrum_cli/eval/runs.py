"""Stored runs, each a file of samples with its record, at a path or under a name; their reports and comparisons."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.batch.output_files import (
    BatchRecord,
    OutputPaths,
    decide,
    describe_difference,
    identify,
    journal_errors,
    lock_partial,
    normalize,
    output_paths,
    read_record,
    shown_values,
)
from cerebrum_cli.core.errors import BatchError, EngineError, UsageError
from cerebrum_cli.core.files import exists, remove_abandoned
from cerebrum_cli.core.sampling import SAMPLERS, samplers_in_effect
from cerebrum_cli.core.settings import KEYS
from cerebrum_cli.core.text import enumeration
from cerebrum_cli.eval.comparison import Comparison, compare, outcomes
from cerebrum_cli.eval.marking import Match, Unmarked, marker
from cerebrum_cli.eval.questions import Question, Sample, parse_sample
from cerebrum_cli.eval.report import Report, group_by_question, summarize

if TYPE_CHECKING:
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.engine.trials import BenchFactory, Closeness
    from cerebrum_cli.models.model import Model

# What a fingerprint says of the model.
MODEL_KEYS = ("model", "model file", "adapter", "format", "cache type k", "cache type v")
SUFFIX = ".jsonl"
QUESTIONS, SAMPLES = "questions", "samples"  # keys of a run's extent
CHOSEN = "chosen settings"  # key of a run's notes: settings whose values are not the model's, nor defaults
_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_MAX_NAME = 200  # bytes; file systems have 255, of which suffixes take some
PROBE_TOKENS = 256  # of the text on which two quantizations are compared
_REQUIRED = {"task", "model", "match"}  # keys of a run's fingerprint
_canonical = lru_cache(maxsize=10_000)(canonical)  # samples that vote state few different answers


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
        match: Match = self.record.fingerprint["match"]
        return match

    @property
    def sampling(self) -> dict[str, Any]:
        """The samplers that were in effect, with their values, and `think` if it was set."""
        recorded = {key: self.record.fingerprint.get(key.replace("_", " ")) for key in (*SAMPLERS, "think")}
        think = {"think": recorded["think"]} if recorded["think"] else {}
        return samplers_in_effect({key: value for key, value in recorded.items() if value is not None}) | think

    @property
    def changed_at(self) -> float:
        """When the last sample was written, in seconds since the epoch."""
        paths = (path for path in (self.path, output_paths(self.path).partial) if path.exists())
        return max((path.stat().st_mtime for path in paths), default=0.0)

    @property
    def samples_per_question(self) -> int:
        return int(self.record.extent[SAMPLES])

    @property
    def is_complete(self) -> bool:
        return self.path.exists() and self.record.result is not None

    def samples(self) -> list[Sample]:
        """The finished samples. Raises UsageError for a file that is not a run."""
        path = self.path if self.is_complete else output_paths(self.path).partial
        try:
            with path.open("rb") as lines:  # the last line of a running or killed run may be incomplete
                return [parse_sample(json.loads(line)) for line in lines if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} is not a run of cerebrum eval", "check the path") from error


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
            raise UsageError(f"{reference} is not a run of cerebrum eval", "check the path")
        near = get_close_matches(reference, [run.name for run in self], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "cerebrum runs list  shows the stored runs"
        raise UsageError(f"no run named {reference!r}", hint)

    def path_for(self, fingerprint: Mapping[str, Any]) -> Path:
        """The path of the run with this fingerprint: an existing one, or a free name of its task and model."""
        wanted = normalize(fingerprint)
        base = _name(str(fingerprint["task"]), str(fingerprint["model"]))
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        paths = (self._directory / f"{name}{SUFFIX}" for name in names)
        return next(
            path
            for path in paths
            if not any(each.exists() for each in OutputPaths(path).all) or _has_fingerprint(path, wanted)
        )

    def delete(self, run: Run) -> None:
        """Delete the files of a run. Raises BatchError if a process is writing it, or they cannot be deleted."""
        paths = output_paths(run.path)
        with journal_errors(run.path), lock_partial(paths.partial):
            for path in paths.all:
                path.unlink(missing_ok=True)
            remove_abandoned(run.path.parent, f".{run.path.name}.")


def read_run(path: Path) -> Run | None:
    """The run at a path; None without a record of one. Raises UsageError, BatchError."""
    record = read_record(output_paths(path).meta) if path.parent.is_dir() else None
    if record is None or SAMPLES not in record.extent or not record.fingerprint.keys() >= _REQUIRED:
        return None
    return Run(path.name.removesuffix(SUFFIX), path, record)


def require_run(path: Path) -> Run:
    run = read_run(path)
    if run is None:
        raise UsageError(f"{path} is not a run of cerebrum eval", "check the path")
    return run


def samples_to_keep(path: Path, fingerprint: Mapping[str, Any], extent: Mapping[str, int]) -> list[Sample]:
    """The samples of a run that resumes or extends the one at a path. Raises BatchError where that is refused."""
    if not path.parent.is_dir():
        return []
    paths = output_paths(path)
    has_rows = paths.partial.exists() and paths.partial.stat().st_size > 0
    new = BatchRecord(normalize(fingerprint), 0, extent=extent)
    step = decide(read_record(paths.meta), has_rows, identify(paths.output), new, paths)
    return [] if step == "begin" else require_run(path).samples()


def _name(*parts: str) -> str:
    """A file name of some parts, without what is special in a shell or an option."""
    name = "-".join(filter(None, (_NOT_IN_NAMES.sub("-", part).strip("-.") for part in parts)))
    return name.encode()[:_MAX_NAME].decode(errors="ignore")


def _has_fingerprint(path: Path, fingerprint: Mapping[str, Any]) -> bool:
    with contextlib.suppress(BatchError):
        run = read_run(path)
        return run is not None and describe_difference(run.record, BatchRecord(fingerprint, 0)) is None
    return False


def form_of(sample: Sample) -> str | None:
    return None if sample.answer is None else _canonical(sample.answer)


def report_of(run: Run, samples: Sequence[Sample]) -> Report:
    """The report of a run, of which at least one sample counts. Skipped ones take no time."""
    notes = run.record.notes
    seconds = notes["seconds"] * len(samples) / notes["timed_samples"] if notes.get("timed_samples") else None
    counted = [sample for sample in samples if not sample.is_skipped]
    report = summarize(run.task, counted, run.samples_per_question, form_of, seconds)
    return replace(report, maj=()) if run.match == "code" else report  # programs are not put to a vote


def rescored(run: Run, samples: Sequence[Sample], run_code: bool = False) -> list[Sample]:
    """Extract and compare the answers again. Raises UsageError for code that must not be run."""
    questions = tuple(Question(0, sample.id, "", sample.gold, sample.choices) for sample in samples)
    marked = list(samples)
    with closing(marker(run.match, questions, run_code)) as replies:
        for at, (sample, question) in enumerate(zip(samples, questions, strict=True)):
            if not sample.is_skipped:
                text = sample.text
                if run.match == "code":  # the whole program, which its reply may have stated only in part
                    text = "" if sample.answer is None else f"```python\n{sample.answer}\n```"
                replies.add(at, Unmarked(text, question, sample.finish_reason == "stop"))
        while marks := replies.marks(wait=True):
            for at, mark in marks:
                marked[at] = replace(marked[at], answer=mark.answer, correct=mark.correct)
    return marked


def compare_runs(before: Run, after: Run) -> Comparison:
    """Compare the questions that are finished in both runs.

    Raises UsageError, which names the difference, unless only their models differ, and what these recommend.
    """
    first, second = _condition(before), _condition(after)
    own = _own_settings(before) & _own_settings(after)
    differing = [
        f"{key}{shown_values(first.get(key), ' and', second.get(key))}"
        for key in {**first, **second}
        if first.get(key) != second.get(key) and key not in own
    ]
    if differing:
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: they differ in {enumeration(differing)}",
            "evaluate both models with the same questions and settings",
        )
    runs = [outcomes(_finished_samples(run), form_of) for run in (before, after)]
    common = [id for id in runs[0] if id in runs[1]]
    if not common:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish them first")
    return compare(*([run[id] for id in common] for run in runs))


def _condition(run: Run) -> dict[str, Any]:
    """What runs must share to be compared, by readable names."""
    settings = {key: value for key, value in run.record.fingerprint.items() if key not in MODEL_KEYS}
    return {**settings, **{f"number of {key}": value for key, value in run.record.extent.items()}}


def _own_settings(run: Run) -> set[str]:
    """The settings that the user did not choose, by readable names; none in a run that does not record which."""
    if CHOSEN not in run.record.notes:
        return set()
    return {key.replace("_", " ") for key in KEYS if key not in run.record.notes[CHOSEN]}


def _finished_samples(run: Run) -> Iterator[Sample]:
    questions = group_by_question(sample for sample in run.samples() if not sample.is_skipped)
    return chain.from_iterable(each for each in questions.values() if len(each) == run.samples_per_question)


def measure_divergence(reference: Model, other: Model, settings: Settings, open_bench: BenchFactory) -> Closeness:
    """Compare two quantizations of one model on a probe text, each in a child process.

    Raises ModelFileError, UsageError if their vocabularies or layers differ, EngineError if they cannot be loaded.
    """
    from cerebrum_cli.engine.trials import TrialError
    from cerebrum_cli.gguf.header import require_generative
    from cerebrum_cli.inference.loading import load_options

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
        except TrialError as error:
            raise EngineError(f"cannot compare these models: {error.message}", error.hint) from error
