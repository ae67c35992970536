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


def wait_for_end(processes: Sequence[psutil.Process]) -> None:
    """Wait until processes are gone; a zombie that nobody waits for is."""
    wait_until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes))


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
