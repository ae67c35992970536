"""The scores of stored runs: made again by the rules of this version, stored, and compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from math import inf
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import commit_file, unfinished_file
from cerebrum_cli.core.settings import KEYS
from cerebrum_cli.core.text import enumeration
from cerebrum_cli.eval.comparison import Comparison, compare, outcomes
from cerebrum_cli.eval.questions import CHOSEN_SETTINGS, Question, Sample, sample_object
from cerebrum_cli.eval.report import group_by_question
from cerebrum_cli.eval.scorers import (
    SCORING_RULES,
    Match,
    SearchTimeout,
    code_scorer,
    describe_rules,
    reply_scorer,
    rules_of,
)
from cerebrum_cli.eval.stored_runs import AGAIN, DEFAULT_TEMPLATE, Run, has_rows, require_run, writing
from cerebrum_cli.runs.output_files import MADE_BY, MIXED, identify, shown_values, write_record, write_result
from cerebrum_cli.runs.result import to_json_line

# What is not named as a difference: what a model's label stands for, and keys of the versions and of the questions.
NOT_NAMED = ("model", *MADE_BY, SCORING_RULES, "task", "dataset", DEFAULT_TEMPLATE)
OF_A_FORMAT = ("prompt", "chat template")
QUESTION_FILE = "question file"


class Rescored(NamedTuple):
    """Samples with new scores, the number of those that are scored differently, and of those left as they were."""

    samples: list[Sample]
    changed: int
    too_slow: int


def rescored(match: Match, samples: Sequence[Sample], run_code: bool = False) -> Rescored:
    """Score samples again: extract and compare their answers, or run their programs.

    Those that take too long to be searched keep their scores. Raises UsageError for code that must not be run.
    """
    questions = tuple(Question(0, sample.id, "", sample.gold, sample.choices) for sample in samples)
    is_code = match == "code"
    new = list(samples)
    too_slow = 0
    with closing(code_scorer(run_code, is_extracted=True) if is_code else reply_scorer(match, questions)) as scorer:
        for index, (sample, question) in enumerate(zip(samples, questions, strict=True)):
            if sample.is_skipped:
                continue
            text = sample.answer or "" if is_code else sample.text
            try:
                scorer.add(index, question, text, sample.finish_reason == "stop")
            except SearchTimeout:
                too_slow += 1
        while scores := scorer.scores(inf):
            for index, score in scores:
                new[index] = replace(new[index], answer=score.answer, correct=score.correct)
    changed = sum(before.correct != after.correct for before, after in zip(samples, new, strict=True))
    return Rescored(new, changed, too_slow)


def save_scores(run: Run, run_code: bool = False) -> Rescored:
    """Score the samples of a run again, and store the scores. Raises BatchError if it is being written, or was changed.

    The record names no rules until its file is replaced: a process that dies in between leaves all the old scores or
    all the new ones, and a run that must be scored again before it is extended.
    """
    with writing(run) as paths:
        run = require_run(run.path)
        record, samples, is_complete = run.record, run.samples(), run.is_complete
        fingerprint = {**record.fingerprint, "match": run.match, SCORING_RULES: None}
        is_interrupted = fingerprint == record.fingerprint  # a save, whose record has the identity of the old file
        is_kept = len(samples) == record.rows and (is_interrupted or identify(paths.output) == record.result)
        if record.result and not (is_kept or has_rows(paths.partial)):
            raise BatchError(
                f"{paths.output} was changed after it was completed",
                "restore it, or run cerebrum eval again with --restart",
            )
        again = rescored(run.match, samples, run_code)
        path = run.current_file
        write_record(paths, replace(record, fingerprint=fingerprint), AGAIN)
        with unfinished_file(path, 0o666) as part:
            result = write_result(part.file, (to_json_line(sample_object(sample)).encode() for sample in again.samples))
            commit_file(part, path)
        rescored_record = replace(
            record,
            fingerprint={**fingerprint, SCORING_RULES: rules_of(run.match)},
            result=result if is_complete else None,
            input=record.input if is_complete else MIXED,  # the lines have no positions
        )
        write_record(paths, rescored_record, AGAIN)
        return again


def compare_runs(before: Run, after: Run) -> Comparison:
    """Compare the questions that are finished in both runs, scored by one version of the rules.

    Raises UsageError if they ask different questions.
    """
    if before.record.fingerprint.get(QUESTION_FILE) != after.record.fingerprint.get(QUESTION_FILE):
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: their questions differ",
            "evaluate the same task or the same file",
        )
    outdated = _to_rescore(before, after)
    runs = [outcomes(_finished_samples(run, run in outdated)) for run in (before, after)]
    common = [id for id in runs[0] if id in runs[1]]
    if not common:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish both runs")
    return compare(*([run[id] for id in common] for run in runs))


def differences(before: Run, after: Run) -> dict[str, tuple[Any, Any]]:
    """Differences of two runs besides models, their recommendations and versions: names and both values."""
    first, second = _condition(before), _condition(after)
    left_out = set(NOT_NAMED)
    if first["model"] != second["model"]:
        left_out |= {"model file", *(_own_settings(before) & _own_settings(after))}
    if "format" in left_out or first.get("format") != second.get("format"):
        left_out |= set(OF_A_FORMAT)
    if first.get("template") == second.get("template") is None and DEFAULT_TEMPLATE in first.keys() & second.keys():
        left_out.remove(DEFAULT_TEMPLATE)  # it is used, and recorded
    differing = _differences(first, second, left_out)
    if "adapter" in differing:
        differing["adapter"] = before.record.adapter_files, after.record.adapter_files
    return differing


def describe_differences(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in words; empty without any."""
    clauses = [f"{key}{shown_values(first, ' and', second)}" for key, (first, second) in differing.items()]
    return enumeration(clauses) if clauses else ""


def comparison_notes(before: Run, after: Run) -> Iterator[str]:
    """Notes on other causes of a difference: the versions that made the runs, and how they were scored."""
    if differing := _differences(before.versions, after.versions):
        yield f"the runs were made with different versions: {describe_differences(differing)}"
    for run in _to_rescore(before, after):
        again = f"; for this comparison its replies were scored again by {describe_rules(rules_of(run.match))}"
        now = f", not {describe_rules(rules_of(run.match))}: programs are not run again"
        yield f"{run.name} was scored by {describe_rules(run.scored_by)}{now if run.match == 'code' else again}"


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], left_out: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second} if key not in left_out}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _to_rescore(before: Run, after: Run) -> list[Run]:
    """The runs whose scores are not by the rules of this version, unless both are by the same."""
    if before.scored_by == after.scored_by is not None:
        return []
    return [run for run in (before, after) if run.outdated]


def _condition(run: Run) -> dict[str, Any]:
    """Everything the scores of a run depend on, by readable names."""
    counts = {f"number of {key}": value for key, value in run.record.extent.items()}
    return {**run.record.fingerprint, "match": run.match, **counts}


def _own_settings(run: Run) -> set[str]:
    """The settings that the user did not choose, by readable names; none in a run that does not record which."""
    return {key.replace("_", " ") for key in KEYS if key not in run.record.notes.get(CHOSEN_SETTINGS, KEYS)}


def _finished_samples(run: Run, is_outdated: bool) -> Iterator[Sample]:
    """The samples of the finished questions, if need be scored again, as far as that runs no programs."""
    is_again = is_outdated and run.match != "code"
    samples = rescored(run.match, run.samples()).samples if is_again else run.samples()
    questions = group_by_question(sample for sample in samples if not sample.is_skipped)
    return chain.from_iterable(group for group in questions.values() if len(group) == run.samples_per_question)
