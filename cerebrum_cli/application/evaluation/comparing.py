"""Compare two runs, or refuse to: they must ask the same questions under the same conditions."""

from __future__ import annotations

from cerebrum_cli.application.evaluation.reporting import form_of
from cerebrum_cli.application.evaluation.runs import Run
from cerebrum_cli.application.inference.fingerprint import MODEL_KEYS
from cerebrum_cli.batches.meta import describe_difference
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.evals.comparison import Comparison, compare, outcomes


def compare_runs(before: Run, after: Run) -> Comparison:
    """Compare two runs. Raises UsageError, which names the difference, unless only their models differ."""
    first, second = (
        {**{key: value for key, value in run.record.fingerprint.items() if key not in MODEL_KEYS}, **run.record.extent}
        for run in (before, after)
    )
    if difference := describe_difference(first, second):
        raise UsageError(
            f"{before.name} and {after.name} cannot be compared: {after.name} has {difference}",
            "run cerebrum eval again with the same questions and settings, and another model",
        )
    runs = [outcomes((each for each in run.samples() if not each.is_refused), form_of) for run in (before, after)]
    common = [id for id in runs[0] if id in runs[1]]
    if not common:
        raise UsageError(f"{before.name} and {after.name} have no finished question in common", "finish them first")
    return compare(*([run[id] for id in common] for run in runs))
