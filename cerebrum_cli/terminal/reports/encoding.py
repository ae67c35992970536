"""Results of `cerebrum tune --reencode`, as a table with reasons and as an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.tune.reencoding import EncodingResult, Report, Throughput

HEADINGS = ("type", "size", "prompt t/s", "gen t/s", "16 gen t/s", "same top-1", "KL", "verdict")


def print_encodings(streams: Streams, report: Report) -> None:
    """Print a table of the original and each encoding, and why an encoding was rejected or skipped."""
    print_table(streams, HEADINGS, [_cells(result) for result in (report.original, *report.results)])
    for result in report.results:
        if result.state != "ok":
            streams.answer(f"{result.type} was {result.verdict}\n")


def _cells(result: EncodingResult) -> tuple[str, ...]:
    if result.throughput is None:
        return (result.type, *[""] * 6, result.state)
    comparison = ["", "", ""]
    if closeness := result.closeness:
        comparison = [f"{closeness.agreement:.1%}", f"{closeness.mean_kld:.4f}", result.state]
    return (
        result.type,
        format_size(result.size or 0),
        *_throughput_cells(result.throughput, result.ratios),
        *comparison,
    )


def _throughput_cells(throughput: Throughput, ratios: Throughput | None) -> Iterator[str]:
    """Tokens per second, each with its ratio to the original."""
    for index, speed in enumerate(throughput):
        number = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
        yield number if ratios is None else f"{number} x{ratios[index]:.2f}"


def report_object(model: str, path: str, report: Report) -> dict[str, Any]:
    """Object that `--json` prints: sizes in bytes, the KL divergence in nats."""
    original = report.original
    return {
        "model": model,
        "original": {
            "type": original.type,
            "path": path,
            "size": original.size,
            **_throughput_object(original.throughput),
        },
        "encodings": [_result_object(result) for result in report.results],
        "applied": report.applied.reference if report.applied else None,
    }


def _result_object(result: EncodingResult) -> dict[str, Any]:
    closeness = result.closeness
    return {
        "type": result.type,
        "size": result.size,
        **_throughput_object(result.throughput),
        "ratios": _throughput_object(result.ratios),
        "agreement": closeness and closeness.agreement,
        "top1_agreement": closeness and closeness.top1_agreement,
        "mean_kld": closeness and closeness.mean_kld,
        "verdict": result.verdict,
    }


def _throughput_object(throughput: Throughput | None) -> dict[str, float | None]:
    return throughput._asdict() if throughput else dict.fromkeys(Throughput._fields)
