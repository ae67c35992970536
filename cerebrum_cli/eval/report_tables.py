"""Reports of evaluations on a terminal: the results of a run, and of runs side by side; accuracy comes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import Texts, format_count, one_line, strip_controls
from cerebrum_cli.eval.report import MAJORITY, WITH_PROGRAMS
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import field_lines, print_table

if TYPE_CHECKING:
    from cerebrum_cli.eval.comparison import Comparison
    from cerebrum_cli.eval.decisions import DecisionFigures
    from cerebrum_cli.eval.estimates import Estimate
    from cerebrum_cli.eval.report import Report, VoteReport
    from cerebrum_cli.eval.runs import SavedRun

ESTIMATES = ("", "value", "95% interval")
VOTES = ("vote", "accuracy", "95% interval", "tokens")
# Keys of a run's record; `--json` has the others, most of them digests.
FACTS = (
    "protocol",
    "all questions",
    "question",
    "template",
    "quantization",
    LORA,
    "format",
    "system",
    "seed",
    "max_tokens",
    "ctx",
    "think",
    "set of functions",
    "cerebrum",
    "llama.cpp",
    "date",
)


def print_report(streams: Streams, report: Report, run: SavedRun, failed: int) -> None:
    samples = format_count(report.samples, "sample")
    title = f"{run.task}: {run.model}, {format_count(report.n, 'question')}, {samples} each"
    is_single = report.samples == 1
    print_headline(streams, run, headline(report.accuracy, report.n) if is_single else rounded(report.accuracy), title)
    rows = [(label, f"{found.value:.3f}", bounds(found)) for label, found in labeled_estimates(report)]
    rows.append(("no answer", f"{report.no_answer:.3f}", ""))
    rows.append(("no answer (truncated)", f"{report.truncated:.3f}", ""))
    rows.append(("tokens per sample", f"{report.tokens:.0f}", ""))
    if failed:
        rows.append(("failed questions", str(failed), ""))
    print_table(streams, ESTIMATES, rows, numbers=ESTIMATES[1:2])
    if report.votes_of(WITH_PROGRAMS):
        streams.answer("\n")
        print_table(streams, VOTES, [vote_row(vote) for vote in report.votes], numbers=("accuracy", "tokens"))
    streams.answer(f"\n{field_lines(facts_of(run))}")


def print_decisions(streams: Streams, figures: DecisionFigures, run: SavedRun, failed: int) -> None:
    title = f"{run.task}: {run.model}"
    if votes := run.record.fingerprint.get("votes"):
        title += f", {format_count(votes, 'vote')} each"
    if failed:
        title += f", {format_count(failed, 'row')} failed"
    print_headline(streams, run, f"{headline(figures.accuracy, figures.n)}; log loss {figures.log_loss:.3f}", title)
    for line in figures.warnings:
        print_title(streams, line)
    figures.print(streams)
    streams.answer(f"\n{field_lines(facts_of(run))}")


def headline(accuracy: Estimate, answers: int) -> str:
    """The accuracy of single answers, with its interval in percent, and the number of right ones."""
    return f"{rounded(accuracy)}, {accuracy.value * answers:,.0f} of {answers:,}"


def rounded(accuracy: Estimate) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.0%} right ({100 * low:.0f} to {100 * high:.0f})"


def print_headline(streams: Streams, run: SavedRun, line: str, title: str) -> None:
    """Print the figure that counts, and what it is of."""
    streams.answer(f"{line}\n")
    if run.sampling:
        title += f", {sampling_text(run.sampling)}"
    if not run.is_complete:
        title += "; the run is not complete"
    print_title(streams, title)


def facts_of(run: SavedRun) -> JsonDict:
    """What the record of a run has of FACTS, on a line each."""
    record = {**run.record.fingerprint, **run.record.notes}
    record[LORA] = ", ".join(record.get(LORA, ())) or None
    return {key: one_line(str(record[key])) for key in FACTS if record.get(key) not in (None, "")}


def print_title(streams: Streams, title: str) -> None:
    streams.answer(f"{streams.wrapped(strip_controls(one_line(title)))}\n\n")


def labeled_estimates(report: Report) -> Iterator[tuple[str, Estimate]]:
    yield "accuracy", report.accuracy
    if not report.votes_of(WITH_PROGRAMS):
        for vote in report.votes_of(MAJORITY)[1:]:
            yield f"maj@{vote.samples}", vote.accuracy
    for k, found in report.pass_at.items():
        if k > 1:
            yield f"pass@{k}", found
    if report.checked:
        yield f"checked answers ({report.checked.n})", report.checked.accuracy


def vote_row(vote: VoteReport) -> Texts:
    name = f"{vote.kind}@{vote.samples}"
    return name, f"{vote.accuracy.value:.3f}", bounds(vote.accuracy), f"{vote.tokens:.0f}"


def print_comparison(
    streams: Streams, comparison: Comparison, runs: Sequence[SavedRun], names: Sequence[str], differing: str
) -> None:
    """Print two runs side by side by their names; `differing` says what differs besides their models."""
    before, after = runs
    models = before.model
    if before.model != after.model:
        models += f" and {after.model}"
    title = f"{before.task}: {models}, {format_count(comparison.n, 'question')}"
    if differing:
        title += f"; the runs differ in {differing}"
    print_title(streams, title)
    of_votes = " (votes)" if max(before.samples, after.samples) > 1 else ""
    low, high = comparison.interval
    rows = [
        (f"accuracy of {names[0]}", f"{comparison.accuracy_a:.3f}", ""),
        (f"accuracy of {names[1]}", f"{comparison.accuracy_b:.3f}", ""),
        ("difference", f"{points(comparison.difference)} points", f"{points(low)} to {points(high)}"),
    ]
    if changes := comparison.changes:
        rows += [
            (f"right to wrong{of_votes}", str(changes.right_to_wrong), ""),
            (f"wrong to right{of_votes}", str(changes.wrong_to_right), ""),
            (f"changed answers{of_votes}", f"{changes.flips} of {comparison.n}", ""),
            (f"McNemar's exact p{of_votes}", f"{changes.p_value:.3g}", ""),
        ]
    # The interval is also in the verdict; truncated labels would hide which run is which.
    print_table(streams, ESTIMATES, rows, shorten="none", numbers=ESTIMATES[1:2])


def points(difference: float) -> str:
    return f"{100 * difference:+z.1f}"


def bounds(found: Estimate) -> str:
    low, high = found.interval
    return f"{low:.3f} to {high:.3f}"
