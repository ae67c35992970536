"""A merge may end at any moment and in any way: nothing is left of it, and what was there before stays."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine
from person import Person
from test_merge_files import SMALL, TWELVE_B, merged, stack, stored
from tiny_models import write_quantized

from cerebrum_cli.core.errors import Interrupted, MergeError, ModelFileError
from cerebrum_cli.core.files import try_lock
from cerebrum_cli.gguf.adapter import read_table
from cerebrum_cli.merge.output_files import HashedFile, OutputFiles
from cerebrum_cli.terminal.interrupts import interruptible

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PATIENCE_S = 30
BEFORE = b"what was there before"
LEFT = ["error: interrupted", "  try: nothing was written"]
TOWERS = 12  # of all layers, one on the other: a file that takes a while to be written
WHOLE = stack(("a", 0, 6))


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of Mistral-7B's layers and types."""
    return write_quantized(tmp_path_factory.mktemp("ends") / "seven.gguf")


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of six layers in half precision, which the test may spoil."""
    return write_quantized(tmp_path_factory.mktemp("source") / "small.gguf", shape=SMALL, encoding="F16")


@pytest.fixture(params=[False, True], ids=["nothing was there", "another was there"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return where a merge would go, and see that afterwards there is what there was before."""
    path = tmp_path / "out.gguf"
    if request.param:
        path.write_bytes(BEFORE)
    yield path
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == (
        {path.name: BEFORE} if request.param else {}
    )


When = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def when(monkeypatch: pytest.MonkeyPatch) -> When:
    """Return what does something, once, as soon as so many bytes of a file have been written."""

    def set_up(size: int, act: Callable[[], object]) -> None:
        write, acts = HashedFile.write, [act]

        def write_and_act(self: HashedFile, data: bytes) -> None:
            write(self, data)
            if acts and self.size > size:
                acts.pop()()

        monkeypatch.setattr(HashedFile, "write", write_and_act)

    return set_up


def press_ctrl_c() -> None:
    """Send this process what a terminal sends."""
    os.kill(os.getpid(), signal.SIGINT)


def test_a_source_that_shrinks_meanwhile_is_told(small: Path, out: Path, when: When) -> None:
    when(120_000, lambda: os.truncate(small, 100_000))
    with pytest.raises(ModelFileError, match="the file was truncated during the merge"):
        merged(WHOLE, {"a": [small]}, out)


def test_an_interrupt_leaves_nothing(seven: Path, out: Path, when: When) -> None:
    when(9_000_000, press_ctrl_c)
    with pytest.raises(Interrupted) as caught, interruptible("nothing is left"):
        merged(TWELVE_B, {"cerebrum-7b": [seven]}, out)
    assert (caught.value.exit_code, caught.value.hint) == (130, "nothing is left")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(5, "Input/output error")])
def test_whatever_goes_wrong_nothing_is_left(error: Exception, small: Path, out: Path, when: When) -> None:
    def fail() -> None:
        raise error

    when(120_000, fail)
    with pytest.raises(MergeError if isinstance(error, OSError) else type(error)):
        merged(WHOLE, {"a": [small]}, out)


def test_weights_that_are_no_numbers_are_told_with_their_tensor(small: Path, out: Path) -> None:
    place = read_table("a", [small]).tensors["blk.5.ffn_down.weight"].offset
    with small.open("r+b") as file:
        file.seek(place)
        file.write(b"\x00\x7c")  # infinity
    with pytest.raises(MergeError, match=r"blk\.5\.ffn_down\.weight would have infinite or NaN weights"):
        merged(WHOLE, {"a": [small]}, out, type="Q8_0")


@pytest.mark.parametrize("limit", [1_000_000, 5_120_000, 9_000_000])
def test_where_no_file_may_be_that_large_the_system_is_quoted(seven: Path, out: Path, limit: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(MergeError) as caught:
            merged(TWELVE_B, {"cerebrum-7b": [seven]}, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.message, "write elsewhere" in caught.value.hint) == (f"{out}: File too large", True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("size", [0, 100_000, 200_000, 220_000])
def test_a_full_disk_is_told(small: Path, out: Path, when: When, size: int) -> None:
    def fill_up() -> None:
        with open("/dev/full", "wb") as full:
            for link in Path("/proc/self/fd").iterdir():
                if os.path.lexists(link) and os.readlink(link).endswith(".gguf.part"):
                    os.dup2(full.fileno(), int(link.name))

    when(size, fill_up)
    with pytest.raises(MergeError) as caught:
        merged(WHOLE, {"a": [small]}, out)
    said = (f"{out}: No space left on device", "free some space, or write elsewhere")
    assert (caught.value.message, caught.value.hint) == said


def test_of_several_files_none_is_left(seven: Path, out: Path, when: When) -> None:
    names: set[str] = set()

    def look_and_press() -> None:
        names.update(path.name for path in out.parent.iterdir())
        press_ctrl_c()

    when(4_000_000, look_and_press)
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        merged(TWELVE_B, {"cerebrum-7b": [seven]}, out, limit=5_000_000)
    assert "out-00001-of-00004.gguf.part" in names


def test_a_second_interrupt_does_not_keep_the_first_from_tidying_up(
    seven: Path, out: Path, when: When, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, presses = Path.unlink, [press_ctrl_c]

    def unlink_and_press(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if presses:
            presses.pop()()

    monkeypatch.setattr(Path, "unlink", unlink_and_press)
    when(4_000_000, press_ctrl_c)
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        merged(TWELVE_B, {"cerebrum-7b": [seven]}, out, limit=5_000_000)
    assert presses == []


def test_where_one_of_several_files_cannot_get_its_name_none_is_left(seven: Path, tmp_path: Path) -> None:
    (tmp_path / "out-00001-of-00005.gguf").mkdir()
    with pytest.raises(MergeError, match="Is a directory"):
        merged(TWELVE_B, {"cerebrum-7b": [seven]}, tmp_path / "out.gguf", limit=4_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["out-00001-of-00005.gguf"]


def test_what_was_not_said_to_be_whole_is_gone(out: Path) -> None:
    with OutputFiles() as delivery, delivery.file(out) as file:
        file.write(b"GGUF")
    nowhere = out.parent / "no" / "folder.gguf"
    with OutputFiles() as delivery, pytest.raises(MergeError) as caught, delivery.file(nowhere) as file:
        pass
    assert caught.value.message == f"{nowhere}: No such file or directory"


def test_what_a_killed_merge_left_is_written_over(small: Path, tmp_path: Path) -> None:
    out, part = tmp_path / "out.gguf", tmp_path / "out.gguf.part"
    part.write_bytes(bytes(2 * small.stat().st_size))
    merged(WHOLE, {"a": [small]}, out)
    assert (stored([out]), list(tmp_path.iterdir())) == (stored([small]), [out])


def test_of_two_merges_into_one_file_the_second_says_so(small: Path, tmp_path: Path, when: When) -> None:
    out = tmp_path / "out.gguf"

    def other() -> None:
        with pytest.raises(MergeError) as caught:
            merged(stack(("a", 0, 1)), {"a": [small]}, out)
        assert caught.value.message == f"another cerebrum merge is writing {out}"

    when(120_000, other)
    merged(WHOLE, {"a": [small]}, out)
    assert (stored([out]), list(tmp_path.iterdir())) == (stored([small]), [out])
    merged(stack(("a", 0, 1)), {"a": [small]}, out)
    assert len(stored([out])) == 12


@pytest.mark.parametrize("completes", [True, False])
def test_a_merge_that_ends_while_another_begins_is_not_written_over(
    completes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    with OutputFiles() as first:
        with first.file(out) as file:
            file.write(b"the first one")

        def end_and_lock(descriptor: int) -> bool:  # what was opened as a part has a name by now, or none
            monkeypatch.undo()
            if completes:
                first.commit()
            first.__exit__()
            return try_lock(descriptor)

        monkeypatch.setattr("cerebrum_cli.merge.output_files.try_lock", end_and_lock)
        with OutputFiles() as second:
            with second.file(out) as file:
                assert not completes or out.read_bytes() == b"the first one"
                file.write(b"the second one")
            second.commit()
    assert (out.read_bytes(), list(tmp_path.iterdir())) == (b"the second one", [out])


# A signal that comes while the main thread has just taken a lock of Python's own: what it raises there must not leave
# that lock taken, for which others would then wait for ever. Where the main thread takes none, it comes a bit later.
IN_A_LOCK = """
import os, signal, sys, threading
from cerebrum_cli.main import main
from cerebrum_cli.merge.output_files import HashedFile

enter, write, armed, sent = threading.Condition.__enter__, HashedFile.write, [], []

def press():
    sent.append(True)
    os.kill(os.getpid(), signal.SIGINT)

def enter_and_press(self):
    result = enter(self)
    if armed and not sent and threading.current_thread() is threading.main_thread():
        press()
    return result

def write_and_press(self, data):
    write(self, data)
    armed[:] = [True] * (self.size > 5_000_000)
    if self.size > 10_000_000 and not sent:
        press()

threading.Condition.__enter__, HashedFile.write = enter_and_press, write_and_press
main()
"""


class Job:
    """A merge in a process of its own, which takes seconds: each layer is written in another type."""

    def __init__(self, home: Path, source: Path) -> None:
        self.home = home
        self.command = CommandLine(home)
        self.out, self.part = home / "out.gguf", home / "out.gguf.part"
        self.recipe = home / "recipe.yaml"
        self.recipe.write_text(stack(*[(str(source), 0, 32)] * TOWERS))
        self.arguments = ["merge", "recipe.yaml", "-o", "out.gguf", "-y", "--type", "Q3_K"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process."""
        self.processes.append(self.command.start(*self.arguments, *arguments))
        return self.processes[-1]

    def until(self, came: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + PATIENCE_S
        while not came():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def until_it_writes(self) -> None:
        """Wait until there is something to be left behind."""
        self.until(lambda: self.part.exists() and self.part.stat().st_size > 1_000_000)

    @property
    def files(self) -> list[str]:
        """The names of all that might be a merge or a part of one."""
        return sorted(path.name for path in self.home.glob("out*"))

    def ended(self, process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
        """Return the exit code, as a shell tells it, and the lines on standard error."""
        out, err = process.communicate(timeout=PATIENCE_S)
        assert out == b""
        code = process.returncode
        return 128 - code if code < 0 else code, err.decode().splitlines()


@pytest.fixture
def job(tmp_path: Path, seven: Path) -> Iterator[Job]:
    """Return a merge that takes seconds."""
    job = Job(tmp_path, seven)
    yield job
    for process in job.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "was_there"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True), (signal.SIGHUP, 129, False)],
)
def test_a_merge_that_is_interrupted_says_that_nothing_is_left(
    job: Job, number: signal.Signals, code: int, was_there: bool
) -> None:
    if was_there:
        job.out.write_bytes(BEFORE)
    process = job.start()
    job.until_it_writes()
    process.send_signal(number)
    ended, lines = job.ended(process)
    assert (ended, lines[-2:]) == (code, LEFT)
    assert all(line.startswith("merge: ") for line in lines[:-2])
    assert job.files == ["out.gguf"] * was_there
    assert not was_there or job.out.read_bytes() == BEFORE
    assert job.command.run("list", "--json").object == []


@pytest.mark.parametrize("apart_s", [0.0, 0.003, 0.02, 0.04, 0.06])
def test_whoever_interrupts_twice_leaves_nothing_either(job: Job, apart_s: float) -> None:
    process = job.start("-q")
    job.until_it_writes()
    process.send_signal(signal.SIGINT)
    time.sleep(apart_s)
    process.send_signal(signal.SIGINT)
    assert (job.ended(process), job.files) == ((130, LEFT), [])


def test_an_interrupt_ends_a_merge_wherever_it_comes(job: Job) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_LOCK, *job.arguments, "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=job.command.environment(),
        cwd=job.home,
    )
    job.processes.append(process)
    assert (job.ended(process), job.files) == ((130, LEFT), [])


def test_after_a_merge_was_killed_the_next_one_removes_what_it_left(job: Job, seven: Path) -> None:
    process = job.start()
    job.until_it_writes()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert job.files == ["out.gguf.part"]
    assert job.command.run("list", "--json").object == []
    job.recipe.write_text(stack((str(seven), 0, 2)))
    done = job.command.run(*job.arguments)
    assert (done.code, job.files) == (0, ["out.gguf"]), done.err
    [row] = job.command.run("list", "--json").object
    assert (row["name"], row["path"], row["error"]) == ("out", str(job.out), None)


def test_while_one_process_writes_another_does_not(job: Job) -> None:
    process = job.start("-q")
    job.until_it_writes()
    process.send_signal(signal.SIGSTOP)  # however fast this machine is, the other one comes in the middle
    done = job.command.run(*job.arguments, "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: another cerebrum merge is writing out.gguf\n  try: wait until it has finished\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert (job.ended(process), job.files) == ((130, LEFT), [])


def test_ctrl_c_in_a_terminal_ends_the_bar_and_the_merge(job: Job) -> None:
    environment = job.command.environment({"TERM": "xterm-256color"})
    person = Person([COMMAND, *job.arguments], environment, job.home)
    try:
        person.wait_for("merge ")
        job.until_it_writes()
        person.type("\x03")
        assert person.end() == 130
    finally:
        person.close()
    assert person.screen.lines[-2:] == LEFT
    assert not person.screen.cursor_hidden
    assert "Traceback" not in person.output
    assert job.files == []


def test_a_merge_in_a_terminal_shows_how_far_it_is_and_prints_the_digest(job: Job, seven: Path) -> None:
    shutil.copy(seven, job.home / "seven.gguf")
    job.recipe.write_text(stack(("seven.gguf", 0, 32)))
    arguments = [COMMAND, "merge", "recipe.yaml", "-o", "out.gguf"]
    person = Person(arguments, job.command.environment({"TERM": "xterm-256color"}), job.home, columns=100)
    try:
        assert person.end() == 0
    finally:
        person.close()
    bar, digest, here = person.screen.lines
    assert bar.startswith("merge ")
    assert "10.8/10.8 MB" in bar
    assert (len(digest), digest[64:], here) == (64 + 10, "  out.gguf", "out is installed: cerebrum ask -m out")
