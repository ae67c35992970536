"""Reports of evaluations on a terminal: the results of a run, of runs side by side, and of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import Texts, format_count, one_line, strip_controls
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import field_lines, print_columns, print_table

if TYPE_CHECKING:
    from cerebrum_cli.eval.comparison import Comparison
    from cerebrum_cli.eval.estimates import Estimate
    from cerebrum_cli.eval.report import Report, VoteCost
    from cerebrum_cli.eval.stored_runs import Run

ESTIMATES = ("", "value", "95% interval")
VOTES = ("vote", "accuracy", "95% interval", "tokens")
# Keys of a run's record: with these, a report can be published alone.
FACTS = (
    "protocol",
    "all questions",
    "question file",
    "template",
    "quantization",
    "model file",
    "adapter",
    "format",
    "set of functions",
    "chat template",
    "system",
    "seed",
    "max_tokens",
    "ctx",
    "think",
    "grammar",
    "cerebrum",
    "llama.cpp",
    "date",
)
TableRow = tuple[str, str, str]


def print_report(streams: Streams, report: Report, run: Run, skipped: int) -> None:
    questions = format_count(report.n, "question")
    samples = format_count(report.samples, "sample")
    title = f"{report.task}: {report.model}, {questions}, {samples} each, {sampling_text(run.sampling)}"
    if not run.saved.is_complete:
        title += "; the run is not complete"
    print_title(streams, title)
    rows = [(label, f"{found.value:.3f}", bounds(found.interval)) for label, found in labeled_estimates(report)]
    rows += [(label, value, "") for label, value in labeled_values(report)]
    if bad_rows := run.notes.get("bad_rows"):
        rows.append(("invalid rows", str(bad_rows), ""))
    if skipped:
        rows.append(("samples skipped", str(skipped), ""))
    print_table(streams, ESTIMATES, rows)
    if report.votes:
        streams.answer("\n")
        print_table(streams, VOTES, [vote_row(vote) for vote in report.votes])
    streams.answer(f"\n{field_lines(facts_of(run))}")


def facts_of(run: Run) -> JsonDict:
    """What the record of a run has of FACTS, on a line each."""
    record = {**run.fingerprint, **run.notes}
    return {key: one_line(str(record[key])) for key in FACTS if record.get(key) is not None}


def print_title(streams: Streams, title: str) -> None:
    streams.answer(f"{streams.wrapped(strip_controls(one_line(title)))}\n\n")


def labeled_estimates(report: Report) -> Iterator[tuple[str, Estimate]]:
    yield "accuracy", report.accuracy
    if report.guessed:
        yield "accuracy, guesses as wrong", report.without_guesses
    if report.with_skipped:
        yield "accuracy, skipped as wrong", report.with_skipped
    for k, found in report.maj.items():
        if k > 1 and not report.votes:
            yield f"maj@{k}", found
    for k, found in report.pass_at.items():
        if k > 1:
            yield f"pass@{k}", found
    if report.checked:
        yield f"checked answers ({report.checked.n})", report.checked.accuracy
    if report.unchecked:
        yield f"unchecked answers ({report.unchecked.n})", report.unchecked.accuracy


def labeled_values(report: Report) -> Iterator[tuple[str, str]]:
    shares = {
        "random guessing": report.chance,
        "stated answers": report.stated,
        "guessed answers": report.guessed,
        "no answer": report.no_answer,
        "no answer (truncated)": report.cut_off,
    }
    if report.votes:
        shares["no program"] = report.no_program
    shares["not supported by Monty"] = report.unsupported or None
    for label, share in shares.items():
        if share is not None:
            yield label, f"{share:.3f}"
    yield "tokens per sample", f"{report.tokens_per_answer:.0f}"
    if report.seconds_per_question is not None:
        yield "seconds per question", f"{report.seconds_per_question:.2f}"


def vote_row(vote: VoteCost) -> Texts:
    name = f"{vote.kind}@{vote.samples}"
    return name, f"{vote.accuracy.value:.3f}", bounds(vote.accuracy.interval), f"{vote.tokens:.0f}"


def print_comparison(streams: Streams, comparison: Comparison, before: Run, after: Run, differing: str) -> None:
    """Print two runs side by side; `differing` names what differs besides their models."""
    models = before.model
    if before.model != after.model:
        models += f" and {after.model}"
    title = f"{before.task}: {models}, {format_count(comparison.n, 'question')}"
    if differing:
        title += f"; the runs differ in {differing}"
    print_title(streams, title)
    is_of_votes = max(before.samples_per_question, after.samples_per_question) > 1
    rows = [
        (f"accuracy of {before.name}", f"{comparison.accuracy_a:.3f}", ""),
        (f"accuracy of {after.name}", f"{comparison.accuracy_b:.3f}", ""),
        ("difference", f"{points(comparison.difference)} points", points_range(comparison.interval)),
        ("anytime-valid", "", points_range(comparison.sequential_interval)),
        *change_rows(comparison, " (votes)" if is_of_votes else ""),
    ]
    if comparison.smallest_difference is not None:
        rows.append(("detectable (80% power)", f"{100 * comparison.smallest_difference:.1f} points", ""))
    # The interval is also in the verdict; truncated labels would hide which run is which.
    print_table(streams, ESTIMATES, rows, shorten="none")


def change_rows(comparison: Comparison, of_votes: str) -> Iterator[TableRow]:
    yield f"right to wrong{of_votes}", str(comparison.right_to_wrong), ""
    yield f"wrong to right{of_votes}", str(comparison.wrong_to_right), ""
    yield f"changed answers{of_votes}", f"{comparison.flips} of {comparison.n}", ""
    if comparison.p_value is not None:
        yield f"McNemar's exact p{of_votes}", f"{comparison.p_value:.3g}", ""


def points(difference: float) -> str:
    return f"{100 * difference:+z.1f}"


def points_range(interval: Sequence[float]) -> str:
    return " to ".join(map(points, interval))


def bounds(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


print_runs = partial(
    print_columns,
    {
        "name": "name",
        "model": "model",
        "questions": "n",
        "samples": "samples",
        "accuracy": lambda row: None if row["accuracy"] is None else f"{row['accuracy']:.3f}",
        "95% interval": lambda row: row["interval"] and bounds(row["interval"]),
        "complete": "complete",
        "updated": "updated",
    },
    shorten="name",
    drop=("updated", "model", "samples", "complete"),
)
