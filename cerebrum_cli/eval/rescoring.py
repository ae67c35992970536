"""The scores of stored runs: made again by the rules of this version, stored, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import commit_file, unfinished_file
from cerebrum_cli.core.settings import KEYS
from cerebrum_cli.core.text import enumeration, format_count, format_names
from cerebrum_cli.eval.comparison import Comparison, compare, outcomes
from cerebrum_cli.eval.questions import CHOSEN_SETTINGS, Match, Question, Sample, sample_object
from cerebrum_cli.eval.report import group_by_question
from cerebrum_cli.eval.scorers import (
    SCORING_RULES,
    describe_rules,
    reply_scorer,
    rules_of,
)
from cerebrum_cli.eval.stored_runs import AGAIN, DEFAULT_TEMPLATE, Run, require_run, writing
from cerebrum_cli.results.output_files import MADE_BY, MIXED, shown_values, write_record, write_result
from cerebrum_cli.results.result import to_json_line

# What is not named as a difference: what a model's label stands for, and keys of the versions and of the questions.
NOT_NAMED = ("model", *MADE_BY, SCORING_RULES, "task", "dataset", DEFAULT_TEMPLATE)
OF_A_FORMAT = ("prompt", "chat template")
QUESTION_FILE = "question file"


def rescored(match: Match, samples: Sequence[Sample], run_code: bool = False) -> tuple[list[Sample], int]:
    """Score samples again: extract and compare their answers, or run their programs. With them, how many differ.

    Raises UsageError for code that must not be run, and CerebrumError for a search that takes too long.
    """
    questions = tuple(Question(0, sample.id, "", sample.reference, sample.choices) for sample in samples)
    new = list(samples)
    with closing(reply_scorer(match, questions, run_code)) as scorer:
        for index, (sample, question) in enumerate(zip(samples, questions, strict=True)):
            if sample.is_skipped:
                continue
            text = sample.answer or "" if match == "code" else sample.text
            scorer.add(index, question, text, sample.finish_reason == "stop")
        while scores := scorer.scores(None):
            for index, score in scores:
                new[index] = replace(new[index], **score._asdict())
    changed = sum(before.correct != after.correct for before, after in zip(samples, new, strict=True))
    return new, changed


def save_scores(run: Run, run_code: bool = False) -> tuple[list[Sample], int]:
    """Score the samples of a run again, and store the scores. Raises BatchError if it is being written.

    The record names no rules until its file is replaced: a process that dies in between leaves all the old scores or
    all the new ones, and a run that must be scored again before it is extended.
    """
    with writing(run) as paths:
        run = require_run(run.path)
        record, samples, is_complete = run.record, run.samples(), run.is_complete
        fingerprint = {**record.fingerprint, SCORING_RULES: None}
        new, changed = rescored(run.match, samples, run_code)
        path = paths.output if is_complete else paths.partial
        write_record(paths, replace(record, fingerprint=fingerprint), AGAIN)
        with unfinished_file(path, 0o666) as part:
            result = write_result(part.file, (to_json_line(sample_object(sample)).encode() for sample in new))
            commit_file(part, path)
        rescored_record = replace(
            record,
            fingerprint={**fingerprint, SCORING_RULES: rules_of(run.match)},
            result=result if is_complete else None,
            input=record.input if is_complete else MIXED,  # the lines have no positions
        )
        write_record(paths, rescored_record, AGAIN)
        return new, changed


def compare_runs(before: Run, after: Run) -> tuple[Comparison, list[str]]:
    """Compare the questions that are finished in both runs, scored by one version of the rules; notes on how.

    Raises UsageError if they ask different questions.
    """
    if before.record.fingerprint.get(QUESTION_FILE) != after.record.fingerprint.get(QUESTION_FILE):
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: their questions differ",
            "evaluate the same task or the same file",
        )
    are_alike = before.scored_by == after.scored_by is not None
    runs, notes = [], []
    for run in (before, after):
        samples, now = run.samples(), describe_rules(rules_of(run.match))
        if run.outdated and not are_alike and run.match == "code":
            notes.append(f"{run.outdated}: programs are not run again")
        elif run.outdated and not are_alike:
            again = f"for this comparison its replies were scored again by {now}"
            notes.append(f"{run.name} was scored by {describe_rules(run.scored_by)}; {again}")
            samples, _ = rescored(run.match, samples)
        counted = group_by_question(sample for sample in samples if not sample.is_skipped)
        finished = {id: group for id, group in counted.items() if len(group) == run.samples_per_question}
        runs.append(outcomes(finished))
    common = dict.fromkeys(id for id in runs[0] if id in runs[1])
    if not common:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish both runs")
    for run, other, here in zip((before, after), (after, before), runs, strict=True):
        if unpaired := [str(id) for id in here if id not in common]:
            count = format_count(len(unpaired), "question")
            notes.append(f"left out {count} of {run.name} without a result in {other.name}: {format_names(unpaired)}")
    return compare(*([run[id] for id in common] for run in runs)), notes


def differences(before: Run, after: Run) -> dict[str, tuple[Any, Any]]:
    """Differences of two runs besides models, their recommendations and versions: names and both values."""
    first, second = (
        {**run.record.fingerprint, **{f"number of {key}": value for key, value in run.record.extent.items()}}
        for run in (before, after)
    )
    left_out = set(NOT_NAMED)
    if first["model"] != second["model"]:
        # Settings that the user did not choose; none in a run that does not record which.
        not_chosen = (set(KEYS) - set(run.record.notes.get(CHOSEN_SETTINGS, KEYS)) for run in (before, after))
        left_out |= {"model file", *(key.replace("_", " ") for key in set.intersection(*not_chosen))}
    if "format" in left_out or first.get("format") != second.get("format"):
        left_out |= set(OF_A_FORMAT)
    if first.get("template") == second.get("template") is None and DEFAULT_TEMPLATE in first.keys() & second.keys():
        left_out.remove(DEFAULT_TEMPLATE)  # it is used, and recorded
    differing = {key: values for key, values in _differences(first, second).items() if key not in left_out}
    if "adapter" in differing:
        differing["adapter"] = before.record.adapter_files, after.record.adapter_files
    return differing


def describe_differences(differing: Mapping[str, tuple[Any, Any]]) -> str:
    clauses = [f"{key}{shown_values(first, ' and', second)}" for key, (first, second) in differing.items()]
    return enumeration(clauses) if clauses else ""


def version_differences(before: Run, after: Run) -> dict[str, tuple[Any, Any]]:
    versions = []
    for run in (before, after):
        builds = ", ".join(f"{server['kind']} {server['build']}" for server in run.record.notes.get("servers", ()))
        recorded = {key: run.record.fingerprint.get(key) for key in MADE_BY}
        versions.append({**recorded, **({"llama.cpp": builds} if builds else {})})
    return _differences(*versions)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second}}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}
