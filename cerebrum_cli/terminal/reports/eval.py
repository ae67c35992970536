"""Tables of runs: a report, a comparison, and the list of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cerebrum_cli.terminal.tables import print_table, wrapped
from cerebrum_cli.terminal.texts import one_line

if TYPE_CHECKING:
    from cerebrum_cli.engine.trials import Closeness
    from cerebrum_cli.eval.comparison import Comparison
    from cerebrum_cli.eval.estimates import Estimate, Interval
    from cerebrum_cli.eval.report import Report
    from cerebrum_cli.eval.runs import Run
    from cerebrum_cli.terminal.streams import Streams

ALL_SHOWN = 8  # numbers of votes; of more, powers of two


def print_report(streams: Streams, report: Report, run: Run, skipped: int) -> None:
    """Print the estimates of a run with their intervals, then what its answers cost."""
    temperature = run.record.fingerprint["temperature"]
    questions, samples = number_of(report.n, "question"), number_of(report.samples, "sample")
    title = f"{report.task}: {report.model}, {questions}, {samples} each, temperature {temperature:g}"
    streams.answer(f"{wrapped(streams, one_line(title))}\n\n")
    rows: list[Sequence[Any]] = [_row("accuracy", report.accuracy)]
    rows += [_row(f"maj@{k}", report.maj[k - 1]) for k in shown_numbers(len(report.maj))]
    rows += [_row(f"pass@{k}", report.pass_at[k - 1]) for k in shown_numbers(len(report.pass_at))]
    if report.chance is not None:
        rows.append(("random guessing", share(report.chance), ""))
    rows.append(("no answer", share(report.no_answer), ""))
    rows.append(("no answer (truncated)", share(report.cut_off), ""))
    rows.append(("tokens per sample", f"{report.tokens_per_answer:.0f}", ""))
    if report.seconds_per_question is not None:
        rows.append(("seconds per question", f"{report.seconds_per_question:.2f}", ""))
    if bad_rows := run.record.notes.get("bad_rows"):
        rows.append(("invalid rows", bad_rows, ""))
    if skipped:
        rows.append(("samples skipped", skipped, ""))
    print_table(streams, ("", "value", "95% interval"), rows)


def shown_numbers(most: int) -> Iterator[int]:
    """Numbers of votes above 1 to show: all of a few, or powers of two and the last."""
    for k in range(2, most + 1):
        if most <= ALL_SHOWN or k == most or k & (k - 1) == 0:
            yield k


def print_comparison(
    streams: Streams, comparison: Comparison, before: Run, after: Run, closeness: Closeness | None
) -> None:
    """Print what changed from one run to the other."""
    rows: list[Sequence[Any]] = [
        (f"accuracy of {before.name}", share(comparison.accuracy_a), ""),
        (f"accuracy of {after.name}", share(comparison.accuracy_b), ""),
        ("difference", f"{points(comparison.difference)} points", " to ".join(map(points, comparison.interval))),
        ("right to wrong", comparison.right_to_wrong, ""),
        ("wrong to right", comparison.wrong_to_right, ""),
        ("changed answers", f"{comparison.flips} of {comparison.n}", ""),
        ("McNemar's exact p", f"{comparison.p_value:.3g}", ""),
    ]
    if comparison.smallest_difference is not None:
        rows.append(("minimum detectable difference", f"{100 * comparison.smallest_difference:.1f} points", ""))
    if closeness:
        rows.append(("mean KL divergence", f"{closeness.mean_kld:.4f} nats", ""))
        rows.append(("same top-1 token", f"{closeness.top1_agreement:.1%}", ""))
    # The interval is also in the verdict; truncated labels would hide which run is which.
    print_table(streams, ("", "value", "95% interval"), rows, shorten="none")


def print_runs(streams: Streams, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one line for each run."""
    cells = [
        (
            row["name"],
            row["model"],
            row["n"],
            row["samples"],
            row["accuracy"] if row["accuracy"] is None else share(row["accuracy"]),
            row["interval"] and bounds(row["interval"]),
            "yes" if row["complete"] else "no",
            row["updated"][:16].replace("T", " "),
        )
        for row in rows
    ]
    print_table(
        streams,
        ("name", "model", "questions", "samples", "accuracy", "95% interval", "complete", "updated"),
        cells,
        "name",
        ("updated", "model", "samples", "complete"),
    )


def _row(label: str, estimate: Estimate) -> tuple[str, str, str]:
    return label, share(estimate.value), bounds(estimate.interval)


def number_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def share(value: float) -> str:
    return f"{value:.3f}"


def points(difference: float) -> str:
    """A difference in percentage points."""
    return f"{100 * difference:+z.1f}"


def bounds(interval: Interval | Sequence[float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"
