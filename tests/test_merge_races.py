"""What comes in between: other merges, full disks, errors in the thread that writes, and signals at any moment."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from test_merge_files import SMALL, prepared, quietly, stack, stored
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import fsync_directory, try_lock
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.merge import output_files as writing
from cerebrum_cli.merge.execute import Cancelled, Job, OutputFile, execute
from cerebrum_cli.merge.output_files import HashedFile, OutputFiles

WHOLE = stack(("a", 0, 6))
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of six layers, most of whose tensors are of a few kilobytes."""
    return write_quantized(tmp_path_factory.mktemp("races") / "small.gguf", shape=SMALL, encoding="F16")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return where a merge goes, alone in its folder."""
    return tmp_path / "out.gguf"


def written(out: Path) -> list[str]:
    """Return the names of all that lies where a merge goes."""
    return sorted(path.name for path in out.parent.iterdir())


def execution(small: Path, out: Path, limit: int | None = None) -> tuple[OutputFile, ...]:
    return prepared(WHOLE, {"a": [small]}, out, limit)


Meanwhile = Callable[[Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Return what has something done once, between the opening of a file on its way and its locking."""

    def set_up(act: Callable[[], object]) -> None:
        def act_and_lock(descriptor: int) -> bool:
            monkeypatch.setattr(writing, "try_lock", try_lock)
            act()
            return try_lock(descriptor)

        monkeypatch.setattr(writing, "try_lock", act_and_lock)

    return set_up


@pytest.mark.parametrize("completes", [True, False])
def test_a_merge_that_ends_just_then_is_not_written_over(out: Path, meanwhile: Meanwhile, completes: bool) -> None:
    with OutputFiles() as first:
        with first.file(out) as file:
            file.write(b"the first one")

        def end() -> None:
            if completes:
                first.commit()
            first.__exit__()

        meanwhile(end)
        with OutputFiles() as second:
            with second.file(out) as file:
                assert not completes or out.read_bytes() == b"the first one"
                file.write(b"the second one")
            second.commit()
    assert (out.read_bytes(), written(out)) == (b"the second one", ["out.gguf"])


def test_a_merge_whose_place_a_third_one_takes_just_then_says_so(out: Path, meanwhile: Meanwhile) -> None:
    first, third = OutputFiles(), OutputFiles()
    with third, first:
        with first.file(out) as file:
            file.write(b"the first one")

        def end_and_begin() -> None:
            first.commit()
            first.__exit__()
            with third.file(out) as file:
                file.write(b"the third one")

        meanwhile(end_and_begin)
        told = pytest.raises(MergeError, match="another cerebrum merge is writing")
        with OutputFiles() as second, told, second.file(out):
            raise AssertionError("two merges write one file")
        assert written(out) == ["out.gguf", "out.gguf.part"]
        third.commit()
    assert (out.read_bytes(), written(out)) == (b"the third one", ["out.gguf"])


def test_where_files_vanish_again_and_again_a_merge_gives_up(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_and_lock(descriptor: int) -> bool:
        out.with_name("out.gguf.part").unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(writing, "try_lock", remove_and_lock)
    with OutputFiles() as delivery, pytest.raises(MergeError, match="another cerebrum merge"), delivery.file(out):
        raise AssertionError("nobody has a file that is gone")
    assert written(out) == []


def fill_up() -> None:
    """Let every further byte of a merge go to a disk that is full."""
    with FULL.open("wb") as full:
        for number in os.listdir("/proc/self/fd"):
            link = f"/proc/self/fd/{number}"
            if os.path.exists(link) and os.readlink(link).endswith(".gguf.part"):
                os.dup2(full.fileno(), int(number))


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("limit", [None, 150_000])
@pytest.mark.parametrize("at", [0, 100_000, 150_000, 200_000, 220_000])
def test_a_full_disk_is_told(
    small: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: int, limit: int | None
) -> None:
    write, sizes, acts = HashedFile.write, [0], [fill_up]

    def write_and_fill(self: HashedFile, data: bytes) -> None:
        write(self, data)
        sizes[0] += len(data)
        if acts and sizes[0] > at:
            acts.pop()()

    monkeypatch.setattr(HashedFile, "write", write_and_fill)
    with pytest.raises(MergeError) as caught:
        execute(execution(small, out, limit), LlamaCodec, 2, quietly)
    assert caught.value.message.endswith(": No space left on device")
    assert (caught.value.hint, written(out)) == ("free some space, or write elsewhere", [])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.77, 0.999])
def test_where_no_file_may_be_that_large_the_system_is_quoted(small: Path, out: Path, share: float) -> None:
    made = execution(small, out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(made[0].size * share), limits[1]))
    try:
        with pytest.raises(MergeError) as caught:
            execute(made, LlamaCodec, 2, quietly)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.message, written(out)) == (f"{out}: File too large", [])


class Slowly:
    """Somebody who is told how far a merge is, while which it goes on step by step, and who leaves at a moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, leaves_at: float) -> None:
        self.leaves_at, self.told = leaves_at, 0
        self._step = threading.Semaphore(0)
        write = HashedFile.write

        def write_when_told(hashed: HashedFile, data: bytes) -> None:
            self._step.acquire(timeout=0.005)
            write(hashed, data)

        monkeypatch.setattr(HashedFile, "write", write_when_told)
        monkeypatch.setattr("cerebrum_cli.merge.execute.PROGRESS_INTERVAL_S", 0.001)

    def __call__(self, done: int, total: int) -> None:
        self.told += 1
        self._step.release()
        if done >= total * self.leaves_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("limit", [None, 150_000])
@pytest.mark.parametrize("leaves_at", [0.0, 0.5, 1.0])
def test_whoever_leaves_leaves_nothing_or_all(
    small: Path, out: Path, monkeypatch: pytest.MonkeyPatch, leaves_at: float, limit: int | None
) -> None:
    made = execution(small, out, limit)
    told = Slowly(monkeypatch, leaves_at)
    try:
        paths = [each.path for each in execute(made, LlamaCodec, 2, told)]
    except KeyboardInterrupt:
        assert written(out) == []
    else:
        assert leaves_at == 1.0
        assert [path.name for path in paths] == written(out) == [file.path.name for file in made]
        assert stored(paths) == stored([small])
    assert (told.told == 1) == (leaves_at == 0)


def test_whoever_leaves_when_all_have_their_names_gets_them(
    small: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, left = threading.Event(), threading.Event()

    def sync_and_wait(folder: Path) -> None:
        named.set()
        left.wait(5)
        fsync_directory(folder)

    def leave(done: int, total: int) -> None:
        if named.is_set():
            left.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "fsync_directory", sync_and_wait)
    try:
        [file] = execute(execution(small, out), LlamaCodec, 2, leave)
    except KeyboardInterrupt:
        raise AssertionError("it is denied though it is there") from None
    assert (stored([file.path]), written(out)) == (stored([small]), ["out.gguf"])


def test_a_merge_that_nobody_wants_before_it_begins_opens_no_file(small: Path, out: Path) -> None:
    out.with_name("out.gguf.part").write_bytes(b"of another one")
    job = Job(execution(small, out), LlamaCodec, 2, is_cancelled=True)
    job.run()
    assert (job.is_finished, job.is_complete, job.done) == (True, False, 0)
    with pytest.raises(Cancelled):
        job.result()
    assert out.with_name("out.gguf.part").read_bytes() == b"of another one"


@pytest.mark.parametrize("error", [ZeroDivisionError, MergeError, KeyError, MemoryError, SystemExit])
def test_an_error_of_the_thread_that_writes_is_raised_where_it_is_waited_for(
    small: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    given: tuple[Any, ...] = ("what", "do") if error is MergeError else ("what",)
    raised = error(*given)

    def fail(self: HashedFile, data: bytes) -> None:
        raise raised

    monkeypatch.setattr(HashedFile, "write", fail)
    with pytest.raises(error) as caught:
        execute(execution(small, out), LlamaCodec, 2, quietly)
    assert caught.value is raised
    assert written(out) == []


def test_no_thread_is_left_of_a_merge_however_it_ends(small: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    for leaves_at in (0.0, 0.5, 2.0):
        with contextlib.suppress(KeyboardInterrupt):
            execute(execution(small, out), LlamaCodec, 2, Slowly(monkeypatch, leaves_at))
    for each in threading.enumerate():
        if each.name == "merge":
            each.join(5)
    assert threading.active_count() == before


# Merges in processes of their own, all of one that has everything imported, each sent two signals at some moment after
# it has begun to write: RUNS, and what a merge takes if nobody interrupts it, in seconds.
INTERRUPTED = """
import os, random, signal, sys, time
from cerebrum_cli.main import main
import cerebrum_cli.application.merging.merge, cerebrum_cli.runtime.merge, cerebrum_cli.engine.llama.codec

def begin(number):
    pid = os.fork()
    if pid:
        return pid
    for descriptor, name in ((1, "said"), (2, "err")):
        os.dup2(os.open(f"{name}.{number:03}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["cerebrum", *sys.argv[2:], "-o", f"out{number:03}.gguf"]
    main()
    os._exit(99)

def ended(pid, patience):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def until_it_writes(number):
    deadline = time.monotonic() + 20
    while not any(os.path.exists(f"out{number:03}.gguf{end}") for end in (".part", "")) and time.monotonic() < deadline:
        time.sleep(0.0005)

random.seed(7)
pid = begin(0)
until_it_writes(0)
begun = time.monotonic()
print("000", ended(pid, 20), flush=True)
takes = time.monotonic() - begun
for number in range(1, int(sys.argv[1]) + 1):
    pid = begin(number)
    until_it_writes(number)
    time.sleep(random.uniform(0, takes))
    os.kill(pid, signal.SIGINT)
    time.sleep(random.uniform(0, 0.003))
    os.kill(pid, signal.SIGINT)  # it is not waited for yet, so nobody else has its number
    print(f"{number:03}", ended(pid, 20), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CommandLine]:
    """Return a user who has a recipe for a model that takes a while to be merged."""
    shape = Shape(layers=4, width=256, heads=8, kv_heads=2, ffn=512)
    write_quantized(tmp_path / "source.gguf", shape=shape)
    (tmp_path / "recipe.yaml").write_text(stack(*[("source.gguf", 0, 4)] * 2))
    yield CommandLine(tmp_path)


RUNS = 10


def test_two_interrupts_at_any_moment_end_a_merge_in_good_order(home: CommandLine) -> None:
    arguments = [str(RUNS), "merge", "recipe.yaml", "-q", "-y", "--type", "Q3_K"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED, *arguments],
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
        assert err in ("", "error: interrupted\n  try: nothing was written\n")
        files = {path.name: path for path in home.home.glob(f"out{number}.gguf*")}
        assert files.keys() <= {f"out{number}.gguf"}
        assert code == "130" or files
        for path in files.values():
            assert path.read_bytes() == whole.replace(b"out000", path.stem.encode())  # what it says it is called
        assert not (files and err)
    assert "130" in codes.values()
