"""Merges that fail or are interrupted at any moment: no partial files remain, and existing files are unchanged."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, CommandLine
from merges import SIX_LAYERS, plan_merge, read_tensors, stack, write_merge
from person import Person
from tiny_models import write_quantized
from waiting import wait_until

from cerebrum_cli.core.errors import Interrupted, MergeError, ModelFileError
from cerebrum_cli.core.files import write_all
from cerebrum_cli.terminal.progress import interruptible
from cerebrum_cli.weights import execute
from cerebrum_cli.weights.execute import Cancelled, MergeWriter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

TIMEOUT_S = 30
EXISTING = b"an existing file"
INTERRUPTED = ["error: interrupted", " hint: nothing was written"]
REPEATS = 6  # of all layers: writing the file takes seconds
WHOLE = stack(("a", 0, 6))


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("source") / "small.gguf", shape=SIX_LAYERS, encoding="F16")


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Output path of a merge, an existing file; checks afterwards that its directory is unchanged."""
    path = tmp_path / "out.gguf"
    path.write_bytes(EXISTING)
    yield path
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {path.name: EXISTING}


AtSize = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def at_size(monkeypatch: pytest.MonkeyPatch) -> AtSize:
    """Run an action once, as soon as more than a number of bytes have been written."""

    def set_up(size: int, act: Callable[[], object]) -> None:
        actions, written = [act], [0]

        def write_and_act(descriptor: int, data: bytes) -> None:
            write_all(descriptor, data)
            written[0] += len(data)
            if actions and written[0] > size:
                actions.pop()()

        monkeypatch.setattr(execute, "write_all", write_and_act)

    return set_up


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_merge_reports_a_source_truncated_meanwhile(small: Path, out: Path, at_size: AtSize) -> None:
    at_size(120_000, lambda: os.truncate(small, 100_000))
    with pytest.raises(ModelFileError, match="the file was truncated while being read"):
        write_merge(WHOLE, {"a": [small]}, out)


@pytest.mark.parametrize("error", [ZeroDivisionError, MergeError, OSError])
def test_merge_raises_an_error_of_its_writing_thread(
    small: Path, out: Path, at_size: AtSize, error: type[BaseException]
) -> None:
    raised = error(5, "Input/output error")

    def fail() -> None:
        raise raised

    at_size(120_000, fail)
    with pytest.raises(MergeError if error is OSError else error) as caught:
        write_merge(WHOLE, {"a": [small]}, out)
    assert raised in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_merge_reports_the_systems_file_size_limit(small: Path, out: Path, share: float) -> None:
    size = plan_merge(WHOLE, {"a": [small]}).size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), limits[1]))
    try:
        with pytest.raises(MergeError) as caught:
            write_merge(WHOLE, {"a": [small]}, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.message, caught.value.hint) == (
        f"{out}: File too large",
        "free some disk space, or write elsewhere",
    )


def test_merge_second_interrupt_does_not_stop_the_cleanup(
    small: Path, out: Path, at_size: AtSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, remaining = Path.unlink, [press_ctrl_c]
    names: set[str] = set()
    handled = threading.Event()

    def unlink_and_press(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if remaining:
            remaining.pop()()

    def handle(*received: Any) -> None:
        handled.set()
        handler(*received)

    def list_and_press() -> None:
        names.update(path.name for path in out.parent.iterdir())
        press_ctrl_c()
        handled.wait()  # by the main thread, while the rest of the file is not written yet

    monkeypatch.setattr(Path, "unlink", unlink_and_press)
    at_size(120_000, list_and_press)
    with pytest.raises(Interrupted) as caught, interruptible("nothing was written"):
        handler: Any = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, handle)
        write_merge(WHOLE, {"a": [small]}, out)
    assert (caught.value.exit_code, caught.value.hint) == (130, "nothing was written")
    assert (remaining, len(names)) == ([], 2)


def test_merge_into_the_file_of_a_running_merge_is_complete(small: Path, tmp_path: Path, at_size: AtSize) -> None:
    out = tmp_path / "out.gguf"
    at_size(120_000, lambda: write_merge(stack(("a", 0, 1)), {"a": [small]}, out))
    write_merge(WHOLE, {"a": [small]}, out)
    assert (read_tensors([out]), list(tmp_path.iterdir())) == (read_tensors([small]), [out])


# A signal while the main thread has just acquired one of Python's own locks: the exception raised there must not leave
# the lock acquired, which would block other threads forever. If the main thread acquires none, the signal comes later.
INTERRUPT_IN_LOCK = """
import os, signal, sys, threading
from cerebrum_cli.__main__ import main
from cerebrum_cli.weights import execute

enter, write, armed, sent = threading.Condition.__enter__, execute.write_all, [], []

def press():
    sent.append(True)
    os.kill(os.getpid(), signal.SIGINT)

def enter_and_press(self):
    result = enter(self)
    if armed and not sent and threading.current_thread() is threading.main_thread():
        press()
    return result

def write_and_press(descriptor, data):
    write(descriptor, data)
    size = os.fstat(descriptor).st_size
    armed[:] = [True] * (size > 5_000_000)
    if size > 10_000_000 and not sent:
        press()

threading.Condition.__enter__, execute.write_all = enter_and_press, write_and_press
main()
"""


class MergeProcess:
    """A merge in its own process; it takes seconds because each layer is written in another type."""

    def __init__(self, home: Path, source: Path) -> None:
        self.home = home
        self.command = CommandLine(home)
        self.out = home / "out.gguf"
        self.recipe = home / "recipe.yaml"
        self.recipe.write_text(stack(*[(str(source), 0, 32)] * REPEATS))
        self.arguments = ["merge", "recipe.yaml", "-o", "out.gguf", "-y", "--type", "Q3_K_S"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.processes.append(self.command.start(*self.arguments, *arguments))
        return self.processes[-1]

    def wait_until_writing(self) -> None:
        wait_until(lambda: any(part.stat().st_size > 1_000_000 for part in self.home.glob(".out.gguf.*.part")))

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("*out.*"))

    def wait(self, process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert out == b""
        code = process.returncode
        return 128 - code if code < 0 else code, err.decode().splitlines()


@pytest.fixture
def job(tmp_path: Path, seven: Path) -> Iterator[MergeProcess]:
    job = MergeProcess(tmp_path, seven)
    yield job
    for process in job.processes:
        process.kill()
        process.communicate()


def test_merge_command_signal_leaves_no_files(job: MergeProcess) -> None:
    job.out.write_bytes(EXISTING)
    process = job.start()
    job.wait_until_writing()
    process.send_signal(signal.SIGTERM)
    ended, lines = job.wait(process)
    assert (ended, lines[-2:]) == (143, INTERRUPTED)
    assert all(line.startswith("merge: ") for line in lines[:-2])
    assert (job.files, job.out.read_bytes()) == (["out.gguf"], EXISTING)
    assert job.command.run("list", "--json").object == []


def test_merge_command_interrupt_inside_a_lock_does_not_hang(job: MergeProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPT_IN_LOCK, *job.arguments, "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=job.command.environment(),
        cwd=job.home,
    )
    job.processes.append(process)
    assert (job.wait(process), job.files) == ((130, INTERRUPTED), [])


def test_merge_command_removes_the_partial_file_of_a_killed_one(job: MergeProcess, seven: Path) -> None:
    process = job.start()
    job.wait_until_writing()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    [part] = job.files
    assert part.startswith(".out.gguf.")
    assert job.command.run("list", "--json").object == []
    job.recipe.write_text(stack((str(seven), 0, 2)))
    done = job.command.run(*job.arguments)
    assert (done.code, job.files) == (0, ["out.gguf"]), done.err
    [row] = job.command.run("list", "--json").object
    assert (row["name"], row["path"], row["error"]) == ("out", str(job.out), None)


def test_merge_terminal_ctrl_c_stops_the_progress_bar(job: MergeProcess) -> None:
    environment = job.command.environment({"TERM": "xterm-256color"})
    person = Person([COMMAND, *job.arguments], environment, job.home)
    try:
        person.wait_for("merge ")
        job.wait_until_writing()
        person.type("\x03")
        assert person.end() == 130
    finally:
        person.close()
    assert person.screen.lines[-2:] == INTERRUPTED
    assert not person.screen.cursor_hidden
    assert "Traceback" not in person.output
    assert job.files == []


def test_merge_cancelled_before_it_starts_opens_no_file(small: Path, out: Path) -> None:
    writer = MergeWriter(plan_merge(WHOLE, {"a": [small]}), out, 2, is_cancelled=True)
    writer.run()
    assert isinstance(writer.result, Cancelled)
    assert writer.done == 0
