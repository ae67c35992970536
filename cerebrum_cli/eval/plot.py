"""Pictures of a run: accuracy against votes and tokens, or the error of decisions against the share decided."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.files import file_error, is_directory, require_place
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.eval.report import MAJORITY, WITH_PROGRAMS, Report
from cerebrum_cli.trust.calibration import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cerebrum_cli.eval.decisions import DecisionFigures
    from cerebrum_cli.eval.estimates import Estimate

SUFFIXES = (".png", ".svg")
STYLES = {  # label, line and marker
    MAJORITY: ("majority vote, 95% interval", "ko-"),
    WITH_PROGRAMS: ("vote with programs", "bs--"),
}


def require_picture(path: Path) -> None:
    """Raise UsageError for a path that cannot be a picture, and without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: unsupported image format", f"end its name in {' or '.join(SUFFIXES)}")
    if is_directory(path):
        raise UsageError(f"--plot {path} is a directory", "name a file in it")
    require_place(path, "--plot")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib", pip_install('"cerebrum-cli[eval]"'))


def write_picture(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG or SVG. Raises CerebrumError."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a name may lack glyphs in the font
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise file_error(error, CerebrumError, path, ", or choose another path") from error


def draw_report(report: Report, title: str) -> Figure:
    """Draw accuracy by votes and by tokens. Raises UsageError for a report without votes."""
    if not report.votes:
        raise UsageError(
            "this run has no votes to plot", "votes need all samples of a question, and do not apply to code"
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    by_votes, by_tokens = figure.subplots(1, 2, sharey=True)
    for kind in STYLES:
        votes = report.votes_of(kind)
        accuracies = [vote.accuracy for vote in votes]
        if votes:
            draw_line(by_votes, kind, [vote.samples for vote in votes], accuracies)
            draw_line(by_tokens, kind, [max(1.0, vote.tokens) for vote in votes], accuracies)  # 0 has no logarithm
    by_votes.set(xlabel="samples per vote", ylabel="accuracy")
    by_votes.xaxis.get_major_locator().set_params(integer=True)
    by_tokens.set(xlabel="tokens per question", xscale="log")
    doublings = [max(1.0, vote.tokens) for vote in report.votes_of(MAJORITY) if vote.samples.bit_count() == 1]
    by_tokens.set_xticks(doublings, [f"{tokens:.0f}" for tokens in doublings])
    by_tokens.minorticks_off()
    for axes in (by_votes, by_tokens):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize="medium", parse_math=False, wrap=True)
    figure.legend(*by_votes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_line(axes: Axes, kind: str, x: Sequence[float], accuracies: Sequence[Estimate]) -> None:
    label, style = STYLES[kind]
    values = [accuracy.value for accuracy in accuracies]
    below = [accuracy.value - accuracy.interval.low for accuracy in accuracies]
    above = [accuracy.interval.high - accuracy.value for accuracy in accuracies]
    axes.errorbar(x, values, (below, above), fmt=style, markersize=4, elinewidth=0.8, capsize=2, label=label)


def draw_decisions(figures: DecisionFigures, title: str) -> Figure:
    """Draw the error against the share decided, and what can be promised."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    shares = [number / figures.n for number in range(1, figures.n + 1)]
    axes.plot(shares, figures.errors, "k-", linewidth=1.5, label="these rows")
    promised = [(share, error) for error, share in figures.promised.items() if share is not None]
    if promised:
        axes.plot(*zip(*promised, strict=True), "bo", label=f"promised with {CONFIDENCE:.0%} confidence")
        axes.legend(loc="upper left", frameon=False)
    axes.set(xlabel="share decided, the surest first", ylabel="error among them", xlim=(0, 1.02))
    axes.set_ylim(0, 1.05 * max(0.1, *figures.errors))
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}, {figures.n} rows", fontsize="medium", parse_math=False, wrap=True)
    return figure
