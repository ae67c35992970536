"""Trials with the real llama.cpp, each in a process of its own: what they measure, and what becomes of them."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
from command_line import COMMAND, CommandLine
from screen import Screen
from tiny_models import Shape, write_chatml

from cerebrum_cli.application.doctor.selftest import NANO
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.application.tuning.tune import trial_options
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.bench.protocol import Job, TrialError
from cerebrum_cli.engine.bench.trials import LoadSettings, ProcessBench, Trial
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.plan import HEADROOM, LoadOptions, Tuning
from cerebrum_cli.runtime.composition import PROBE

TEXT = PROBE.read_text(encoding="utf-8")
USUAL, PLAIN = Tuning(repack=True), Tuning(repack=False)
READ, SAY, MANY = Job("prefill", 64), Job("decode", 4), Job("decode", 2, 4)


@pytest.fixture
def options() -> LoadOptions:
    """Return how nano is opened, on one thread."""
    return trial_options(Model("nano", (NANO,)), Settings(threads=1))


@pytest.fixture
def bench(options: LoadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessBench]:
    """Return a bench for nano, and see that it leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.closing(ProcessBench(options, TEXT)) as bench:
        yield bench
        left = children()
        assert [path.name.startswith("cerebrum-tune-") for path in tmp_path.iterdir()] == [True]
    assert not any(process.is_running() for process in left)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def wide(tmp_path: Path) -> LoadOptions:
    """Return how a model is opened whose heads are wide enough for a cache in blocks of 32."""
    path = write_chatml(tmp_path / "wide.gguf", shape=Shape(heads=2, kv_heads=1))
    return trial_options(Model("wide", (path,)), Settings(threads=1))


def children(pid: int | None = None) -> list[psutil.Process]:
    """Return the trials a process has started and not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
        return [child for child in found if "cerebrum_cli.engine.llama.trial" in command_of(child)]
    return []


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def until(holds: Callable[[], Any]) -> Any:
    """Wait for something, and return it."""
    for _ in range(600):
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_speeds_are_measured_and_a_process_knows_its_load_time_and_memory(bench: ProcessBench) -> None:
    assert all(bench.speed(USUAL, job) > 0 for job in (READ, SAY, MANY))
    facts = bench.load_stats(USUAL)
    assert 0 < facts.load_s < 30
    assert facts.peak_memory > NANO.stat().st_size
    assert isinstance(bench.devices, tuple)
    assert len(children()) == 1, "the rest of a way is arranged in the same process"


def test_what_is_opened_in_another_way_has_a_process_of_its_own(bench: ProcessBench) -> None:
    for tuning in (USUAL, PLAIN, replace(PLAIN, n_threads=2), replace(PLAIN, n_threads_batch=2), USUAL):
        assert bench.speed(tuning, SAY) > 0
    assert len(children()) == 4
    for tuning in (Tuning(n_ubatch=32), Tuning(slots=4), Tuning(flash_attention=False)):
        assert bench.speed(replace(PLAIN, **tuning.overrides), MANY if tuning.slots else READ) > 0
    assert len(children()) == 4
    bench.release()
    assert children() == []
    assert bench.speed(USUAL, SAY) > 0


def test_a_way_is_as_close_to_itself_as_can_be(bench: ProcessBench) -> None:
    assert bench.closeness(PLAIN, PLAIN, 64) == (1.0, 1.0, 0.0)
    bench.speed(PLAIN, MANY)  # another context between
    assert bench.closeness(PLAIN, PLAIN, 64) == (1.0, 1.0, 0.0)


def test_without_flash_attention_a_text_is_evaluated_nearly_the_same(bench: ProcessBench) -> None:
    flash = bench.closeness(PLAIN, replace(PLAIN, flash_attention=False), 96)
    assert flash.agreement >= max(0.97, flash.top1_agreement)
    assert 0 <= flash.mean_kld < 0.01


def test_a_cache_of_fewer_bits_says_a_little_else(wide: LoadOptions) -> None:
    with contextlib.closing(ProcessBench(wide, TEXT)) as bench:
        assert bench.closeness(USUAL, USUAL, 96) == (1.0, 1.0, 0.0)
        cache = bench.closeness(USUAL, replace(USUAL, cache_type="q8_0"), 96)
        assert 0 < cache.mean_kld < 0.1
        assert bench.speed(replace(USUAL, cache_type="q8_0"), READ) > 0


def test_a_model_of_random_weights_read_in_other_steps_agrees_with_itself(chatml_model: Path) -> None:
    options = trial_options(Model("tiny", (chatml_model,)), Settings(threads=1))
    with contextlib.closing(ProcessBench(options, TEXT)) as bench:
        assert bench.closeness(Tuning(), Tuning(n_ubatch=16), 128).agreement >= 0.97


def test_a_text_shorter_than_what_is_to_be_read_is_read_again(options: LoadOptions) -> None:
    with contextlib.closing(ProcessBench(options, "What is 3 plus 4?")) as bench:
        assert bench.speed(USUAL, READ) > 0


def test_what_memory_does_not_hold_is_refused_before_anything_is_opened(options: LoadOptions) -> None:
    shape = replace(options.shape, weight_bytes=10**15)
    with contextlib.closing(ProcessBench(replace(options, shape=shape), TEXT)) as bench:
        with pytest.raises(TrialError, match=r"^needs 100000\d\.\d GB of memory, but only \d+\.\d GB is free$"):
            bench.speed(USUAL, SAY)
        with pytest.raises(TrialError):
            bench.load_stats(USUAL)
        assert children() == []


def test_weights_and_cache_must_fit_together(options: LoadOptions) -> None:
    most = available_memory() - HEADROOM
    shape = replace(options.shape, weight_bytes=most * 6 // 10, kv_bytes_per_token=most * 6 // 10 // 68)
    with contextlib.closing(ProcessBench(replace(options, shape=shape), TEXT)) as bench:
        with pytest.raises(TrialError, match="GB of memory, but"):
            bench.speed(USUAL, SAY)  # 4 tokens and 64
        assert children() == []
        assert bench.load_stats(USUAL).load_s > 0, "the weights alone would fit"


def test_a_cache_of_half_the_size_needs_half_the_memory(wide: LoadOptions) -> None:
    shape = replace(wide.shape, kv_bytes_per_token=(available_memory() - HEADROOM) * 12 // 10 // 68)
    with contextlib.closing(ProcessBench(replace(wide, shape=shape), TEXT)) as bench:
        with pytest.raises(TrialError):
            bench.speed(USUAL, SAY)
        assert bench.speed(replace(USUAL, cache_type="q8_0"), SAY) > 0


def test_where_memory_does_not_hold_two_they_are_opened_in_turn(options: LoadOptions) -> None:
    shape = replace(options.shape, weight_bytes=1)
    with contextlib.closing(ProcessBench(replace(options, shape=shape), TEXT)) as bench:
        bench.speed(USUAL, SAY)
        [first] = children()
        bench._options = replace(options, shape=replace(shape, weight_bytes=10**15))
        with pytest.raises(TrialError):
            bench.speed(PLAIN, SAY)
        assert not first.is_running()


def test_a_file_that_is_no_model_cannot_be_tried(options: LoadOptions, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with contextlib.closing(ProcessBench(replace(options, path=tmp_path / "text.gguf"), TEXT)) as bench:
        with pytest.raises(TrialError, match=r"text\.gguf: llama\.cpp cannot load it: "):
            bench.speed(USUAL, SAY)
        with pytest.raises(EngineError):
            bench.closeness(USUAL, PLAIN, 64)
        assert children() == []


def test_a_context_that_cannot_be_made_costs_only_that_way(bench: ProcessBench) -> None:
    [trial] = opened(bench)
    arranged = {"tuning": {}, "sequences": 1, "text": TEXT, "job": SAY._asdict()}
    assert trial.request({**arranged, "length": 128})["speed"] > 0
    for _ in range(2):
        with pytest.raises(TrialError, match="not enough memory for"):
            trial.request({**arranged, "length": 2**32})
    assert trial.request({**arranged, "length": 128})["speed"] > 0
    assert bench.speed(USUAL, SAY) > 0


def opened(bench: ProcessBench) -> list[Trial]:
    """Return the trials of a bench whose usual way was opened."""
    bench.load_stats(USUAL)
    return list(bench._trials.values())


def test_a_process_that_is_killed_says_by_what_signal_and_others_go_on(bench: ProcessBench) -> None:
    bench.speed(PLAIN, SAY)
    [other] = children()
    bench.speed(USUAL, SAY)
    [killed] = [child for child in children() if child != other]
    killed.send_signal(signal.SIGKILL)
    with pytest.raises(TrialError, match=r"^llama\.cpp ended with signal 9$"):
        bench.speed(USUAL, SAY)
    with pytest.raises(TrialError, match="signal 9"):
        bench.closeness(PLAIN, USUAL, 16)
    assert bench.speed(PLAIN, SAY) > 0
    bench.release()
    assert bench.speed(USUAL, SAY) > 0


def test_modules_that_lie_where_it_is_run_are_none_of_its_own(
    options: LoadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "cerebrum_cli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(ProcessBench(options, TEXT)) as bench:
        assert bench.speed(USUAL, SAY) > 0


def test_a_user_tunes_a_model_and_it_is_used_and_shown(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    done = user.run("tune", NANO, "--quick")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    headings = ["use", "gain", "settings", "prompt t/s", "gen t/s", "load", "memory", "same top-1"]
    assert re.split(" {2,}", lines[0]) == headings
    assert [line.split()[0] for line in lines[1:5]] == ["chat", "ask", "ask,", "batch"]
    used = "ask, chat and batch now use this for nano with --threads 1; --no-profile ignores it\n"
    assert done.err.endswith(used), "as the environment says"
    assert not {"\x1b", "\r"} & {*done.out, *done.err}
    assert len(list((tmp_path / "data" / "cerebrum" / "profiles").glob("*.json"))) == 1
    shown = user.run("show", NANO, "--json")
    assert shown.object["profile"]["uses"].keys() == {"chat", "ask", "ask-long", "batch"}
    reply = user.run("ask", "-m", NANO, "--format", "cerebrum", "--json", "What is 3 plus 4?")
    assert (reply.code, reply.object["final_answer"]) == (0, "7")


def test_a_terminal_shows_what_is_being_measured_and_the_table_when_it_is_done(tmp_path: Path) -> None:
    environment = {**CommandLine(tmp_path).environment({"TERM": "xterm-256color"}), "CEREBRUM_QUICK": "1"}
    pty: Any = pexpect.spawn(COMMAND, ["tune", str(NANO)], env=environment, dimensions=(40, 100), timeout=60)
    pty.expect("again, against defaults")
    before = pty.before + pty.after
    pty.expect(pexpect.EOF)
    pty.close()
    assert pty.exitstatus == 0
    screen = Screen(100, 40)
    screen.feed(before + pty.before)
    assert any(line.startswith("use ") for line in screen.lines)
    assert not any("once more" in line for line in screen.lines)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    trials = tmp_path / "cache" / "cerebrum" / "trials"
    running = CommandLine(tmp_path).start("tune", NANO, "--thorough", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    left = until(lambda: len(children(running.pid)) > 1 and children(running.pid))
    assert list(trials.glob("cerebrum-tune-*"))
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (code, b"")
    assert b"Traceback" not in err
    assert b"nothing was saved" in err
    assert not any(process.is_running() for process in left)
    assert list(trials.iterdir()) == []
    assert list((tmp_path / "data" / "cerebrum" / "profiles").glob("*.json")) == []


def test_trials_end_with_whoever_started_them(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    running = CommandLine(tmp_path).start("tune", NANO, "--thorough", env={"TMPDIR": str(tmp_path / "tmp")})
    left = until(lambda: children(running.pid))
    running.kill()
    running.communicate(timeout=30)
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in left))


def test_what_there_is_no_model_for_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    done = user.run("tune", "nobody/knows-this", "--offline")
    assert (done.code, done.out) == (3, "")
    (tmp_path / "text.gguf").write_text("hello")
    done = user.run("tune", tmp_path / "text.gguf")
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.err
    assert not (tmp_path / "data" / "cerebrum" / "profiles").exists()


def test_a_disturbed_run_is_made_again_and_counted(bench: ProcessBench) -> None:
    shares = iter([0.5, 0.5, 0.99, 0.5, 0.5, 0.5, 0.99])
    trial = bench._trial(LoadSettings.of(USUAL))
    request = trial.request
    trial.request = lambda message: {**request(message), "cpu_share": next(shares)}  # type: ignore[method-assign]
    assert bench.speed(USUAL, SAY) > 0
    assert bench.disturbed_jobs == 0, "the third run had its processors"
    assert bench.speed(USUAL, SAY) > 0
    assert bench.disturbed_jobs == 1, "none of three had"
    assert bench.speed(USUAL, SAY) > 0
    assert next(shares, None) is None


def test_a_child_that_dies_says_its_last_line(bench: ProcessBench) -> None:
    bench.speed(USUAL, SAY)
    trial = bench._trial(LoadSettings.of(USUAL))
    with pytest.raises(TrialError, match=r"ended with exit code 1: KeyError: 'sequences'"):
        trial.request({"job": None})


def test_a_full_disk_is_told_as_that(bench: ProcessBench) -> None:
    trial = bench._trial(LoadSettings.of(USUAL))
    question = {"write": "/dev/full/logits", "tokens": 8, "text": TEXT, "tuning": {}, "length": 64, "sequences": 1}
    with pytest.raises(TrialError, match="/dev/full/logits: Not a directory"):
        trial.request(question)


def test_two_searches_are_not_made_at_once(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    first = user.start("tune", NANO, "--thorough")
    until(lambda: children(first.pid))
    second = user.run("tune", NANO, "--quick")
    assert (second.code, second.out) == (1, "")
    assert second.err.startswith("error: another cerebrum tune is running")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    assert first.returncode == 130


def test_a_model_that_goes_away_meanwhile_keeps_nothing(tmp_path: Path) -> None:
    user, model = CommandLine(tmp_path), tmp_path / "mine.gguf"
    shutil.copy(NANO, model)
    running = user.start("tune", model, "--quick")
    until(lambda: children(running.pid))
    model.unlink()
    _, err = running.communicate(timeout=120)
    assert running.returncode == 1
    assert b"Traceback" not in err
    assert list((tmp_path / "data" / "cerebrum" / "profiles").glob("*.json")) == []
