"""What came of writing a model in other encodings, as a table and lines for people, and as an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

if TYPE_CHECKING:
    from cerebrum_cli.application.tuning.reencoding import Report, Row, Speeds

HEADS = ("type", "size", "read/s", "say/s", "16 say/s", "argmax", "agree", "KL", "verdict")


def print_encodings(streams: Streams, report: Report) -> None:
    """Print the table: the original, and each encoding beside it; then why some of them may not answer for it."""
    print_table(streams, HEADS, [_cells(row) for row in (report.original, *report.rows)])
    for line in reasons(report):
        streams.answer(f"{line}\n")


def reasons(report: Report) -> Iterator[str]:
    """Yield a line for each encoding that may not answer for the original, or could not be tried."""
    for row in report.rows:
        if row.state != "ok":
            yield f"{row.type} is {row.verdict}"


def _cells(row: Row) -> tuple[str, ...]:
    if row.speeds is None:
        return (row.type, *[""] * 7, row.state)
    near = ["", "", "", ""]
    if row.closeness:
        argmax, agreement, divergence = row.closeness
        near = [f"{argmax:.3f}", f"{agreement:.3f}", f"{divergence:.4f}", row.state]
    return (row.type, format_size(row.size or 0), *_speeds(row.speeds, row.ratios), *near)


def _speeds(speeds: Speeds, ratios: Speeds | None) -> Iterator[str]:
    """Yield tokens a second, and how many times as many as the original's."""
    for index, speed in enumerate(speeds):
        number = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
        yield number if ratios is None else f"{number} x{ratios[index]:.2f}"


def report_object(model: str, path: str, report: Report) -> dict[str, Any]:
    """Return what `--json` prints: speeds in tokens a second, sizes in bytes, the divergence in nats."""
    original = report.original
    return {
        "model": model,
        "original": {"type": original.type, "path": path, "size": original.size, **_named(original.speeds)},
        "encodings": [_row_object(row) for row in report.rows],
        "applied": report.applied.reference if report.applied else None,
    }


def _row_object(row: Row) -> dict[str, Any]:
    near = row.closeness
    return {
        "type": row.type,
        "size": row.size,
        **_named(row.speeds),
        "ratios": _named(row.ratios),
        "agreement": near and near.agreement,
        "argmax_agreement": near and near.top1_agreement,
        "divergence": near and near.mean_kld,
        "verdict": row.verdict,
    }


def _named(speeds: Speeds | None) -> dict[str, float | None]:
    return speeds._asdict() if speeds else dict.fromkeys(("read", "say", "together"))
