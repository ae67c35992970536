"""A batch may be ended at any moment and in any way: what is finished stays, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from scripted_command import RecordingBackend, run_here
from tiny_models import write_chatml

SCRIPTED = str(Path(__file__).with_name("scripted_command.py"))
ROWS = 12
PATIENCE_S = 30


class Job:
    """A batch of `ROWS` rows on a scripted model, run in a process that is slow, or here at once."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.arguments = ["batch", "in.txt", "-o", "out", "-m", str(model), "--parallel", "3", "--seed", "1"]
        self.script: dict[str, Any] = {"rows": {}, "seeds": ["a reply of some length", "yes", "The answer is 4."]}
        self.processes: list[subprocess.Popen[bytes]] = []
        (home / "in.txt").write_text("".join(f"question {number}\n" for number in range(ROWS)))

    @property
    def partial(self) -> list[str]:
        """The lines of the partial file, without one that is just being written."""
        path = self.home / "out.partial"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def start(self, *arguments: str, pause: float = 0.004, around: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a process."""
        script = json.dumps({**self.script, "backends": [], "pause": pause})
        process = subprocess.Popen(
            [*around, sys.executable, SCRIPTED, script, *self.arguments, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=CommandLine(self.home).environment(),
            cwd=self.home,
        )
        self.processes.append(process)
        return process

    def until(self, came: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + PATIENCE_S
        while not came():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def finish(self) -> int:
        """Run the same command here, and return how many rows it answered."""
        self.script["backends"] = []
        done = run_here(self.script, self.home, *self.arguments)
        assert done.code == 0, done.err
        backends: list[RecordingBackend] = self.script["backends"]
        return sum(len(backend.params) for backend in backends)

    @property
    def result(self) -> bytes:
        """What was written in the end."""
        return (self.home / "out").read_bytes()

    @property
    def uninterrupted(self) -> bytes:
        """The result of a batch that ran through."""
        arguments = ["other" if argument == "out" else argument for argument in self.arguments]
        assert run_here(self.script, self.home, *arguments).code == 0
        return (self.home / "other").read_bytes()


@pytest.fixture
def job(tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Return a batch, in whose folder the test stands."""
    monkeypatch.chdir(tmp_path)
    job = Job(tmp_path, chatml_model)
    yield job
    for process in job.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_batch_that_is_interrupted_says_how_to_go_on_and_does(job: Job, number: signal.Signals, code: int) -> None:
    process = job.start()
    job.until(lambda: len(job.partial) >= 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    done = len(job.partial)
    assert (process.returncode, out) == (code, b"")
    assert (job.home / "out.partial").read_text().endswith("}\n")
    assert 2 <= done < ROWS
    *_, what, do = err.decode().splitlines()
    assert what == "error: interrupted"
    assert do == f"  try: {done} of {ROWS} are done; the same command goes on with the others"
    assert "Traceback" not in err.decode()
    assert not (job.home / "out").exists()
    assert job.finish() == ROWS - done
    assert job.result == job.uninterrupted
    assert sorted(path.name for path in job.home.glob("out*")) == ["out", "out.meta.json"]


def test_whoever_interrupts_a_restart_is_not_told_to_restart_again(job: Job) -> None:
    job.finish()
    before = job.result
    process = job.start("--restart")
    job.until(lambda: len(job.partial) >= 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert "the same command, without --restart, goes on with the others" in err.decode()
    assert job.result == before  # until the new one is whole
    done = len(job.partial)
    assert job.finish() == ROWS - done


def test_a_batch_that_is_killed_again_and_again_loses_and_repeats_nothing(job: Job) -> None:
    answered = 0
    for more in (2, 6):
        process = job.start()
        job.until(lambda least=more: len(job.partial) >= least)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = job.partial
        assert len(kept) >= more > answered
        answered = len(kept)
    assert job.finish() == ROWS - answered
    assert job.result == job.uninterrupted
    assert set(kept) <= set(job.result.decode().splitlines())


def test_a_result_has_one_writer(job: Job) -> None:
    job.start()
    job.until(lambda: len(job.partial) >= 1)
    other = run_here(job.script, job.home, *job.arguments)
    assert other.code == 1
    assert other.err == "error: another process is writing out\n  try: wait for it, or choose another -o\n"


def test_a_stream_that_is_interrupted_has_whole_lines(job: Job) -> None:
    job.arguments[3] = "-"
    process = job.start()
    assert process.stdout
    lines = [process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    lines += out.splitlines()
    assert process.returncode == 130
    ids = [json.loads(line)["id"] for line in lines]
    assert ids[0] == 1
    assert ids == sorted(ids)
    assert len(lines) < ROWS
    assert err.decode().startswith(f"{len(lines)} of {ROWS} done, ")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit of file sizes")
def test_on_a_full_disk_what_is_finished_stays_and_the_same_command_goes_on(job: Job) -> None:
    process = job.start(pause=0.0, around=("sh", "-c", 'ulimit -f 4; exec "$@"', "sh"))
    _, err = process.communicate(timeout=PATIENCE_S)
    done = len(job.partial)
    assert process.returncode == 1
    assert 0 < done < ROWS
    *_, what, do = err.decode().splitlines()
    assert what == "error: out.partial: File too large"
    assert do == "  try: free some space: the same command, without --restart, goes on where this one ended"
    assert job.finish() == ROWS - done
    assert job.result == job.uninterrupted


def test_a_signal_in_the_middle_of_a_template_makes_no_error_of_a_row(tmp_path: Path) -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    model = write_chatml(tmp_path / "endless.gguf", chat_template=loops)
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    process = CommandLine(tmp_path).start("batch", "in.txt", "-o", "out", "-v", "-m", model)
    assert process.stderr
    while b"load_tensors: " not in process.stderr.readline():
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "0 of 3 are done" in err.decode()
    assert not list(tmp_path.glob("out*"))
