"""Interrupted and killed batches keep their finished rows, and the same command resumes them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_files import stored_lines
from command_line import CommandLine
from scripted_command import RecordingBackend, run_here, start_scripted
from waiting import TIMEOUT_S, wait_until

pytestmark = pytest.mark.slow

ROWS = 12


class Job:
    """A batch of `ROWS` rows on a scripted model, run in a slow child process or in this process."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.arguments = ["batch", "in.txt", "-o", "out", "-m", str(model), "--parallel", "3", "--seed", "1"]
        self.script: dict[str, Any] = {"rows": {}, "seeds": ["a reply of some length", "yes", "The answer is 4."]}
        self.processes: list[subprocess.Popen[bytes]] = []
        (home / "in.txt").write_text("".join(f"question {number}\n" for number in range(ROWS)))

    @property
    def partial(self) -> list[str]:
        """Lines of the finished rows."""
        return stored_lines(self.home / "out.partial")

    def start(self, *arguments: str, pause: float = 0.02, around: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start the batch in a child process."""
        script = {**self.script, "backends": [], "pause": pause}
        process = start_scripted(script, self.home, *self.arguments, *arguments, around=around)
        self.processes.append(process)
        return process

    def finish(self) -> int:
        """Run the same command in this process, and return how many rows it answered."""
        self.script["backends"] = []
        done = run_here(self.script, self.home, *self.arguments)
        assert done.code == 0, done.err
        backends: list[RecordingBackend] = self.script["backends"]
        return sum(len(backend.params) for backend in backends)

    @property
    def result(self) -> bytes:
        """Content of the output."""
        return (self.home / "out").read_bytes()

    @property
    def uninterrupted(self) -> bytes:
        """Output of a batch that was not interrupted."""
        arguments = ["other" if argument == "out" else argument for argument in self.arguments]
        assert run_here(self.script, self.home, *arguments).code == 0
        return (self.home / "other").read_bytes()


@pytest.fixture
def job(tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A batch in the current directory."""
    monkeypatch.chdir(tmp_path)
    job = Job(tmp_path, chatml_model)
    yield job
    for process in job.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_batch_interrupted_prints_how_to_resume_and_resumes(job: Job, number: signal.Signals, code: int) -> None:
    process = job.start()
    wait_until(lambda: len(job.partial) >= 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    done = len(job.partial)
    assert (process.returncode, out) == (code, b"")
    assert 2 <= done < ROWS
    *_, what, do = err.decode().splitlines()
    assert what == "error: interrupted"
    assert do == f" hint: {done} of {ROWS} rows done, saved in out.partial; run it again to resume"
    assert "Traceback" not in err.decode()
    assert not (job.home / "out").exists()
    assert job.finish() == ROWS - done
    assert job.result == job.uninterrupted
    assert sorted(path.name for path in job.home.glob("out*")) == ["out", "out.meta.json"]


def test_batch_interrupted_restart_resumes_without_restart(job: Job) -> None:
    job.finish()
    before = job.result
    process = job.start("--restart")
    wait_until(lambda: len(job.partial) >= 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert "run it again without --restart to resume" in err.decode()
    assert job.result == before  # until the new one is complete
    done = len(job.partial)
    assert job.finish() == ROWS - done


def test_batch_killed_repeatedly_loses_and_repeats_nothing(job: Job) -> None:
    answered = 0
    for _ in range(2):
        process = job.start(pause=0.05)
        wait_until(lambda least=answered + 2: len(job.partial) >= least)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
        partial = job.partial
        assert len(partial) >= answered + 2
        answered = len(partial)
    assert job.finish() == ROWS - answered
    assert job.result == job.uninterrupted
    assert set(partial) <= set(job.result.decode().splitlines())


@pytest.mark.parametrize(
    ("start", "number"), [('nohup "$@" &', signal.SIGHUP), ('"$@" &', signal.SIGINT)], ids=["nohup", "background"]
)
def test_batch_survives_a_signal_its_parent_ignores(job: Job, start: str, number: signal.Signals) -> None:
    shell = job.start(pause=0.01, around=("sh", "-c", f"{start} echo $! > pid; wait $!", "sh"))
    wait_until(lambda: len(job.partial) >= 2)
    for _ in range(2):
        os.kill(int((job.home / "pid").read_text()), number)
    assert shell.wait(TIMEOUT_S) == 0
    assert job.result == job.uninterrupted


def test_batch_interrupted_stream_has_complete_lines(job: Job) -> None:
    job.arguments[3] = "-"
    process = job.start()
    assert process.stdout
    lines = [process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    lines += out.splitlines()
    assert process.returncode == 130
    ids = [json.loads(line)["id"] for line in lines]
    assert ids[0] == 1
    assert ids == sorted(ids)
    assert len(lines) < ROWS
    assert err.decode().startswith(f"{len(lines)} of {ROWS} done, ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("flags", "again"), [([], "to resume"), (["--restart"], "with --restart")])
def test_batch_signal_during_a_template_is_not_a_row_error(
    endless_template: Path, tmp_path: Path, flags: list[str], again: str
) -> None:
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    arguments = ["batch", "in.txt", "-o", "out", "--set", "verbose=on", *flags]
    process = CommandLine(tmp_path).start(*arguments, "-m", endless_template)
    assert process.stderr
    assert any(b"load_tensors: " in line for line in process.stderr)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"0 of 3 rows done; run it again {again}\n" in err.decode()
    assert not list(tmp_path.glob("out*"))
