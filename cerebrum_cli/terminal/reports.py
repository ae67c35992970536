"""Reports of searches, evaluations, merges, checks, and the least certain tokens of a reply."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.text import format_count, format_size, one_line
from cerebrum_cli.doctor.assessment import CheckResult, Status, check_result
from cerebrum_cli.library.reference import looks_like_path
from cerebrum_cli.replies.inspection import CERTAIN
from cerebrum_cli.terminal.streams import DUMB_TERMINALS, Streams, columns, strip_controls
from cerebrum_cli.terminal.tables import (
    PIPE_WIDTH,
    Row,
    excerpt,
    field_lines,
    model_name,
    print_columns,
    print_lines,
    print_table,
    sampling_text,
    size_text,
    table_lines,
    table_width,
    updated,
    wrapped,
)

if TYPE_CHECKING:
    from cerebrum_cli.eval.comparison import Comparison
    from cerebrum_cli.eval.estimates import Interval
    from cerebrum_cli.eval.report import Report, VoteCost
    from cerebrum_cli.eval.stored_runs import Run
    from cerebrum_cli.replies import inspection

ESTIMATES = ("", "value", "95% interval")
VOTES = ("vote", "accuracy", "95% interval", "tokens")
UNCERTAIN = ("position", "after", "token", "prob.", "alternatives")
MAX_TOKEN_TEXT = 16  # characters
STATUS_COLORS: dict[Status, str] = {"ok": "32", "warning": "33", "failure": "1;31"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("hugging_face_cache") + 2
MIN_TEXT_WIDTH = 30  # columns; a terminal with room for less wraps the lines itself
HINT_PREFIX = "hint: "
FOUND_HEADINGS = ("repository", "best fit", "size", "fit", "license", "updated", "downloads")
FOUND_DROP = ("downloads", "updated", "license", "best fit", "size")
FOUND_INDENT = "  "
ENDING = 60  # characters
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


def print_disagreements(streams: Streams, rows: Iterable[Row]) -> None:
    listed = list(rows)
    columns: dict[str, Callable[[Row], str]] = {
        key: partial(cell, key) for key in listed[0] if key not in ("sample", "text")
    }
    columns["end of the reply"] = lambda row: one_line(row["text"][-ENDING:])
    print_columns(columns, streams, listed, shorten="end of the reply")


def cell(key: str, row: Row) -> str:
    """A value on one line, shortened: a filter may extract whole sentences."""
    return excerpt(one_line(str({True: "yes", False: "no", None: "none"}.get(row[key], row[key]))))


def print_latest(streams: Streams, rows: Sequence[Row], number: int | None = None) -> None:
    """Print the latest sessions of all, which come first: in a pipe all, and the latest last on a terminal."""
    at_terminal = streams.out_is_terminal
    listed = rows[: number or (LISTED if at_terminal else None)][:: -1 if at_terminal else 1]
    if not listed:
        streams.report("no saved sessions; cerebrum ask and cerebrum chat create them")
        return
    print_sessions(streams, listed)
    if at_terminal and number is None and len(listed) < len(rows):
        streams.report(f"the latest {len(listed)} of {len(rows)}; cerebrum sessions list --all lists them all")


def print_report(streams: Streams, report: Report, run: Run, skipped: int) -> None:
    questions, samples = format_count(report.n, "question"), format_count(report.samples, "sample")
    title = f"{report.task}: {report.model}, {questions}, {samples} each, {sampling_text(run.sampling)}"
    title += "" if run.is_complete else "; the run is not complete"
    streams.answer(f"{wrapped(streams, one_line(title))}\n\n")
    estimates = {"accuracy": report.accuracy}
    estimates |= {"accuracy, skipped as wrong": report.with_skipped} if report.with_skipped else {}
    estimates |= {f"maj@{k}": estimate for k, estimate in report.maj.items() if k > 1 and not report.votes}
    estimates |= {f"pass@{k}": estimate for k, estimate in report.pass_at.items() if k > 1}
    by_check = {"checked": report.checked, "unchecked": report.unchecked}
    estimates |= {f"{key} answers ({found.n})": found.accuracy for key, found in by_check.items() if found}
    seconds = report.seconds_per_question
    values = {
        "random guessing": None if report.chance is None else f"{report.chance:.3f}",
        "stated answers": None if report.stated is None else f"{report.stated:.3f}",
        "guessed answers": None if report.guessed is None else f"{report.guessed:.3f}",
        "no answer": f"{report.no_answer:.3f}",
        "no answer (truncated)": f"{report.cut_off:.3f}",
        "no program": f"{report.no_program:.3f}" if report.votes else None,
        "tokens per sample": f"{report.tokens_per_answer:.0f}",
        "seconds per question": None if seconds is None else f"{seconds:.2f}",
        "invalid rows": run.record.notes.get("bad_rows") or None,
        "samples skipped": skipped or None,
    }
    rows: list[Sequence[Any]] = [
        (label, f"{estimate.value:.3f}", bounds(estimate.interval)) for label, estimate in estimates.items()
    ]
    rows += [(label, value, "") for label, value in values.items() if value is not None]
    print_table(streams, ESTIMATES, rows)
    if report.votes:
        streams.answer("\n")
        print_table(streams, VOTES, [vote_row(vote) for vote in report.votes])


def vote_row(vote: VoteCost) -> tuple[str, ...]:
    name = f"{vote.kind}@{vote.samples}"
    return name, f"{vote.accuracy.value:.3f}", bounds(vote.accuracy.interval), f"{vote.tokens:.0f}"


def print_comparison(streams: Streams, comparison: Comparison, before: Run, after: Run, differing: str) -> None:
    """Print two runs side by side; `differing` names what differs besides their models."""
    models = before.model if before.model == after.model else f"{before.model} and {after.model}"
    title = f"{before.task}: {models}, {format_count(comparison.n, 'question')}"
    if differing:
        title += f"; the runs differ in {differing}"
    streams.answer(f"{wrapped(streams, one_line(title))}\n\n")
    of_votes = " (votes)" if max(before.samples_per_question, after.samples_per_question) > 1 else ""
    rows: list[Sequence[Any]] = [
        (f"accuracy of {before.name}", f"{comparison.accuracy_a:.3f}", ""),
        (f"accuracy of {after.name}", f"{comparison.accuracy_b:.3f}", ""),
        ("difference", f"{points(comparison.difference)} points", " to ".join(map(points, comparison.interval))),
        ("at every look", "", " to ".join(map(points, comparison.sequential_interval))),
        (f"right to wrong{of_votes}", comparison.right_to_wrong, ""),
        (f"wrong to right{of_votes}", comparison.wrong_to_right, ""),
        (f"changed answers{of_votes}", f"{comparison.flips} of {comparison.n}", ""),
        (f"McNemar's exact p{of_votes}", f"{comparison.p_value:.3g}", ""),
    ]
    if comparison.smallest_difference is not None:
        rows.append(("minimum detectable difference", f"{100 * comparison.smallest_difference:.1f} points", ""))
    # The interval is also in the verdict; truncated labels would hide which run is which.
    print_table(streams, ESTIMATES, rows, shorten="none")


def points(difference: float) -> str:
    return f"{100 * difference:+z.1f}"


def bounds(interval: Interval | Sequence[float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


def with_error(row: Mapping[str, Any], key: str, error: str) -> str:
    return f"{row[key]:.4f}" if row[error] is None else f"{row[key]:.4f} ± {row[error]:.4f}"


print_published = partial(
    print_columns,
    {
        "task": "task",
        "metric": "metric",
        "this run": lambda row: with_error(row, "value", "stderr"),
        "card": lambda row: with_error(row, "published", "published_stderr"),
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


def print_merge(streams: Streams, merge: Mapping[str, Any]) -> None:
    def offsets(layer: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{**source, "layer": source["layer"] - layer["layer"]} for source in layer["sources"]]

    rows = [row for _, run in groupby(merge["layers"], offsets) for row in source_rows(list(run), merge["models"])]
    print_table(streams, ("layers", "model", "source layers"), rows)
    types = ", ".join(f"{name} {count}" for name, count in merge["tensor_types"].items())
    copied = merge["copied"] / merge["size"]
    facts = {
        "parameters": f"{merge['parameters']:,}",
        "tensors": f"{merge['tensors']} ({types})",
        "size": f"{format_size(merge['size'])} ({merge['size']} bytes), {copied:.0%} copied unchanged",
        "KV cache": f"{merge['kv_bytes_per_token']:,} bytes per token",
        "memory": f"{format_size(merge['memory_to_merge'])} to merge,"
        f" {format_size(merge['memory'])} to run with a context of {merge['context']} tokens",
        "disk": f"{format_size(merge['size'])} needed, {format_size(merge['free'])} free",
    }
    streams.answer(f"\n{field_lines(facts)}")


def source_rows(run: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    first, last = run[0], run[-1]
    for number, (begin, end) in enumerate(zip(first["sources"], last["sources"], strict=True)):
        layers = span(first["layer"], last["layer"]) if number == 0 else ""
        reference = models[begin["model"]]
        name = Path(reference).stem if looks_like_path(reference) else reference
        yield layers, name, span(begin["layer"], end["layer"])


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def print_uncertain(streams: Streams, tokens: Sequence[inspection.UncertainToken]) -> None:
    if not tokens:
        streams.info(f"no token of the reply had a probability below {CERTAIN:.0%}")
        return
    rows = [
        (
            token.position,
            token.before,
            quoted(token.given.text),
            percentage(token.given),
            ", ".join(f"{quoted(choice.text)} {percentage(choice)}" for choice in token.alternatives),
        )
        for token in tokens
    ]
    print_table(streams, UNCERTAIN, rows, shorten="alternatives", drop=("position", "after"))


def quoted(text: str) -> str:
    shown = text if len(text) <= MAX_TOKEN_TEXT else f"{text[:MAX_TOKEN_TEXT]}…"
    return json.dumps(shown, ensure_ascii=False)


def percentage(token: inspection.ScoredToken) -> str:
    probability = exp(token.logprob)
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"


def check_terminal(streams: Streams) -> CheckResult:
    import locale

    if not streams.out_is_terminal:
        return check_result("none: standard output is a pipe or a file; it gets UTF-8 without colors")
    term, encoding = environment("TERM"), locale.getencoding()
    is_dumb = term is None or term in DUMB_TERMINALS
    modes = {"NO_COLOR": "no colors (NO_COLOR)", "ACCESSIBLE": "screen reader mode (ACCESSIBLE)"}
    chosen = [text for name, text in modes.items() if environment(name) is not None]
    detail = ", ".join([term or "TERM is not set", f"{columns(streams.out)} columns", encoding, *chosen])
    problems = []
    if is_dumb:
        problems.append(("no redrawing, and Markdown stays plain text", "set TERM, usually to xterm-256color"))
    if encoding.lower().replace("-", "") != "utf8":
        problems.append(("some characters may be displayed incorrectly", "use a UTF-8 locale: export LANG=C.UTF-8"))
    return check_result(detail, *problems)


def print_check_result(streams: Streams, result: CheckResult) -> None:
    text = format_check_result(result, columns(streams.out) - 1 if streams.out_is_terminal else None)
    if streams.can_style and environment("NO_COLOR") is None:
        details = strip_controls(text.removeprefix(result.status))
        streams.answer(f"\x1b[{STATUS_COLORS[result.status]}m{result.status}\x1b[0m{details}", is_styled=True)
    else:
        streams.answer(text)


def format_check_result(result: CheckResult, width: int | None) -> str:
    """Format a result, wrapped between words to a width; without a width nothing is wrapped."""
    head = result.status.ljust(STATUS_WIDTH) + result.name.ljust(NAME_WIDTH)
    texts = {"": result.detail, " " * len(HINT_PREFIX): HINT_PREFIX + result.hint if result.hint else ""}
    lines = [text for text in texts.values() if text]
    room = (width or 0) - len(head)
    if room >= MIN_TEXT_WIDTH:
        wrap = partial(textwrap.wrap, width=room, break_long_words=False, break_on_hyphens=False)
        lines = [line for indent, text in texts.items() for line in wrap(text, subsequent_indent=indent)]
    return head + f"\n{' ' * len(head)}".join(lines) + "\n"


def print_repositories(streams: Streams, rows: Iterable[Row]) -> None:
    from rich.cells import cell_len

    cells = [
        [
            f"{row['repo_id']} (gated)" if row["gated"] else row["repo_id"],
            *(row["recommended"], size_text(row["size"]), row["fit"], row["license"], row["updated"]),
            f"{row['downloads']:,}",
        ]
        for row in rows
    ]
    width = table_width(streams)
    whole = table_lines(FOUND_HEADINGS, cells, PIPE_WIDTH)
    if max(map(cell_len, whole)) <= width:
        print_lines(streams, whole)
        return
    names = table_lines(FOUND_HEADINGS[:1], [row[:1] for row in cells], width)
    details = table_lines(FOUND_HEADINGS[1:], [row[1:] for row in cells], width - len(FOUND_INDENT), drop=FOUND_DROP)
    pairs = zip(names, details, strict=True)
    print_lines(streams, (line for name, detail in pairs for line in (name, FOUND_INDENT + detail)), heads=2)
