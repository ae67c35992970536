"""Measurements with the real llama.cpp in child processes, and `cerebrum tune` that runs them."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from command_line import CommandLine
from numpy.typing import NDArray
from scripted_command import run_here
from waiting import wait_for_end, wait_until

from cerebrum_cli.cli.app import PROBE
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.bench import Bench, BenchError, BenchJob, JobKind
from cerebrum_cli.engine.llama.bench_process import WARM_UP_STEPS, BenchModel
from cerebrum_cli.engine.model_options import LoadOptions, Tuning
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.gguf.sizes import uniform_sizes
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.tune.tune import bench_options

pytestmark = pytest.mark.slow

TEXT = PROBE.read_text(encoding="utf-8")
REPACKED, NOT_REPACKED = Tuning(repack=True), Tuning(repack=False)
PREFILL, DECODE, BATCH_DECODE = BenchJob("prefill", 64), BenchJob("decode", 4), BenchJob("decode", 2, 4)
DEEP_DECODE = BenchJob("decode", 4, depth=4096, copies=64)


def options_of(path: Path) -> LoadOptions:
    """Load options of a model, with one thread."""
    return bench_options(InstalledModel(path.stem, (path,)), Settings(threads=1))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench for nano; at the end, no process or file may be left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.closing(Bench(options_of(NANO), TEXT)) as bench:
        yield bench
        remaining = bench_processes()
        assert [path.name.startswith(".cerebrum-tune.") for path in tmp_path.iterdir()] == [True, True]
    assert not any(process.is_running() for process in remaining)
    assert list(tmp_path.iterdir()) == []


def bench_processes(pid: int | None = None) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [child] if "cerebrum_cli.engine.llama.bench_process" in child.cmdline() else []
    return found


def test_bench_measures_speeds_load_time_and_memory(bench: Bench) -> None:
    assert all(bench.speed(REPACKED, job) > 0 for job in (PREFILL, DECODE, DEEP_DECODE, BATCH_DECODE))
    assert 0 < bench.reload(REPACKED) < 30
    assert bench.peak_memory(REPACKED) > NANO.stat().st_size
    assert isinstance(bench.devices, tuple)
    assert bench.speed(replace(REPACKED, flash_attention=False), DEEP_DECODE) > 0
    for tuning in (Tuning(n_ubatch=32), Tuning(slots=4)):
        assert bench.speed(replace(REPACKED, **tuning.overrides), BATCH_DECODE if tuning.slots else PREFILL) > 0
    assert len(bench_processes()) == 1, "other settings change only the context"


def test_bench_starts_a_process_for_each_load_settings(bench: Bench) -> None:
    others = replace(REPACKED, n_threads=2), replace(REPACKED, n_threads_batch=2), NOT_REPACKED
    assert all(bench.speed(tuning, DECODE) > 0 for tuning in (REPACKED, *others, REPACKED))
    assert len(bench_processes()) == 4
    bench.release()
    assert bench_processes() == []
    assert bench.speed(REPACKED, DECODE) > 0


def test_bench_measures_the_costs_of_steps_with_drafts(bench: Bench) -> None:
    measured = bench.step_costs(NOT_REPACKED, (1, 2, 8, 32), 60.0, 64)
    assert (measured.rows, measured.costs[0]) == ((1, 2, 8, 32), 1.0)
    assert measured.costs[-1] > 1.0
    assert bench.speed(NOT_REPACKED, DECODE) > 0


@pytest.fixture
def bench_model() -> Iterator[BenchModel]:
    model = BenchModel()
    model.load(options_of(NANO), TEXT)
    yield model
    model.backend.close()


def test_decode_job_fills_the_context_with_copies_once(
    bench_model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, positions = bench_model.backend, list[int]()
    decode = backend.decode

    def recording(rows: Sequence[TokenRow]) -> bool:
        positions.extend(row.position for row in rows)
        return decode(rows)

    monkeypatch.setattr(backend, "decode", recording)

    def run(copies: int, kind: JobKind = "decode") -> tuple[int, int, int]:
        """Rows evaluated, the last position, and the size of the state in slot 0."""
        positions.clear()
        bench_model.measure(Tuning(slots=1), 512, "time_job", BenchJob(kind, 4, depth=400, copies=copies))
        return len(positions), positions[-1], backend.context.state_size(0)

    decoded = 4 + WARM_UP_STEPS
    *_, size = run(1)
    assert run(8) == (50 + decoded, 50 + decoded - 1, size)
    assert run(8) == (decoded, 50 + decoded - 1, size)
    run(8, "prefill")
    assert run(8) == (50 + decoded, 50 + decoded - 1, size)
    assert run(1) == (400 + decoded, 400 + decoded - 1, size)


def test_attention_reads_the_copies_of_a_context(bench_model: BenchModel) -> None:
    """The new token then has a smaller share in attention, and nothing else changes."""

    def logits_after(job: BenchJob) -> NDArray[numpy.float32]:
        bench_model.measure(Tuning(slots=1), 512, "time_job", job)
        logits: NDArray[numpy.float32] = bench_model.backend.logits(0).copy()
        return logits

    alone = logits_after(BenchJob("decode", 0, depth=50))
    copied = logits_after(BenchJob("decode", 0, depth=400, copies=8))
    assert 0 < abs(alone - copied).max() < (alone.max() - alone.min()) / 10


def test_bench_decodes_after_the_first_copy_if_the_cache_cannot_hold_others(
    recurrent_model: Path, sliding_window_model: Path
) -> None:
    for path in (recurrent_model, sliding_window_model):
        with contextlib.closing(Bench(options_of(path), TEXT)) as bench:
            assert bench.speed(NOT_REPACKED, BenchJob("decode", 4, depth=800, copies=8)) > 0


def test_bench_measures_no_steps_of_a_recurrent_model(recurrent_model: Path) -> None:
    with contextlib.closing(Bench(options_of(recurrent_model), TEXT)) as bench:
        with pytest.raises(BenchError, match="cannot be trimmed"):
            bench.step_costs(NOT_REPACKED, (1, 2), 0.1, 64)
        assert bench.speed(NOT_REPACKED, DECODE) > 0


def test_logits_do_not_depend_on_jobs_before(bench: Bench) -> None:
    logits = bench.write_logits(64)
    for job in (PREFILL, BATCH_DECODE):
        assert bench.compare_logits(logits, 64) == (1.0, 0.0)
        bench.speed(Tuning(), job)


def test_bench_closes_processes_to_free_memory(bench: Bench) -> None:
    bench.speed(REPACKED, DECODE)
    [first] = bench_processes()
    bench._options = replace(bench._options, file=replace(bench._options.file, sizes=uniform_sizes(10**15, 2, 1)))
    with pytest.raises(BenchError, match=r"^needs \d+\.\d GB; \d+\.\d GB is free$"):
        bench.speed(NOT_REPACKED, DECODE)
    assert (first.is_running(), bench_processes()) == (False, [])


def test_bench_process_continues_after_errors_up_to_its_end(bench: Bench) -> None:
    process = bench._process(REPACKED)

    def measure(length: int, *arguments: Any) -> Any:
        return process.request("measure", Tuning(slots=1), length, *arguments)

    assert measure(128, "time_job", DECODE)[0] > 0
    for _ in range(2):
        with pytest.raises(BenchError, match="not enough memory for"):
            measure(2**32, "time_job", DECODE)
    with pytest.raises(BenchError, match="/dev/full/logits: Not a directory"):
        measure(64, "write_logits", 8, Path("/dev/full/logits"))
    assert bench.speed(REPACKED, DECODE) > 0
    with pytest.raises(BenchError, match="ended with exit code 1"):
        process.request("time_nothing")


def test_bench_reports_the_signal_that_killed_a_process(bench: Bench) -> None:
    bench.speed(NOT_REPACKED, DECODE)
    [other] = bench_processes()
    bench.speed(REPACKED, DECODE)
    [killed] = [child for child in bench_processes() if child != other]
    killed.send_signal(signal.SIGKILL)
    with pytest.raises(BenchError, match=r"^llama\.cpp ended with signal 9$"):
        bench.speed(REPACKED, DECODE)
    with pytest.raises(BenchError, match="signal 9"):
        bench.speed(REPACKED, PREFILL)
    assert bench.speed(NOT_REPACKED, DECODE) > 0


def test_bench_repeats_a_short_text_and_imports_nothing_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "cerebrum_cli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Bench(options_of(NANO), "What is 3 plus 4?")) as bench:
        assert bench.speed(REPACKED, PREFILL) > 0


def test_tune_measures_a_real_model_and_saves_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"search.RUN_S": 0.05, "search.MAX_DEPTH": 64, "search.LOADS": 1, "tune.SEARCH_S": 0.0, "tune.STEPS_S": 0.1}
    for name, value in quick.items():
        monkeypatch.setattr(f"cerebrum_cli.tune.{name}", value)
    monkeypatch.setattr("cerebrum_cli.engine.bench.MIN_CPU_SHARE", 0.0)  # the other tests use the CPU
    done = run_here({}, tmp_path, "tune", NANO, "--threads", "1")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["use", "chat", "ask", "batch"]
    assert "measured, relative to the defaults:" in done.err.splitlines()
    has_profile = "now use these settings for nano with --threads 1" in done.err.splitlines()[-1]
    saves = has_profile or not lines[-1].endswith(": off")  # it depends on the machine whether either is faster
    profiles = list((tmp_path / "data" / "cerebrum" / "profiles").glob("*.json"))
    assert len(profiles) == saves
    monkeypatch.setenv("CEREBRUM_THREADS", "1")
    shown = run_here({}, tmp_path, "show", NANO, "--json")
    assert (shown.object["profile"] is not None) == saves


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_tune_ended_by_a_signal_leaves_no_process_and_saves_nothing(tmp_path: Path, ending: signal.Signals) -> None:
    folder = tmp_path / "cache" / "cerebrum" / "trials"
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    running = CommandLine(tmp_path).start("tune", NANO, env=environment)
    wait_until(lambda: bool(bench_processes(running.pid)))
    processes = bench_processes(running.pid)
    assert list(folder.glob(".cerebrum-tune.*"))
    running.send_signal(ending)
    out, err = running.communicate(timeout=30)
    wait_for_end(processes)
    assert (out, b"Traceback" in err, list((tmp_path / "data").rglob("profiles/*.json"))) == (b"", False, [])
    if ending == signal.SIGTERM:
        assert (running.returncode, b"nothing was saved" in err, list(folder.iterdir())) == (143, True, [])


def test_bench_repeats_disturbed_runs_and_counts_disturbed_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [0.5, 0.5, 0.99, 0.5, 0.5, 0.5, 0.4, 0.99, 0.5, 0.99]
    runs = list(enumerate(shares, 1))
    with contextlib.closing(Bench(options_of(NANO), TEXT)) as bench:
        bench._devices = ()
        monkeypatch.setattr(bench, "_request", lambda *_: runs.pop(0))
        measured = [(bench.speed(REPACKED, DECODE), bench.disturbed_jobs) for _ in range(5)]
    # The third run was undisturbed; all three were disturbed; on a machine that stays busy, the job is not repeated.
    assert measured == [(3, 0), (6, 1), (7, 2), (8, 2), (10, 2)] and not runs
