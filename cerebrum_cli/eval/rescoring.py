"""The scores of stored runs: made again by the rules of this version, stored, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from cerebrum_cli.core.differences import Differences, describe_differences, differing_values
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import enumeration, format_count, format_names
from cerebrum_cli.eval.comparison import Comparison, QuestionResult, compare, question_results
from cerebrum_cli.eval.questions import Question, QuestionId, Sample, sample_object
from cerebrum_cli.eval.scorers import SCORING_RULES, reply_scorer, require_run_code, rules_of
from cerebrum_cli.eval.stored_runs import EXTENT, Run, require_run

MADE_BY = ("cerebrum", "llama.cpp")  # keys of a fingerprint: versions of the programs
# What is not named as a difference: keys of the versions and of the questions.
NOT_NAMED = (*MADE_BY, SCORING_RULES, "task", "dataset")
QUESTION_FILE = "question file"
QuestionResults = dict[QuestionId, QuestionResult]


def rescored(run: Run, run_code: bool = False) -> tuple[list[Sample], int]:
    """Score the samples of a run again: extract and compare their answers, or run their programs.

    With them, how many scores differ.

    Raises UsageError for code that must not be run, and CerebrumError for a search that takes too long.
    """
    if run.match == "code":
        require_run_code(run_code)
    samples = run.samples()
    questions = tuple(Question(0, sample.id, "", sample.reference, sample.choices) for sample in samples)
    new = list(samples)
    changed = 0
    with closing(reply_scorer(run.match, questions)) as scorer:
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

    Until all are stored, the record names no rules, and the run must be scored again before it is extended.
    """
    with run.saved.locked() as store:
        run = require_run(run.path)
        new, changed = rescored(run, run_code)
        run.saved.rewrite(store, map(sample_object, new), SCORING_RULES, rules_of(run.match))
        return new, changed


def compare_runs(before: Run, after: Run) -> tuple[Comparison, list[str]]:
    """Compare the questions that are finished in both runs; notes on those that are left out.

    Raises UsageError if they ask different questions, or none is finished in both.
    """
    if before.fingerprint.get(QUESTION_FILE) != after.fingerprint.get(QUESTION_FILE):
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: their questions differ",
            "evaluate the same task or the same file",
        )
    first, second = question_results(before.finished_questions()), question_results(after.finished_questions())
    common = [id for id in first if id in second]
    if not common:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish both runs")
    notes = [*_left_out(before, first, after, second), *_left_out(after, second, before, first)]
    return compare([first[id] for id in common], [second[id] for id in common]), notes


def _left_out(run: Run, results: QuestionResults, other: Run, others: QuestionResults) -> Iterator[str]:
    """Yield a note that names the questions of a run without a result in another."""
    if unpaired := [str(id) for id in results if id not in others]:
        count = format_count(len(unpaired), "question")
        yield f"left out {count} of {run.name} without a result in {other.name}: {format_names(unpaired)}"


def differences(before: Run, after: Run) -> Differences:
    """Differences of two runs besides models and versions: names and both values."""
    sizes = ({f"number of {key}": size for key, size in run.notes[EXTENT].items()} for run in (before, after))
    found = before.saved.differences(after.saved) | differing_values(*sizes)
    left_out = {*NOT_NAMED}
    if "model" in found:
        left_out |= {"model", "model file"}
    return {key: values for key, values in found.items() if key not in left_out}


def list_differences(differing: Differences) -> str:
    return enumeration(describe_differences(differing, " and"))


def version_differences(before: Run, after: Run) -> Differences:
    return differing_values(_versions(before), _versions(after))


def _versions(run: Run) -> JsonDict:
    versions = {key: run.fingerprint.get(key) for key in MADE_BY}
    if servers := run.saved.servers:
        versions["llama.cpp"] = ", ".join(f"{server['kind']} {server['build']}" for server in servers)
    return versions
