"""Functions of files run in a process of their own: whatever they do, the command has a result, and goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from waiting import NewChildren, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.programs.functions import tools_of

HEAD = """
from __future__ import annotations
import ctypes, itertools, os, signal, subprocess, sys, threading, time
from dataclasses import dataclass
from enum import Enum
from typing import Callable, Optional, TextIO, TypedDict

print("loading")
count = 0

class Own(BaseException): pass
class Silent(Exception):
    def __str__(self): raise SystemExit
    __repr__ = __str__

def counted() -> int:
    global count
    count += 1
    return count

"""

Tools = dict[str, Tool]
Open = Callable[[str], Tools]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Tools by name of a file with these functions."""

    def open_file(source: str) -> Tools:
        path = tmp_path / "mytools.py"
        path.write_text(HEAD + source)
        return {tool.spec.name: tool for tool in tools_of([str(path)])}

    return open_file


def run(tool: Tool, **arguments: object) -> str:
    return tool.run(arguments).result


# What functions do to themselves leaves their process as it was.

HARMLESS = {
    "raise SystemExit(3)": "SystemExit: 3",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise Own('x')": "Own: x",
    "raise Silent": "Silent: <exception str() failed>",
    "sys.exit('bye')": "SystemExit: bye",
    "sys.stdout = sys.stderr = sys.stdin = None; return 'a'": "a",
    "print('p'); sys.stdout.close(); sys.stdout.buffer.close(); return 'a'": "p\na",
    "sys.stdout.buffer.write(b'raw'); return ''": "raw",
    "sys.stdout.detach()": "OSError: this output cannot be detached",
    "sys.__stdout__.close(); os.close(1); return 'a'": "a",
    "print('hi'); os.fork(); return 'both'": "hi\nboth",
    "signal.signal(signal.SIGINT, lambda *_: None); return 'a'": "a",
    "os.chdir('/'); return os.getcwd()": "/",
    "return input('? ')": "? EOFError: EOF when reading a line",
    "return 'x' * 10_000_000": "x" * 10_000_000,
    "subprocess.run(['echo', 'noise']); os.write(1, b'noise'); return 'a'": "a",
}
DEADLY = {
    "os._exit(3)": "exit code 3",
    "os.closerange(0, 1000)": "it closed its connection",
    "os.closerange(0, 1000); time.sleep(60)": "it closed its connection",
    "os.kill(os.getpid(), signal.SIGKILL)": "SIGKILL",
    "os.killpg(0, signal.SIGTERM)": "SIGTERM",
    "signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(60)": "SIGALRM",
    "ctypes.string_at(0)": "SIGSEGV",
}


def numbered(bodies: dict[str, str]) -> str:
    return "".join(f"def f{number}():\n    {body}\n" for number, body in enumerate(bodies))


def test_functions_that_misuse_their_process_have_results(opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    tools = opened(numbered(HARMLESS))
    assert run(tools["counted"]) == "1"
    for number, (body, result) in enumerate(HARMLESS.items()):
        assert (body, run(tools[f"f{number}"])) == (body, result)
    assert run(tools["counted"]) == "2"  # in the same process
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("body", DEADLY)
def test_function_that_ends_its_process_has_a_result_and_the_next_call_another_process(opened: Open, body: str) -> None:
    tools = opened(numbered({body: ""}))
    assert run(tools["counted"]) == "1"
    assert run(tools["f0"]) == f"f0 ended its process ({DEADLY[body]}), which starts again for the next call"
    assert run(tools["counted"]) == "1"


def test_closed_descriptors_are_not_written_to(opened: Open, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    body = f"os.closerange(0, 1000); globals()['files'] = [open({str(victim)!r}, 'w') for _ in range(9)]"
    assert "ended its process" in run(opened(f"def f(): {body}\n")["f"])
    assert victim.read_bytes() == b""


def test_output_of_a_thread_after_the_return_is_in_no_result(opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    tools = opened("""
def begin():
    def late():
        time.sleep(0.1)
        print("late")
    threading.Thread(target=late).start()
    return "begun"
def other():
    time.sleep(0.3)
    print("mine")
""")
    assert (run(tools["begin"]), run(tools["other"])) == ("begun", "mine\n")
    assert capfd.readouterr() == ("", "loading\nlate\n")


def test_threads_may_call_functions_of_a_file(opened: Open) -> None:
    tool = opened("")["counted"]
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(run(tool))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["1", "2", "3", "4", "5"]


# Imports.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("os._exit(4)", "its process ended: exit code 4"),
    ],
)
def test_file_that_cannot_be_imported_is_an_error(opened: Open, source: str, problem: str) -> None:
    with pytest.raises(UsageError, match=rf"cannot import .*mytools.py: {problem}"):
        opened(source)


def test_thread_of_a_module_does_not_delay_the_end(new_children: NewChildren, opened: Open) -> None:
    tools = opened("threading.Thread(target=time.sleep, args=[60]).start()")
    assert run(tools["counted"]) == "1"
    [process] = workers(new_children())
    start = time.monotonic()
    del tools
    assert not process.is_running() and time.monotonic() - start < 5


def test_exit_handlers_of_a_file_run(opened: Open, tmp_path: Path) -> None:
    tools = opened(f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path / 'ended')!r}).touch)")
    del tools
    assert (tmp_path / "ended").exists()


def test_unusable_functions_of_a_file_are_reported_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mytools.py"
    path.write_text(HEAD + "def many(*names): ...\ndef opens() -> TextIO: ...\ndef calls(f: Callable[[], int]): ...\n")
    notices: list[NoticeEvent] = []
    tools = tools_of([str(path)], notices.append)
    assert [tool.spec.name for tool in tools] == ["counted"]
    assert [notice.message.partition(":")[0] for notice in notices] == [
        "many cannot be a tool",
        "opens cannot be a tool",
        "calls cannot be a tool",
    ]
    assert "it returns a TextIO, which JSON cannot represent" in notices[1].message
    path.write_text("def many(*names): ...\n")
    with pytest.raises(UsageError, match=r"many cannot be a tool: \*names has no name"):
        tools_of([str(path)])


def test_types_of_a_file_with_postponed_annotations_are_converted(opened: Open) -> None:
    tool = opened("""
class Unit(Enum):
    METRIC = "metric"
@dataclass
class Place:
    name: str
    height: int = 0
class Options(TypedDict, total=False):
    unit: Unit
async def forecast(place: Place, options: Options, limit: Optional[int]) -> Place:
    return Place(f"{place!r} {options['unit']!r} {limit}", 1)
""")["forecast"]
    called = tool.run({"place": {"name": "Oslo", "height": "7"}, "options": {"unit": "metric"}})
    assert called.arguments == {
        "place": {"name": "Oslo", "height": 7},
        "options": {"unit": "metric"},
        "limit": None,
    }
    assert called.result == ('{"name": "Place(name=\'Oslo\', height=7) <Unit.METRIC: \'metric\'> None", "height": 1}')


# The end.


def workers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "function_worker" in " ".join(process.cmdline())]


SWALLOWS = """
def wait():
    import pathlib
    pathlib.Path("started").touch()
    while True:
        try:
            time.sleep(60)
        except BaseException: pass
def compute():
    import pathlib
    subprocess.Popen(["sleep", "60"])
    pathlib.Path("started").touch()
    sum(range(10 ** 14))  # no other thread runs meanwhile, and no signal handler
def sleep():
    import pathlib
    pathlib.Path("started").touch()
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "survives"), [("sleep", True), ("wait", False), ("compute", False)])
def test_ctrl_c_ends_a_function_also_if_it_ignores_that(
    new_children: NewChildren, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, survives: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytools.py").write_text(HEAD + SWALLOWS)
    notices: list[NoticeEvent] = []
    tools = {tool.spec.name: tool for tool in tools_of(["mytools.py"], notices.append)}
    run(tools["counted"])

    def interrupt() -> None:
        wait_until((tmp_path / "started").exists)
        time.sleep(0.1)  # until the function waits, or computes
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            run(tools[name])
        finally:
            first = len(workers(new_children()))
    thread.join()
    assert (first == 1) is survives
    assert [notice.message for notice in notices] == (
        [] if survives else [f"{name} did not stop, so its process was ended"]
    )
    assert run(tools["counted"]) == ("2" if survives else "1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "wait", "compute"])
def test_process_of_functions_ends_with_a_command_that_is_killed(tmp_path: Path, name: str) -> None:
    (tmp_path / "mytools.py").write_text(HEAD + SWALLOWS)
    program = (
        "import sys\nfrom cerebrum_cli.programs.functions import tools_of\n"
        f"[tool.run({{}}) for tool in tools_of(['mytools.py']) if tool.spec.name == {name!r}]"
    )
    command = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    started = psutil.Process(command.pid).children(recursive=True)
    assert len(started) >= 2
    command.kill()
    command.wait()
    wait_until(lambda: not any(map(is_alive, started)))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
