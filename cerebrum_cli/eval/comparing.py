"""Compare two runs, or refuse to: they must ask the same questions under the same conditions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from cerebrum_cli.batch.meta import enumeration, shown_values
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval.comparison import Comparison, compare, outcomes
from cerebrum_cli.eval.report import group_by_question
from cerebrum_cli.eval.reporting import form_of
from cerebrum_cli.eval.runs import Run
from cerebrum_cli.eval.sample import Sample
from cerebrum_cli.inference.fingerprint import MODEL_KEYS


def compare_runs(before: Run, after: Run) -> Comparison:
    """Compare the questions that are finished in both runs.

    Raises UsageError, which names the difference, unless only their models differ.
    """
    first, second = _condition(before), _condition(after)
    differing = [
        f"{key}{shown_values(first.get(key), ' and', second.get(key))}"
        for key in {**first, **second}
        if first.get(key) != second.get(key)
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


def _finished_samples(run: Run) -> Iterator[Sample]:
    """Samples of the questions that have all their samples."""
    questions = group_by_question(sample for sample in run.samples() if not sample.is_skipped)
    return chain.from_iterable(each for each in questions.values() if len(each) == run.samples_per_question)
