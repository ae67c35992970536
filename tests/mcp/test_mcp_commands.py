"""Functions of MCP servers in commands: what is asked, shown, stored and refused."""

import json
import shlex
import sys
from pathlib import Path

import mcp_stand_in
import pytest
from command_line import CommandLine, Finished, assert_error
from mcp_user import McpUser
from person import OpenTerminal
from scripted_command import SCRIPTED, run_here

pytestmark = pytest.mark.slow

COMMAND = shlex.join([sys.executable, mcp_stand_in.__file__])


def call(name: str, text: str = "") -> str:
    return json.dumps({"name": name, "arguments": {"text": text} if text else {}})


ROWS = {
    **{f"{word}?": call("echo", f"heard {word}") for word in "abcd"},
    **{f"heard {word}": f"It is {word}." for word in "abcd"},
    "How often?": call("counted"),
    "Crash?": call("crash"),
    "next call": call("counted"),
    "": "Done.",
}


def configure(user: McpUser, *arguments: str) -> None:
    """The table of a stand-in, in place of an earlier one."""
    user.config.write_text("")
    user.configure("stand", command=sys.executable, args=[mcp_stand_in.__file__, *arguments])


def batch(user: McpUser, *options: str) -> Finished:
    source = user.home / "in.txt"
    source.write_text("a?\nb?\nc?\nd?\n")
    return user.run(ROWS, "batch", source, "-o", user.home / "out.jsonl", "--parallel", "4", *options)


def test_ask_starts_servers_of_commands_and_of_the_configuration(mcp_user: McpUser) -> None:
    configure(mcp_user)
    for options in (("--mcp", COMMAND), ("--tool", "stand"), ("--tool", "stand.echo", "--tool", "stand.counted")):
        done = mcp_user.run(ROWS, "ask", *options, "-y", "--json", "a?")
        assert (done.object["text"], done.code) == ("It is a.", 0), done.err
        assert done.object["calls"] == [{"name": "echo", "arguments": {"text": "heard a"}, "result": "heard a"}]
        assert "echo(text='heard a')\n-> heard a\n" in done.err
    assert mcp_user.run(ROWS, "ask", "--tool", "stand.counted", "-y", "a?").out == f"{call('echo', 'heard a')}\n"


def test_servers_need_the_sdk(mcp_user: McpUser, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mcp_server", "mcp_connection", "server_process"):
        monkeypatch.delitem(sys.modules, f"cerebrum_cli.mcp.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)  # an import of it raises ModuleNotFoundError
    done = mcp_user.run(ROWS, "ask", "--mcp", COMMAND, "a?")
    assert_error(done, 2, "MCP servers need mcp: ", "pip install", "cerebrum-cli[mcp]")


def test_problem_of_a_server_is_one_line_without_controls(mcp_user: McpUser, open_terminal: OpenTerminal) -> None:
    words = ("--mcp", f"{COMMAND} exits", "a?")
    assert_error(mcp_user.run(ROWS, "ask", *words), 2, "ended: exit code 3: ValueError: ", "no luck")
    person = open_terminal(sys.executable, SCRIPTED, "{}", "ask", "-m", mcp_user.model, *words)
    person.wait_for("hint: run it yourself to see why:")
    assert "no luck" in person.output and "\x1b[2J" not in person.output


def test_descriptions_are_neither_control_sequences_nor_special_tokens(
    new_user: CommandLine, chatml_model: Path, open_terminal: OpenTerminal
) -> None:
    words = ("ask", "-m", chatml_model, "--mcp", f"{COMMAND} escapes", "-y", "--dry-run", "a?")
    prompt = new_user.run(*words).out
    assert prompt.count("<|im_end|>") == 3 and "\ufffd" in prompt  # two of messages, and one in the description
    person = open_terminal(sys.executable, "-m", "cerebrum_cli", *words)
    person.wait_for("tokens")
    assert "\x1b[2J" not in person.output and "\x1b]0;" not in person.output


def test_chat_adds_a_server_and_goes_on_after_its_crash(mcp_user: McpUser) -> None:
    configure(mcp_user)
    typed = b"/tools stand.counted\n/tools stand.crash\nHow often?\n/tools stand\nCrash?\n/tools off\na?\n"
    done = run_here({"rows": ROWS}, mcp_user.home, "chat", "-m", mcp_user.model, "-y", piped=typed)
    lines = [line for line in done.err.splitlines() if line]
    assert done.code == 0 and {"counted()", "-> 1", "error: two tools are named counted"} <= {*lines}
    assert "counted, crash" in lines
    [crashed] = [line for line in lines if line.startswith("-> the call failed: ") and "ended: exit code 3" in line]
    assert lines.index(crashed) < lines.index("-> 1", lines.index(crashed))  # counted begins again
    assert done.out.splitlines()[-1] == ROWS["a?"]


def test_batch_gives_each_row_its_own_results_and_resumes_with_the_same_functions_only(mcp_user: McpUser) -> None:
    configure(mcp_user)
    done = batch(mcp_user, "--tool", "stand", "-y")
    assert done.code == 0, done.err
    written = (mcp_user.home / "out.jsonl").read_bytes()
    answers = [json.loads(line) for line in written.splitlines()]
    assert [answer["text"] for answer in answers] == [f"It is {word}." for word in "abcd"]
    assert [answer["calls"][0]["result"] for answer in answers] == [f"heard {word}" for word in "abcd"]
    assert batch(mcp_user, "--tool", "stand", "-y").code == 0
    assert (mcp_user.home / "out.jsonl").read_bytes() == written
    for arguments in (["release", "2"], ["twins"]):
        configure(mcp_user, *arguments)
        assert_error(batch(mcp_user, "--tool", "stand", "-y"), 1, "was made with other settings: set of functions")
    assert_error(batch(mcp_user, "--tool", "stand.echo", "-y"), 1, "was made with other settings: set of functions")
