"""The benchmarks' own rules: what a pair is, which peer counts, what is timed."""

import sys
from pathlib import Path

import batch
import harness
import large_batch
import pytest
import stored_rows

pytestmark = pytest.mark.slow


def test_benchmark_pairs_swap_their_order() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    medians = harness.alternate(lambda: measure("ours", 2.0), lambda: measure("peer", 4.0), runs=3)
    assert medians == (2.0, 4.0, 0.5)
    assert order == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]


def test_benchmark_server_counts_with_its_best_median() -> None:
    rounds = [{16: 9.0, 32: 8.0, 64: 1.0}, {16: 2.0, 32: 8.5, 64: 1.0}, {16: 3.0, 32: 7.5, 64: 99.0}]
    assert batch.best_slots(rounds) == 32


def test_benchmark_peak_memory_is_in_mebibytes() -> None:
    finished = harness.run([sys.executable, "-c", "x = b'x' * (100 * 2**20)"])
    assert 100 < finished.peak_mib < 10_000  # it counts this process too, from before the exec


def test_benchmark_large_batch_loses_and_repeats_no_row(tmp_path: Path, chatml_model: Path) -> None:
    cpu, memory, resume = large_batch.measure(tmp_path, 50, chatml_model)
    assert cpu.label.startswith("batch of 50 rows, 2 servers")
    assert memory.peer == "300 bytes"
    assert resume.ratio > 0


def test_benchmark_stored_rows_are_resumed_and_complete(tmp_path: Path) -> None:
    resume, result = stored_rows.measure(tmp_path, 2000)
    assert resume.label == "batch of 2,000 finished rows: CPU time to resume"
    assert resume.ratio > 0 and result.ratio > 0
