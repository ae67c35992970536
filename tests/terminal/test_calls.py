"""Function calls at a terminal: a line for each, the question before it, and what Ctrl-C does."""

import json
from io import StringIO
from pathlib import Path

import pytest
from command_line import CommandLine
from person import OpenTerminal, Person

from cerebrum_cli.core.events import CallEvent
from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.core.tools import ToolCall
from cerebrum_cli.terminal.sinks import ReplyDisplay
from cerebrum_cli.terminal.streams import Streams

FUNCTIONS = '''
import sys, time

def weather(city: str, days: int = 1) -> str:
    """Forecast for a city."""
    return f"Dry in {city}.\\nTomorrow: rain."

def wait() -> str:
    """Wait for long."""
    time.sleep(60)

def swallow():
    """Never stop."""
    print("swallowing", file=sys.stderr)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
'''
WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
CALLS = {name: f'Wait.\n{{"name": "{name}", "arguments": {{}}}}' for name in ("wait", "swallow")}
SCRIPT = {"rows": {"coat?": f"I look.\n{json.dumps(WEATHER)}", **CALLS, "": "No coat."}}
GRAY = "\x1b[38;5;243m"
SHOWN = "weather(city='Oslo', days=2)"


def printed(call: ToolCall) -> str:
    """The lines of a call and of its result at a terminal."""
    err = StringIO()
    sink = ReplyDisplay(Streams(StringIO(), err, None, False, True, False))
    for is_done in (False, True):
        sink.emit(CallEvent(call, is_done))
    sink.close()
    return err.getvalue()


def test_lines_of_calls_are_gray_cut_and_without_controls() -> None:
    call = ToolCall("weather", {"city": "Oslo", "days": 2}, "\nDry.\nTomorrow: rain.")
    assert printed(call) == f"{GRAY}{SHOWN}\x1b[0m\n{GRAY}-> Dry. Tomorrow: rain.\x1b[0m\n"
    call = ToolCall("f\x1b[2J\n", {"code": "\x1b[2J\n" + "b" * 99}, "a\x1b[2Jb" + "c" * 99)
    lines = strip_controls(printed(call)).splitlines()
    assert lines[0].startswith(r"f (code='\x1b[2J\nbb") and lines[0].endswith("b…")
    assert lines[1].startswith("-> abcc") and lines[1].endswith("c…")
    assert all(len(line) < 80 for line in lines)


@pytest.fixture
def open_tools(open_scripted: OpenTerminal, tmp_path: Path) -> OpenTerminal:
    """A function that runs a command with the functions."""
    functions = tmp_path / "functions.py"
    functions.write_text(FUNCTIONS)

    def start(command: str, *arguments: str) -> Person:
        person = open_scripted(SCRIPT, command, "--session", "tea", "--tool", functions, *arguments)
        if command == "chat":
            person.wait_for(">")
        return person

    return start


@pytest.mark.slow
def test_chat_asks_before_each_call_and_ctrl_c_ends_it(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    chat = open_tools("chat")
    for answer, shown in (("n\r", "-> the user refused this call"), ("y\r", "-> Dry in Oslo.")):
        chat.type("A coat?\r", shows=f"Run {SHOWN}? [y/N]")
        chat.type(answer, shows=shown)
        chat.wait_for("No coat.")
    chat.type("A coat?\r", shows=f"Run {SHOWN}? [y/N]")
    chat.type("\x03", shows="note: reply interrupted")
    chat.type("wait\r", shows="Run wait()? [y/N]")
    chat.type("y\r")
    chat.type("\x03", shows="note: reply interrupted")
    chat.leave()
    assert new_user.contents("tea")[6:] == ["wait", "Wait.\n\n"]


@pytest.mark.slow
def test_chat_goes_on_after_a_function_that_ignores_ctrl_c(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    chat = open_tools("chat", "-y")
    chat.type("swallow\r", shows="swallowing")
    chat.type("\x03\x03", shows="note: reply interrupted")
    chat.type("A coat?\r", shows="No coat.")
    chat.leave()
    assert new_user.contents("tea") == ["swallow", "Wait.\n\n", "A coat?", "No coat."]


@pytest.mark.slow
def test_first_ctrl_c_ends_an_answer_whose_function_ignores_it(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    answer = open_tools("ask", "-y", "swallow")
    answer.wait_for("swallowing")
    answer.type("\x03")
    assert answer.end() == 130
    assert new_user.contents("tea") == ["swallow", "Wait.\n\n"]
