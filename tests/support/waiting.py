"""Wait for other threads and processes, with a limit."""

import threading
import time
from collections.abc import Callable, Sequence

import psutil

TIMEOUT_S = 30
NewChildren = Callable[[], list[psutil.Process]]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


def wait_for_end(processes: Sequence[psutil.Process | int]) -> None:
    """Wait until processes, or those of numbers, are gone; a zombie that nobody waits for is."""
    wait_until(lambda: not any(map(is_alive, processes)))


def is_alive(process: psutil.Process | int) -> bool:
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def user_seconds(process: psutil.Process) -> float:
    """User time of a process; 0 if it has ended meanwhile."""
    try:
        return float(process.cpu_times().user)
    except psutil.NoSuchProcess:
        return 0.0


def assert_returns(call: Callable[[], object]) -> None:
    """Make a call on another thread; fail if it does not return in time."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "it hangs"
