"""Functions of files run in a process of their own: whatever they do, the command has a result, and goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cases import rows
from waiting import TIMEOUT_S, NewChildren, wait_for_end, wait_until

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.programs.functions import tools_of

HEAD = """
from __future__ import annotations
import ctypes, os, signal, subprocess, sys, threading, time
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Callable, Optional

print("loading")
count = 0

def counted() -> int:
    global count
    count += 1
    return count

"""

Open = Callable[[str], dict[str, Tool]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Tools by name of a file in the working directory with these functions."""
    monkeypatch.chdir(tmp_path)

    def open_file(source: str) -> dict[str, Tool]:
        (tmp_path / "mytools.py").write_text(HEAD + source)
        return {tool.spec.name: tool for tool in tools_of(["mytools.py"])}

    return open_file


def run(tool: Tool, **arguments: object) -> str:
    return tool.run(arguments)


def numbered(bodies: Iterable[str]) -> str:
    return "".join(f"def f{number}():\n    {body}\n" for number, body in enumerate(bodies))


HARMLESS = {**dict(rows("harmless_functions")), "return 'ø' * 1_000_000": "ø" * 1_000_000}
DEADLY = [row for row in rows("deadly_functions") if sys.platform == "linux" or "40" not in row[0]]  # signal 40


def test_functions_that_misuse_their_process_have_results(opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    tools = opened(numbered(HARMLESS))
    assert run(tools["counted"]) == "1"
    for number, (body, result) in enumerate(HARMLESS.items()):
        assert (body, run(tools[f"f{number}"])) == (body, result)
    assert run(tools["counted"]) == "2"  # in the same process
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(("body", "ending"), DEADLY)
def test_function_that_ends_its_process_has_a_result_and_the_next_call_another_process(
    opened: Open, body: str, ending: str
) -> None:
    tools = opened(numbered([body]))
    assert run(tools["counted"]) == "1"
    assert run(tools["f0"]) == f"f0 ended its process ({ending}), which starts again for the next call"
    assert run(tools["counted"]) == "1"


def test_process_that_ended_between_two_calls_starts_again(opened: Open, new_children: NewChildren) -> None:
    tools = opened("def later(): threading.Timer(0.1, os._exit, [3]).start()\n")
    started = workers(new_children())
    assert run(tools["later"]) == "(no result)"
    wait_for_end(started)
    assert run(tools["counted"]) == "counted ended its process (exit code 3), which starts again for the next call"
    assert run(tools["counted"]) == "1"


def workers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "function_worker" in " ".join(process.cmdline())]


def test_threads_may_call_functions_of_a_file(opened: Open) -> None:
    tool = opened("")["counted"]
    with ThreadPoolExecutor(5) as threads:
        assert sorted(threads.map(lambda _: run(tool), range(5))) == ["1", "2", "3", "4", "5"]


ENVIRONMENT = """
import cerebrum_cli.engine.llama.bindings  # sets variables for llama.cpp
from cerebrum_cli.programs.functions import tools_of
[tool] = tools_of(["mytools.py"])
print(tool.run({}))
"""


@pytest.mark.slow
def test_functions_have_the_environment_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mytools.py").write_text("import os\ndef variables(): return sorted(os.environ)\n")
    own = {"PATH": os.environ["PATH"], "OWN": "1"}
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT], cwd=tmp_path, env=own, capture_output=True, check=True)
    assert set(json.loads(done.stdout)) - {"LC_CTYPE"} == set(own)


STARTING = """
import sys, time
if "cerebrum_cli.programs.function_worker" in sys.orig_argv:
    open("starting", "w").close()
    time.sleep(60)
"""
OPENING = """
from cerebrum_cli.programs.functions import tools_of
try:
    tools_of(["mytools.py"])
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_ctrl_c_while_the_process_starts_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "mytools.py").write_text("def f(): pass\n")
    (tmp_path / "sitecustomize.py").write_text(STARTING)
    command, env = [sys.executable, "-c", OPENING], os.environ | {"PYTHONPATH": str(tmp_path)}
    opening = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until((tmp_path / "starting").exists)
    opening.send_signal(signal.SIGINT)
    assert opening.communicate(timeout=TIMEOUT_S) == (b"interrupted\n", b"")


# Imports.


def test_functions_of_a_file_are_tools_that_ask(
    opened: Open, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sibling.py").write_text("def shout(text): return text.upper()\n")
    tools = opened("""
from sibling import shout
class Unit(Enum):
    METRIC = "metric"
@dataclass
class Place:
    name: str
    height: int = 0
async def forecast(place: Place, unit: Unit, limit: Optional[int] = None) -> Place:
    return Place(f"{place!r} {unit!r} {limit}", 1)
@cache
def greet(name: str): return shout(name)
def _private(): ...
""")
    assert [*tools] == ["counted", "forecast", "greet"] and all(tool.asks for tool in tools.values())
    result = run(tools["forecast"], place={"name": "Oslo", "height": "7"}, unit="metric")
    assert result == '{"name": "Place(name=\'Oslo\', height=7) <Unit.METRIC: \'metric\'> None", "height": 1}'
    assert run(tools["greet"], name="you") == "YOU"
    assert capfd.readouterr() == ("", "loading\n")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "problem"), rows("tool_files"))
def test_files_that_give_no_tools_are_rejected(tmp_path: Path, source: str | None, problem: str) -> None:
    path = tmp_path / "mytools.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(UsageError, match=problem) as raised:
        tools_of([str(path)])
    assert "\n" not in raised.value.message and raised.value.hint


def test_unusable_functions_of_a_file_are_reported_and_left_out(opened: Open) -> None:
    opened("def many(*names): ...\ndef calls(f: Callable[[], int]): ...\n")
    notices: list[NoticeEvent] = []
    assert [tool.spec.name for tool in tools_of(["mytools.py"], notices.append)] == ["counted"]
    problems = [notice.message.partition(":")[0] for notice in notices]
    assert problems == ["many cannot be a tool", "calls cannot be a tool"]


def test_file_that_changes_after_its_functions_were_described(opened: Open) -> None:
    tools = opened("def end(): os._exit(1)\n")
    Path("mytools.py").write_text("def other(): ...\n")
    run(tools["end"])
    assert run(tools["counted"]) == "there is no function counted"
    tools = opened("def end(): os._exit(1)\n")
    Path("mytools.py").unlink()
    run(tools["end"])
    assert run(tools["counted"]).startswith("cannot import ")


# The end.


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


SWALLOWS = """
import pathlib
def wait():
    pathlib.Path("started").touch()
    while True:
        try:
            time.sleep(60)
        except BaseException: pass
def compute():
    subprocess.Popen(["sleep", "60"])
    pathlib.Path("started").touch()
    sum(range(10 ** 14))  # no other thread runs meanwhile, and no signal handler
def sleep():
    try:
        pathlib.Path("started").touch()
        time.sleep(60)
    finally:
        pathlib.Path("cleaned").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "wait", "compute"])
def test_ctrl_c_ends_a_function_also_if_it_ignores_that(
    new_children: NewChildren, opened: Open, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    tools = opened(SWALLOWS)
    run(tools["counted"])

    def interrupt() -> None:
        wait_until(Path("started").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(tools[name])
    thread.join()
    assert new_children() == []
    assert Path("cleaned").exists() is (name == "sleep")
    assert run(tools["counted"]) == "1"
    assert capfd.readouterr() == ("", "loading\nloading\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "wait", "compute"])
def test_process_of_functions_ends_with_a_command_that_is_killed(tmp_path: Path, name: str) -> None:
    (tmp_path / "mytools.py").write_text(HEAD + SWALLOWS)
    program = (
        "from cerebrum_cli.programs.functions import tools_of\n"
        f"[tool.run({{}}) for tool in tools_of(['mytools.py']) if tool.spec.name == {name!r}]"
    )
    command = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    started = psutil.Process(command.pid).children(recursive=True)
    assert len(started) >= 2
    command.kill()
    command.wait()
    wait_for_end(started)
