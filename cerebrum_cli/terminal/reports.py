"""Reports of searches, evaluations, merges, checks, and the least certain tokens of a reply."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts, format_count, format_size, one_line
from cerebrum_cli.doctor.assessment import CheckResult, Status, check_result
from cerebrum_cli.library.reference import looks_like_path
from cerebrum_cli.replies.inspection import CERTAIN
from cerebrum_cli.terminal.streams import DUMB_TERMINALS, Streams, columns, strip_controls
from cerebrum_cli.terminal.tables import (
    Fields,
    Row,
    excerpt,
    field_lines,
    model_name,
    print_columns,
    print_table,
    sampling_text,
    speed_text,
    updated,
)

if TYPE_CHECKING:
    from cerebrum_cli.eval.comparison import Comparison
    from cerebrum_cli.eval.estimates import Estimate
    from cerebrum_cli.eval.report import Report, VoteCost
    from cerebrum_cli.eval.stored_runs import Run
    from cerebrum_cli.replies import inspection

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
    "max tokens",
    "ctx",
    "think",
    "grammar",
    "cerebrum",
    "llama.cpp",
    "date",
)
UNCERTAIN = ("position", "after", "token", "prob.", "alternatives")
MAX_TOKEN_TEXT = 16  # characters
STATUS_COLORS: dict[Status, str] = {"ok": "32", "warning": "33", "failure": "1;31"}
TableRow = tuple[str, str, str]
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2
LISTED = 20  # sessions that a terminal shows unless asked for more
print_sessions = partial(
    print_columns,
    {
        "name": "name",
        "messages": "messages",
        "updated": updated,
        "model": model_name,
        "first message": lambda row: excerpt(row["first"]),
    },
    shorten="first message",
    drop=("model", "messages", "updated"),
)


def print_latest(streams: Streams, rows: Sequence[Row], number: int | None = None) -> None:
    """Print the latest sessions of all, which come first: in a pipe all, and the latest last on a terminal."""
    if not rows:
        streams.report("no saved sessions; cerebrum ask and cerebrum chat create them")
    elif not streams.out_is_terminal:
        print_sessions(streams, rows[:number])
    else:
        listed = rows[: number or LISTED]
        print_sessions(streams, listed[::-1])
        if number is None and len(listed) < len(rows):
            streams.report(f"the latest {LISTED} of {len(rows)}; cerebrum sessions list --all lists them all")


def print_report(streams: Streams, report: Report, run: Run, skipped: int) -> None:
    questions = format_count(report.n, "question")
    samples = format_count(report.samples, "sample")
    title = f"{report.task}: {report.model}, {questions}, {samples} each, {sampling_text(run.sampling)}"
    if not run.is_complete:
        title += "; the run is not complete"
    print_title(streams, title)
    rows = [(label, f"{found.value:.3f}", bounds(found.interval)) for label, found in labeled_estimates(report)]
    rows += [(label, value, "") for label, value in labeled_values(report)]
    if bad_rows := run.record.notes.get("bad_rows"):
        rows.append(("invalid rows", str(bad_rows), ""))
    if skipped:
        rows.append(("samples skipped", str(skipped), ""))
    print_table(streams, ESTIMATES, rows)
    if report.votes:
        streams.answer("\n")
        print_table(streams, VOTES, [vote_row(vote) for vote in report.votes])
    streams.answer(f"\n{field_lines(facts_of(run))}")


def facts_of(run: Run) -> Fields:
    """What the record of a run has of FACTS, on a line each."""
    record = {**run.record.fingerprint, **run.record.notes}
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


def with_error(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.4f}"
    return f"{value:.4f} ± {error:.4f}"


print_published = partial(
    print_columns,
    {
        "task": "task",
        "metric": "metric",
        "this run": lambda row: with_error(row["value"], row["stderr"]),
        "card": lambda row: with_error(row["published"], row["published_stderr"]),
        "z": lambda row: None if row["z"] is None else f"{row['z']:+.1f}",
    },
    shorten="task",
)
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
        "updated": updated,
    },
    shorten="name",
    drop=("updated", "model", "samples", "complete"),
)


def print_merge(streams: Streams, merge: JsonObject) -> None:
    rows: list[TableRow] = []
    for _, run in groupby(merge["layers"], source_offsets):
        rows += source_rows(list(run), merge["models"])
    print_table(streams, ("layers", "model", "source layers"), rows)
    streams.answer(f"\n{field_lines(merge_facts(merge))}")


def merge_facts(merge: JsonObject) -> Fields:
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    size = format_size(merge["size"])
    to_run = f"{format_size(merge['memory'])} to run with a context of {merge['context']} tokens"
    return {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{size} ({merge['size']} bytes), {merge['copied'] / merge['size']:.0%} copied unchanged",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes per token",
        "memory": f"{format_size(merge['memory_to_merge'])} to merge, {to_run}",
        "disk": f"{size} needed, {format_size(merge['free'])} free",
    }


def source_offsets(layer: JsonObject) -> list[JsonDict]:
    """The sources of a layer by their distance from it: layers in a row that have the same are listed together."""
    return [{**source, "layer": source["layer"] - layer["layer"]} for source in layer["sources"]]


def source_rows(run: Sequence[JsonObject], models: Fields) -> Iterator[TableRow]:
    first = run[0]
    last = run[-1]
    layers = span(first["layer"], last["layer"])
    for begin, end in zip(first["sources"], last["sources"], strict=True):
        name = models[begin["model"]]
        if looks_like_path(name):
            name = Path(name).stem
        yield layers, name, span(begin["layer"], end["layer"])
        layers = ""  # only once


def span(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}"


def print_uncertain(streams: Streams, tokens: Sequence[inspection.UncertainToken]) -> None:
    if not tokens:
        streams.info(f"no token of the reply had a probability below {CERTAIN:.0%}")
        return
    rows = []
    for token in tokens:
        others = ", ".join(f"{quoted(choice.text)} {percentage(choice)}" for choice in token.alternatives)
        rows.append((token.position, token.before, quoted(token.given.text), percentage(token.given), others))
    print_table(streams, UNCERTAIN, rows, shorten="alternatives", drop=("position", "after"))


def quoted(text: str) -> str:
    if len(text) > MAX_TOKEN_TEXT:
        text = f"{text[:MAX_TOKEN_TEXT]}…"
    return json.dumps(text, ensure_ascii=False)


def percentage(token: inspection.ScoredToken) -> str:
    probability = exp(token.logprob)
    if probability >= 0.01:
        return f"{probability:.0%}"
    return "<1%"


def check_terminal(streams: Streams) -> CheckResult:
    import locale

    if not streams.out_is_terminal:
        styles = "with styles (FORCE_COLOR)" if streams.can_style else "without colors"
        return check_result(f"none: standard output is a pipe or a file; it gets UTF-8 {styles}")
    term = environment("TERM")
    encoding = locale.getencoding()
    facts = [term or "TERM is not set", f"{columns(streams.out)} columns", encoding]
    if environment("NO_COLOR") is not None:
        facts.append("no colors (NO_COLOR)")
    if environment("ACCESSIBLE") is not None:
        facts.append("screen reader mode (ACCESSIBLE)")
    problems = []
    if term is None or term in DUMB_TERMINALS:
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be displayed incorrectly", "use a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result(", ".join(facts), *problems)


def print_check_result(streams: Streams, result: CheckResult) -> None:
    head = result.status.ljust(STATUS_WIDTH) + result.name.ljust(NAME_WIDTH)
    lines = [streams.wrapped(result.detail, len(head))]
    if result.hint:
        lines.append(streams.wrapped(f"hint: {result.hint}", len(head)))
    text = head + f"\n{' ' * len(head)}".join(lines) + "\n"
    streams.answer(streams.styled(result.status, STATUS_COLORS[result.status]), is_styled=True)
    streams.answer(strip_controls(text.removeprefix(result.status)))


print_repositories = partial(
    print_columns,
    {
        "repository": lambda row: f"{row['repo_id']} (gated)" if row["gated"] else row["repo_id"],
        "best fit": "recommended",
        "size": "size",
        "fit": "fit",
        "speed": speed_text,
        "license": "license",
        "updated": "updated",
        "downloads": lambda row: f"{row['downloads']:,}",
    },
    drop=("downloads", "updated", "license", "best fit", "size"),
)
