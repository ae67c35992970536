"""Races of a merge: with other merges of the same file, with its writing thread, and with signals at any moment."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import CommandLine
from merges import FOUR_LAYERS, planned_file, read_tensors, stack
from tiny_models import write_quantized

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import fsync_directory
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.merge import execute as writing
from cerebrum_cli.merge.execute import Cancelled, HashedFile, Job, OutputFile, execute

pytestmark = pytest.mark.slow

WHOLE = stack(("a", 0, 6))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Output path of a merge, in an empty directory."""
    return tmp_path / "out.gguf"


def file_names(out: Path) -> list[str]:
    """Names of the files in the output directory."""
    return sorted(path.name for path in out.parent.iterdir())


def plan(six_layers: Path, out: Path) -> OutputFile:
    return planned_file(WHOLE, {"a": [six_layers]}, out)


@pytest.mark.usefixtures("no_locks")
def test_merge_is_refused_where_the_file_system_has_no_locks(out: Path) -> None:
    with pytest.raises(MergeError) as caught, HashedFile(out):
        pytest.fail("two merges could write one file")
    assert caught.value.message == f"{out}.part: this file system has no file locks"
    assert caught.value.hint == "write to another disk"


class InterruptAt:
    """Progress callback that lets a merge write chunk by chunk, and interrupts it at a share of its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
        self.share, self.reports = share, 0
        self._step = threading.Semaphore(0)
        write = HashedFile.write

        def write_when_released(hashed: HashedFile, data: bytes) -> None:
            self._step.acquire(timeout=0.005)
            write(hashed, data)

        monkeypatch.setattr(HashedFile, "write", write_when_released)
        monkeypatch.setattr("cerebrum_cli.merge.execute.PROGRESS_INTERVAL_S", 0.001)

    def __call__(self, done: int, total: int) -> None:
        self.reports += 1
        self._step.release()
        if done >= total * self.share:
            raise KeyboardInterrupt


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_merge_interrupt_leaves_a_whole_file_or_none(
    six_layers: Path, out: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    file = plan(six_layers, out)
    on_progress = InterruptAt(monkeypatch, share)
    try:
        written = execute(file, LlamaCodec, 2, on_progress)
    except KeyboardInterrupt:
        assert file_names(out) == []
    else:
        assert share == 1.0
        assert [written.path.name] == file_names(out) == [out.name]
        assert read_tensors([out]) == read_tensors([six_layers])
    assert (on_progress.reports == 1) == (share == 0)


def test_merge_interrupt_after_the_rename_completes_it(
    six_layers: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, interrupted = threading.Event(), threading.Event()

    def sync_and_wait(folder: Path) -> None:
        renamed.set()
        interrupted.wait(5)
        fsync_directory(folder)

    def interrupt(done: int, total: int) -> None:
        if renamed.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "fsync_directory", sync_and_wait)
    try:
        file = execute(plan(six_layers, out), LlamaCodec, 2, interrupt)
    except KeyboardInterrupt:
        pytest.fail("the file is complete")
    assert (read_tensors([file.path]), file_names(out)) == (read_tensors([six_layers]), ["out.gguf"])


def test_merge_cancelled_before_it_starts_opens_no_file(six_layers: Path, out: Path) -> None:
    out.with_name("out.gguf.part").write_bytes(b"of another merge")
    job = Job(plan(six_layers, out), LlamaCodec, 2, is_cancelled=True)
    job.run()
    assert (job.is_finished, job.written, job.done) == (True, None, 0)
    assert isinstance(job.error, Cancelled)
    assert out.with_name("out.gguf.part").read_bytes() == b"of another merge"


def test_merge_leaves_no_thread_however_it_ends(six_layers: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    for share in (0.0, 0.5, 2.0):
        with contextlib.suppress(KeyboardInterrupt):
            execute(plan(six_layers, out), LlamaCodec, 2, InterruptAt(monkeypatch, share))
    for each in threading.enumerate():
        if each.name == "merge":
            each.join(5)
    assert threading.active_count() == before


# Merges in forked processes that have everything imported. Each is sent two interrupts at a random moment of its
# writing; the first is not interrupted, to measure how long a merge takes.
INTERRUPT_TWICE = """
import os, random, signal, sys, time
from cerebrum_cli.main import main
import cerebrum_cli.merge.merge, cerebrum_cli.cli.merge, cerebrum_cli.engine.llama.codec

def start(number):
    pid = os.fork()
    if pid:
        return pid
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{number:03}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["cerebrum", *sys.argv[2:], "-o", f"out{number:03}.gguf"]
    main()
    os._exit(99)

def wait(pid, timeout):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def wait_until_writing(number):
    deadline = time.monotonic() + 20
    while not any(os.path.exists(f"out{number:03}.gguf{end}") for end in (".part", "")) and time.monotonic() < deadline:
        time.sleep(0.0005)

random.seed(7)
pid = start(0)
wait_until_writing(0)
started = time.monotonic()
print("000", wait(pid, 20), flush=True)
duration = time.monotonic() - started
for number in range(1, int(sys.argv[1]) + 1):
    pid = start(number)
    wait_until_writing(number)
    time.sleep(random.uniform(0, duration))
    os.kill(pid, signal.SIGINT)
    time.sleep(random.uniform(0, 0.003))
    os.kill(pid, signal.SIGINT)  # not waited for yet, so the number is not reused
    print(f"{number:03}", wait(pid, 20), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> CommandLine:
    """A user with a recipe whose merge takes a while."""
    write_quantized(tmp_path / "source.gguf", shape=FOUR_LAYERS)
    (tmp_path / "recipe.yaml").write_text(stack(*[("source.gguf", 0, 4)] * 2))
    return CommandLine(tmp_path)


RUNS = 10


def test_merge_command_two_interrupts_leave_all_or_nothing(home: CommandLine) -> None:
    arguments = [str(RUNS), "merge", "recipe.yaml", "-q", "-y", "--type", "Q3_K"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERRUPT_TWICE, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=home.environment(),
        cwd=home.home,
        timeout=120,
    )
    codes = dict(line.split(maxsplit=1) for line in done.stdout.decode().splitlines())
    assert (done.stderr, codes.pop("000"), len(codes)) == (b"", "0", RUNS)
    whole = (home.home / "out000.gguf").read_bytes()
    for number, code in codes.items():
        err = (home.home / f"err.{number}").read_text()
        assert code in ("0", "130"), err
        assert err in ("", "error: interrupted\n hint: nothing was written\n")
        files = {path.name: path for path in home.home.glob(f"out{number}.gguf*")}
        assert files.keys() <= {f"out{number}.gguf"}
        assert code == "130" or files
        for path in files.values():
            assert path.read_bytes() == whole.replace(b"out000", path.stem.encode())  # the merge's name
        assert not (files and err)
    assert "130" in codes.values()
