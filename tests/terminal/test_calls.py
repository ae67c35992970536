"""Function calls at a terminal: a line for each, the question before it, and what Ctrl-C does."""

import json
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from command_line import CommandLine, Finished
from person import OpenTerminal, Person
from scripted_command import app_for, run_here

from cerebrum_cli.core.events import CallEvent
from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.core.tools import ToolCall
from cerebrum_cli.main import run
from cerebrum_cli.terminal.sinks import ReplyDisplay
from cerebrum_cli.terminal.streams import Streams

FUNCTIONS = '''
import os, sys, time

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

def leave():
    """End the process."""
    os._exit(3)

def close():
    """Close all."""
    sys.stdout.close()
    os.closerange(0, 1000)

def many(*names): ...
'''
WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
FORECAST = "Dry in Oslo.\nTomorrow: rain."
CALLS = {name: f'Wait.\n{{"name": "{name}", "arguments": {{}}}}' for name in ("wait", "swallow", "leave", "close")}
SCRIPT = {"rows": {"coat?": f"I look.\n{json.dumps(WEATHER)}", **CALLS, "": "No coat."}}
GRAY = "\x1b[38;5;243m"
SHOWN = "weather(city='Oslo', days=2)"


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


def printed(call: ToolCall, is_terminal: bool = False, is_quiet: bool = False) -> str:
    """The lines of a call and of its result on standard error."""
    err = StringIO()
    sink = ReplyDisplay(Streams(StringIO(), err, None, False, is_terminal, False, is_quiet))
    for is_done in (False, True):
        sink.emit(CallEvent(call, is_done))
    sink.close()
    return err.getvalue()


def test_call_and_result_have_a_line_each() -> None:
    call = ToolCall("weather", {"city": "Oslo", "days": 2}, "\nDry.\nTomorrow: rain.")
    assert printed(call) == f"{SHOWN}\n-> Dry. Tomorrow: rain.\n"
    assert printed(call, is_terminal=True) == f"{GRAY}{SHOWN}\x1b[0m\n{GRAY}-> Dry. Tomorrow: rain.\x1b[0m\n"
    assert printed(call, is_quiet=True) == ""


def test_lines_of_calls_are_cut_and_without_controls() -> None:
    call = ToolCall("f\x1b[2J\n", {"code": "\x1b[2J\n" + "b" * 99}, "a\x1b[2Jb" + "c" * 99)
    lines = strip_controls(printed(call, is_terminal=True)).splitlines()
    assert lines[0].startswith(r"f (code='\x1b[2J\nbb") and lines[0].endswith("b…")
    assert lines[1].startswith("-> abcc") and lines[1].endswith("c…")
    assert all(len(line) < 80 for line in lines)


# Without a terminal.


def ask(home: Path, model: Path, *arguments: str) -> Finished:
    return run_here(dict(SCRIPT), home, "ask", "-m", model, *arguments, "A coat?")


def test_functions_run_without_a_question_and_are_noted(tmp_path: Path, chatml_model: Path, functions: str) -> None:
    agreed = ask(tmp_path, chatml_model, "--tool", functions, "-y", "--json")
    assert agreed.code == 0 and agreed.err.endswith(f"{SHOWN}\n-> Dry in Oslo. Tomorrow: rain.\n")
    assert "note: many cannot be a tool: it has parameters without a name\n" in agreed.err
    assert agreed.object["calls"] == [{**WEATHER, "result": FORECAST}]
    assert agreed.object["text"].endswith("No coat.")
    assert "calls" not in ask(tmp_path, chatml_model, "--json").object


def test_functions_of_a_file_need_a_terminal_or_agreement(tmp_path: Path, chatml_model: Path, functions: str) -> None:
    refused = ask(tmp_path, chatml_model, "--tool", functions)
    assert (refused.code, refused.out) == (2, "")
    assert "\nerror: no terminal to confirm calls of weather\n hint: add -y to run" in refused.err


def test_call_that_was_cut_off_is_run_later(tmp_path: Path, chatml_model: Path, functions: str) -> None:
    tools = ("--tool", functions, "-y", "--session", "tea")
    assert ask(tmp_path, chatml_model, *tools, "-n", "20").out == 'I look.\n{"name": "we\n'
    continued = run_here(dict(SCRIPT), tmp_path, "chat", "-m", chatml_model, *tools, piped=b"/continue\n")
    assert continued.out.endswith("No coat.\n")
    messages = json.loads(run_here({}, tmp_path, "sessions", "show", "tea", "--json").out)["messages"]
    assert [message["content"] for message in messages[1:]] == ["I look.", FORECAST, "No coat."]


def test_python_runs_a_program(tmp_path: Path, chatml_model: Path) -> None:
    script = {"rows": {"coat?": '{"name": "python", "arguments": {"code": "6 * 7"}}', "": "It is 42."}}
    done = run_here(script, tmp_path, "ask", "-m", chatml_model, "--tool", "python", "A coat?")
    assert (done.code, done.out) == (0, "It is 42.\n")
    assert "python(code='6 * 7')\n-> 42\n" in done.err


def test_tools_of_a_chat_are_listed_added_and_removed(tmp_path: Path, chatml_model: Path, functions: str) -> None:
    script = f"/tools\n/tools {functions}\n/tools {functions}\nA coat?\n/tools off\nAnd now?\n"
    out, err = StringIO(), StringIO()
    app = app_for(dict(SCRIPT), tmp_path, Streams(out, err, BytesIO(script.encode()), False, False, False))
    run(["chat", "-m", str(chatml_model), "-y", "-q"], app)
    assert out.getvalue() == "I look.\n\nNo coat.\nNo coat.\n"
    added = ["no functions; /tools FILE adds some", "weather, wait, swallow, leave, close"]
    assert err.getvalue().splitlines()[:3] == [*added, "error: two tools are named weather"]


# At a terminal.


@pytest.fixture
def open_tools(open_scripted: OpenTerminal, functions: str) -> OpenTerminal:
    """A function that runs a command with the functions."""

    def start(command: str, *arguments: str) -> Person:
        person = open_scripted(SCRIPT, command, "--session", "tea", "--tool", functions, *arguments)
        if command == "chat":
            person.wait_for(">")
        return person

    return start


@pytest.mark.slow
def test_chat_runs_no_function_that_the_user_refuses(open_tools: OpenTerminal) -> None:
    chat = open_tools("chat")
    chat.type("A coat?\r", shows=f"Run {SHOWN}? [y/N]")
    chat.type("n\r", shows="-> the user refused this call")
    chat.wait_for("No coat.")
    chat.type("A coat?\r", shows=f"Run {SHOWN}? [y/N]")
    chat.type("\x03", shows="note: reply interrupted")
    chat.leave()


@pytest.mark.slow
def test_ctrl_c_ends_a_function_and_keeps_what_was_said(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    chat = open_tools("chat")
    chat.type("A coat?\r", shows=f"Run {SHOWN}? [y/N]")
    chat.type("y\r", shows="-> Dry in Oslo.")
    chat.wait_for("No coat.")
    chat.type("wait\r", shows="Run wait()? [y/N]")
    chat.type("y\r")
    chat.type("\x03", shows="note: reply interrupted")
    chat.leave()
    assert new_user.contents("tea")[2:4] == ["wait", "Wait.\n\n"]


@pytest.mark.slow
def test_chat_goes_on_after_functions_that_misbehave(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    chat = open_tools("chat", "-y")
    chat.type("swallow\r", shows="swallowing")
    chat.type("\x03\x03", shows="note: reply interrupted")
    for name, how in (("leave", "exit code 3"), ("close", "exit code 1")):
        chat.type(f"{name}\r", shows=f"-> {name} ended its process ({how}")
        chat.wait_for("No coat.")
    chat.leave()
    replies = ["swallow", "Wait.\n\n", "leave", "No coat.", "close", "No coat."]
    assert new_user.contents("tea") == replies


@pytest.mark.slow
def test_first_ctrl_c_ends_an_answer_whose_function_ignores_it(open_tools: OpenTerminal, new_user: CommandLine) -> None:
    answer = open_tools("ask", "-y", "swallow")
    answer.wait_for("swallowing")
    answer.type("\x03")
    assert answer.end() == 130
    assert new_user.contents("tea") == ["swallow", "Wait.\n\n"]
