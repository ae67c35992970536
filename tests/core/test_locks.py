"""Locks, which end with their process, unfinished files, and the errors of files."""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import start_python

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.files import (
    atomic_write,
    lock_file,
    remove_abandoned,
    translate_os_errors,
    unfinished_file,
    work_directory,
)

BUSY = CerebrumError("another process is writing it", "wait for it")

HOLD = """
import sys
from pathlib import Path
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.files import lock_file
held = lock_file(Path(sys.argv[1]), CerebrumError("busy"))
print("held", flush=True)
sys.stdin.read()
"""
WRITE = """
import sys
from pathlib import Path
from cerebrum_cli.core.files import atomic_write
print(flush=True)
while True:
    for byte in (b"a", b"b"):
        atomic_write(Path(sys.argv[1]), byte * 100_000)
"""


def act_before_lock(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, between the opening of a file and its lock."""

    def act_and_lock(descriptor: int, operation: int) -> None:
        patch.undo()
        act()
        fcntl.flock(descriptor, operation)

    patch.setattr(fcntl, "flock", act_and_lock)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_lock_is_refused_until_its_holder_closes_it(tmp_path: Path) -> None:
    first = lock_file(tmp_path / "file", BUSY)
    with pytest.raises(CerebrumError, match="another process is writing it"):
        lock_file(tmp_path / "file", BUSY)
    lock_file(tmp_path / "other", BUSY).close()
    first.close()
    lock_file(tmp_path / "file", BUSY).close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_ends_with_its_process(tmp_path: Path, number: signal.Signals) -> None:
    with start_python(HOLD, tmp_path / "file") as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(CerebrumError):
            lock_file(tmp_path / "file", BUSY)
        process.send_signal(number)
        process.wait()
        lock_file(tmp_path / "file", BUSY).close()


def test_lock_waits_and_reports_that_it_does(tmp_path: Path) -> None:
    first, waits = lock_file(tmp_path / "file", BUSY), []

    def on_wait() -> None:
        waits.append(1)
        if len(waits) == 3:
            first.close()

    lock_file(tmp_path / "file", on_wait, interval_s=0).close()
    assert len(waits) == 3


@pytest.mark.parametrize("is_renamed", [True, False])
def test_lock_of_a_file_that_was_removed_meanwhile_is_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"of the last holder")
    act_before_lock(monkeypatch, lambda: path.rename(tmp_path / "complete") if is_renamed else path.unlink())
    with lock_file(path, BUSY) as file:
        file.write(b"mine")
        assert path.read_bytes() == b"mine"
    assert names(tmp_path) == (["complete", "file"] if is_renamed else ["file"])


def test_lock_that_another_process_takes_first_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, others = tmp_path / "file", contextlib.ExitStack()

    def replace() -> None:
        path.unlink()
        others.enter_context(lock_file(path, BUSY))

    act_before_lock(monkeypatch, replace)
    with others, pytest.raises(CerebrumError, match="another process"):
        lock_file(path, BUSY)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left"), "file: No space left", "free some disk space"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), "a: File exists", "move what has this name elsewhere"),
        (OSError(errno.EBADF, "Bad descriptor"), "file: Bad descriptor", "check the path and its permissions"),
    ],
)
def test_error_of_a_file_has_the_hint_of_its_number(error: OSError, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught, translate_os_errors(UsageError, Path("file"), ", then try again"):
        raise error
    assert (caught.value.message, caught.value.hint) == (message, f"{hint}, then try again")


@pytest.mark.usefixtures("no_locks")
def test_missing_locks_are_one_line_with_another_place_as_hint(tmp_path: Path) -> None:
    for on_busy in (BUSY, lambda: None):
        with pytest.raises(UsageError) as caught, translate_os_errors(UsageError, tmp_path):
            lock_file(tmp_path / "file", on_busy)
        assert caught.value.message == f"{tmp_path / 'file'}: this file system has no file locks"
        assert caught.value.hint == "use a directory on another disk"


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    with start_python("") as ended:
        ended.wait()
    killed, mine = f".file.0.{ended.pid}.part", f".file.1.{os.getpid()}.part"
    for name in (killed, mine, f".other.0.{ended.pid}.part", "file.part"):
        (tmp_path / name).write_bytes(b"half")
    atomic_write(tmp_path / "file", b"new")
    assert names(tmp_path) == [mine, f".other.0.{ended.pid}.part", "file", "file.part"]
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [mine, "file", "file.part"]


def test_unfinished_files_and_work_directories_do_not_stay(tmp_path: Path) -> None:
    with work_directory(tmp_path / "new", "work") as directory:
        (directory / "file").write_bytes(b"1")
        assert directory.parent == tmp_path / "new"
    assert names(tmp_path / "new") == []
    with pytest.raises(ZeroDivisionError), unfinished_file(tmp_path / "file") as part:
        part.file.write(b"half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["new"]
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(tmp_path / "no" / "file", b"new")
    assert caught.value.filename == str(tmp_path / "no" / "file")


@pytest.mark.slow
def test_atomic_write_killed_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100_000)
    for _ in range(5):
        with start_python(WRITE, path) as process:
            assert process.stdout and process.stdout.readline()
            process.kill()
        assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    atomic_write(path, b"c")
    assert names(tmp_path) == ["file"]
