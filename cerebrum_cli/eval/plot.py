"""Picture of a run's accuracy against the number of votes, and against the tokens they cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.files import file_error
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.eval.report import MAJORITY, WITH_PROGRAMS, Report, VoteCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
STYLES = {  # label, line and marker, color of the interval
    MAJORITY: ("majority vote", "ko-", "0.85"),
    WITH_PROGRAMS: ("vote with programs", "bs--", "#0000ff22"),
}


def plot_report(report: Report, path: Path) -> None:
    """Write a PNG or SVG of majority votes with their intervals. Raises UsageError, CerebrumError."""
    require_image(path)
    if not report.maj:
        raise UsageError(
            "this run has no votes to plot", "votes need all samples of a question, and do not apply to code"
        )
    write_picture(path, partial(draw_report, report))


def require_image(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: unsupported image format", f"end its name in {' or '.join(SUFFIXES)}")


def write_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Write what is drawn as a PNG or SVG. Raises UsageError, CerebrumError."""
    require_image(path)
    try:
        figure = draw()
    except ModuleNotFoundError as error:
        raise UsageError("--plot needs matplotlib", pip_install('"cerebrum-cli[eval]"')) from error
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a name may lack glyphs in the font
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise file_error(error, CerebrumError, path, ", or choose another path") from error


def draw_report(report: Report) -> Figure:
    """Draw accuracy by votes and by tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    by_votes, by_tokens = figure.subplots(1, 2, sharey=True)
    votes = report.votes or majority_costs(report)
    for kind in STYLES:
        of_kind = [vote for vote in votes if vote.kind == kind]
        draw_votes(by_votes, kind, [vote.samples for vote in of_kind], of_kind)
        draw_votes(by_tokens, kind, [max(1.0, vote.tokens) for vote in of_kind], of_kind)
    for axes in (by_votes, by_tokens):
        if report.chance is not None:
            axes.axhline(report.chance, color="black", linestyle=":", linewidth=1, label="guessing")
        axes.spines[["top", "right"]].set_visible(False)
    label_axes(by_votes, by_tokens, majority_costs(report))
    title = f"{report.task}: {report.model}, {report.complete} questions"
    figure.suptitle(title, fontsize="medium", parse_math=False, wrap=True)
    figure.legend(*by_votes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def label_axes(by_votes: Axes, by_tokens: Axes, majorities: Sequence[VoteCost]) -> None:
    from matplotlib.ticker import MaxNLocator

    most = majorities[-1].samples
    margin = max(0.5, 0.03 * most)
    by_votes.set(xlabel="samples per vote", ylabel="accuracy", xlim=(1 - margin, most + margin))
    by_votes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    by_tokens.set(xlabel="tokens per question", xscale="log")
    doublings = [vote.tokens for vote in majorities if vote.samples.bit_count() == 1]
    by_tokens.set_xticks(doublings, [f"{count:.0f}" for count in doublings])
    by_tokens.minorticks_off()


def majority_costs(report: Report) -> list[VoteCost]:
    """Majority votes of every size, by the tokens of their samples."""
    per_sample = max(1.0, report.tokens_per_answer)  # 0 has no place on a log scale
    return [VoteCost(MAJORITY, k, accuracy, k * per_sample) for k, accuracy in report.maj.items()]


def draw_votes(axes: Axes, kind: str, x: Sequence[float], votes: Sequence[VoteCost]) -> None:
    if not votes:
        return
    label, style, band = STYLES[kind]
    low, high = zip(*(vote.accuracy.interval for vote in votes), strict=True)
    interval = "95% interval" if kind == MAJORITY else "_"  # only once
    if len(x) > 1:
        axes.fill_between(x, low, high, color=band, linewidth=0, label=interval)
    else:
        axes.vlines(x, low, high, color=band, linewidth=8, label=interval)
    axes.plot(x, [vote.accuracy.value for vote in votes], style, markersize=4, label=label)
