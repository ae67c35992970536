"""Child processes end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import wait_for_end, wait_until

from cerebrum_cli.core.child_process import ChildProcess

# The child writes its number and that of a process it has started.
CHILD = 'sleep 60 & echo "$$ $!" > "$0"; wait'
PARENT = """
import sys, time
from cerebrum_cli.core.child_process import ChildProcess
child = ChildProcess(["sh", "-c", sys.argv[1], sys.argv[2]])
print("guarded", flush=True)
time.sleep(60)
"""
INTERRUPTED = """
import os, subprocess, sys, time
from cerebrum_cli.core.child_process import ChildProcess
start = subprocess.Popen
def interrupted(*arguments, **options):
    while not os.path.exists(sys.argv[2]) or not open(sys.argv[2]).read().endswith("\\n"):
        time.sleep(0.01)
    os.kill(os.getpid(), int(sys.argv[3]))
    return start(*arguments, **options)
subprocess.Popen = interrupted  # of the guard
child = ChildProcess(["sh", "-c", sys.argv[1], sys.argv[2]])
"""


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    return tmp_path / "numbers"


def started(path: Path) -> list[int]:
    """Numbers of the child and of what it has started, once they run."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return [int(number) for number in path.read_text().split()]


def assert_ended(path: Path) -> None:
    begin = time.monotonic()
    wait_for_end(started(path))
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_child_ends_with_its_parent(ending: signal.Signals, numbers: Path) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, str(numbers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout and parent.stdout.readline() == b"guarded\n"
        started(numbers)
        os.kill(parent.pid, ending)
    assert_ended(numbers)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_child_ends_if_its_parent_does_before_there_is_a_guard(ending: signal.Signals, numbers: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, CHILD, str(numbers), str(int(ending))]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -ending
    assert_ended(numbers)


def test_closed_child_ends_with_all_that_it_started_and_keeps_its_exit_code(numbers: Path) -> None:
    with ChildProcess(["sh", "-c", CHILD, str(numbers)]) as child:
        assert started(numbers)[0] == child.pid
    assert_ended(numbers)
    with ChildProcess(["sh", "-c", "exit 3"]) as ended:
        assert ended.wait() == 3
    assert ended.returncode == 3


@pytest.mark.parametrize(
    ("place", "error"),  # the guard cannot start, or Ctrl-C comes as it does, or within the start of the child
    [("subprocess.Popen", OSError), ("subprocess.Popen", KeyboardInterrupt), ("os.read", KeyboardInterrupt)],
)
def test_child_does_not_stay_if_its_start_fails(
    place: str, error: type[BaseException], numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        started(numbers)
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(error):
        ChildProcess(["sh", "-c", CHILD, str(numbers)])
    monkeypatch.undo()
    assert_ended(numbers)
