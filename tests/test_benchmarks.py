"""The benchmarks' own rules: what a pair is, which peer counts, what is timed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import batch
import harness
import large_batch
import merge
import pytest
import stored_rows

from cerebrum_cli.engine.llama import devices
from cerebrum_cli.engine.memory import Device

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WRITE_SLOWLY = "import sys, time; open(sys.argv[1], 'wb').write(b'x' * 1000); time.sleep(0.1)"


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


def test_benchmark_run_reads_a_long_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TIMEOUT_S", 20.0)
    finished = harness.run([sys.executable, "-c", "import sys; sys.stderr.write('x' * 200_000); print('done')"])
    assert (finished.output, len(finished.errors)) == ("done\n", 200_000)


def test_benchmark_machine_names_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerators", lambda: (Device("CUDA0", "H200", 2**37, 2**37),))
    monkeypatch.setattr(harness, "in_subprocess", lambda function: function())
    harness.machine.cache_clear()
    name = harness.machine()
    harness.machine.cache_clear()
    assert ", CUDA0 H200, " in name


def test_benchmark_large_batch_loses_and_repeats_no_row(tmp_path: Path, chatml_model: Path) -> None:
    cpu, memory, resume = large_batch.measure(tmp_path, 1000, chatml_model)
    assert cpu.label.startswith("batch of 1,000 rows, 2 servers") and cpu.ratio > 0
    assert memory.peer == "100 bytes"
    assert resume.ratio > 0


def test_benchmark_stored_rows_are_resumed_and_complete(tmp_path: Path) -> None:
    resume, result = stored_rows.measure(tmp_path, 2000)
    assert resume.label == "batch of 2,000 finished rows: CPU time to resume"
    assert resume.ratio > 0 and result.ratio > 0


def test_benchmark_writing_counts_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x")
    flushed: list[int] = []

    def slow_fsync(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        time.sleep(0.1)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    finished = merge.time_writing([sys.executable, "-c", WRITE_SLOWLY, str(target)], source, target)
    assert len(flushed) == 1 and finished.seconds >= 0.2
    assert not target.exists()
