"""The scores of stored runs: made again by the rules of this version, stored, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import commit_file, unfinished_file
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import enumeration, format_count, format_names
from cerebrum_cli.eval.comparison import Comparison, QuestionResult, compare, question_results
from cerebrum_cli.eval.questions import Question, QuestionId, Sample, sample_object
from cerebrum_cli.eval.scorers import SCORING_RULES, reply_scorer, rules_of
from cerebrum_cli.eval.stored_runs import AGAIN, Run, require_run, writing
from cerebrum_cli.results.output_files import (
    MADE_BY,
    Differences,
    differing_values,
    record_differences,
    shown_values,
    write_record,
    write_result,
)
from cerebrum_cli.results.schema import to_json_line

# What is not named as a difference: keys of the versions and of the questions.
NOT_NAMED = (*MADE_BY, SCORING_RULES, "task", "dataset")
QUESTION_FILE = "question file"
QuestionResults = dict[QuestionId, QuestionResult]


def rescored(run: Run, run_code: bool = False) -> tuple[list[Sample], int]:
    """Score the samples of a run again: extract and compare their answers, or run their programs.

    With them, how many scores differ.

    Raises UsageError for code that must not be run, and CerebrumError for a search that takes too long.
    """
    samples = run.samples()
    questions = tuple(Question(0, sample.id, "", sample.reference, sample.choices) for sample in samples)
    new = list(samples)
    changed = 0
    with closing(reply_scorer(run.match, questions, run_code)) as scorer:
        for index, (sample, question) in enumerate(zip(samples, questions, strict=True)):
            text = sample.text
            if run.match == "code":
                text = sample.answer or ""
            if not sample.is_skipped:
                scorer.add(index, question, text, sample.finish_reason == "stop")
        while scores := scorer.scores(None):
            for index, score in scores:
                new[index] = replace(samples[index], **score._asdict())
                changed += score.correct != samples[index].correct
    return new, changed


def save_scores(run: Run, run_code: bool = False) -> tuple[list[Sample], int]:
    """Score the samples of a run again, and store the scores. Raises BatchError if it is being written.

    The record names no rules until its file is replaced: a process that dies in between leaves all the old scores or
    all the new ones, and a run that must be scored again before it is extended.
    """
    with writing(run) as store:
        run = require_run(run.path)
        new, changed = rescored(run, run_code)
        objects = map(sample_object, new)
        result = run.record.result
        write_rules(run, None, result)
        if run.is_complete:
            result = replace_output(run.paths.output, objects)
        else:
            store.update(objects)
        write_rules(run, rules_of(run.match), result)
        return new, changed


def write_rules(run: Run, rules: str | None, result: str | None) -> None:
    """Record the rules that scored a run, and the new identity of its file."""
    fingerprint = {**run.record.fingerprint, SCORING_RULES: rules}
    record = replace(run.record, fingerprint=fingerprint, result=result)
    write_record(run.paths, record, AGAIN)


def replace_output(path: Path, objects: Iterable[JsonObject]) -> str:
    with unfinished_file(path, 0o666) as part:
        result = write_result(part.file, (f"{to_json_line(object)}\n".encode() for object in objects))
        commit_file(part, path)
    return result


def compare_runs(before: Run, after: Run) -> tuple[Comparison, list[str]]:
    """Compare the questions that are finished in both runs; notes on those that are left out.

    Raises UsageError if they ask different questions, or none is finished in both.
    """
    if before.record.fingerprint.get(QUESTION_FILE) != after.record.fingerprint.get(QUESTION_FILE):
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: their questions differ",
            "evaluate the same task or the same file",
        )
    first, second = question_results(before.finished_questions()), question_results(after.finished_questions())
    notes = [*_left_out(before, first, after, second), *_left_out(after, second, before, first)]
    if not first:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish both runs")
    return compare([*first.values()], [second[id] for id in first]), notes


def _left_out(run: Run, results: QuestionResults, other: Run, others: QuestionResults) -> Iterator[str]:
    """Remove the results of a run that another lacks, and yield a note that names them."""
    unpaired = [id for id in results if id not in others]
    for id in unpaired:
        del results[id]
    if unpaired:
        count, names = format_count(len(unpaired), "question"), format_names([*map(str, unpaired)])
        yield f"left out {count} of {run.name} without a result in {other.name}: {names}"


def differences(before: Run, after: Run) -> Differences:
    """Differences of two runs besides models and versions: names and both values."""
    found = record_differences(before.record, after.record)
    found |= differing_values(before.sizes, after.sizes)
    left_out = {*NOT_NAMED}
    if "model" in found:
        left_out |= {"model", "model file"}
    for key in left_out:
        found.pop(key, None)
    return found


def describe_differences(differing: Differences) -> str:
    clauses = [f"{key}{shown_values(first, ' and', second)}" for key, (first, second) in differing.items()]
    return enumeration(clauses)


def version_differences(before: Run, after: Run) -> Differences:
    return differing_values(_versions(before), _versions(after))


def _versions(run: Run) -> JsonDict:
    versions = {key: run.record.fingerprint.get(key) for key in MADE_BY}
    servers = run.record.notes.get("servers")
    if servers:
        versions["llama.cpp"] = ", ".join(f"{server['kind']} {server['build']}" for server in servers)
    return versions
