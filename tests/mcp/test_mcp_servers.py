"""MCP servers, most of which misbehave: each call has a result, each start functions or an error; no process stays."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mcp_stand_in
import pytest
from anyio.from_thread import BlockingPortal
from cases import rows
from mcp_user import McpUser
from waiting import NewChildren, wait_for_end, wait_until

from cerebrum_cli.cli.options import ToolOptions
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.tools import Tool

pytestmark = pytest.mark.slow

STAND_IN = str(Path(mcp_stand_in.__file__))


def find(user: McpUser, behaviour: str = "", value: object = "", **table: Any) -> dict[str, Tool]:
    """The functions of a stand-in, by name."""
    user.configure("server", command=sys.executable, args=[STAND_IN, behaviour, str(value)], **table)
    return user.functions("server")


def run(tool: Tool, given: str = "") -> str:
    return tool.run({"text": given} if given else {})


# Calls.


def test_functions_are_listed_page_by_page_and_their_results_are_text(mcp_user: McpUser) -> None:
    tools, results = find(mcp_user), rows("mcp_results")
    assert [*tools] == [*mcp_stand_in.CALLS]
    assert all(tool.asks for tool in tools.values())
    assert tools["echo"].spec.description == "Do echo."
    assert tools["echo"].spec.parameters == {**mcp_stand_in.TEXTS, "required": []}
    assert {name: run(tools[name]) for name in results} == results
    assert run(tools["nonsense"]).startswith("the call failed: its server sent an invalid answer: ")
    assert run(tools["echo"], "ä\n€") == "ä\n€"
    assert run(tools["huge"], "1000000") == "x" * 1_000_000
    assert run(tools["echo"], "y" * 1_000_000) == "y" * 1_000_000
    assert run(tools["counted"]) == str(len(results) + 5)  # all in one process


def test_crash_is_a_result_and_the_next_call_starts_the_server_again(mcp_user: McpUser) -> None:
    tools = find(mcp_user)
    assert run(tools["counted"]) == "1"
    ended = "the call failed: its server ended"
    again = "; it starts again for the next call"
    assert run(tools["crash"]) == f"{ended}: exit code 3: ValueError: \x1b[2Jno luck{again}"
    assert run(tools["counted"]) == "1"
    assert run(tools["closes"]) == f"{ended}: it closed its output{again}"
    assert "it sent a message of more than 16,777,216 bytes" in run(tools["endless_line"])
    assert run(tools["echo"], "again") == "again"


def test_server_that_ended_between_calls_starts_again(new_children: NewChildren, mcp_user: McpUser) -> None:
    tools = find(mcp_user)
    assert run(tools["leaves"], "bye") == "bye"
    wait_for_end([child for child in new_children() if STAND_IN in child.cmdline()])
    wait_until(lambda: run(tools["counted"]) == "1")  # once its end has been noticed


def test_late_answer_is_not_that_of_another_call(mcp_user: McpUser) -> None:
    tools = find(mcp_user, timeout=3)  # in which the stand-in must start, too
    assert run(tools["silent"]) == "the call failed: its server gave no answer within 3 s"
    assert [run(tools["echo"], word) for word in ("one", "two")] == ["one", "two"]


def test_server_that_cannot_start_again_is_a_result(mcp_user: McpUser, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(Path(STAND_IN).read_text())
    mcp_user.configure("server", command=sys.executable, args=[str(script)])
    tools = mcp_user.functions("server")
    script.unlink()
    run(tools["crash"])
    assert run(tools["echo"]).startswith("the call failed: its server ended: exit code 2: ")


@pytest.mark.parametrize("begins_slowly", [False, True])
def test_ctrl_c_interrupts_a_call_but_not_the_server(
    mcp_user: McpUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_slowly: bool
) -> None:
    tools = find(mcp_user)
    started = tmp_path / "started"
    start_task_soon = BlockingPortal.start_task_soon

    def start_slowly(*given: Any) -> Any:
        future = start_task_soon(*given)
        time.sleep(0.5)
        return future

    if begins_slowly:  # so that Ctrl-C comes before the call is waited for
        monkeypatch.setattr(BlockingPortal, "start_task_soon", start_slowly)

    def interrupt() -> None:
        wait_until(started.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tools["silent"], str(started))
    assert time.monotonic() - begin < 5
    thread.join()
    assert run(tools["counted"]) == "2"  # in the same process, which was told that nobody waits


# Starts.


@pytest.mark.parametrize(("what", "words", "timeout", "problem"), rows("unusable_servers"))
def test_server_that_cannot_be_used_is_an_error(
    mcp_user: McpUser, what: str, words: list[str], timeout: float, problem: str
) -> None:
    command, *args = [sys.executable, STAND_IN, *words[1:]] if words[0] == "stand-in" else words
    mcp_user.configure("server", command=command, args=args, timeout=timeout)
    with pytest.raises(UsageError, match=f"the MCP server server {problem}") as error:
        mcp_user.functions("server")
    assert error.value.hint


@pytest.mark.parametrize(("what", "behaviour", "value", "problems"), rows("unusual_servers"))
def test_server_that_is_unusual_can_be_used(
    mcp_user: McpUser, monkeypatch: pytest.MonkeyPatch, what: str, behaviour: str, value: str, problems: list[str]
) -> None:
    monkeypatch.setattr("cerebrum_cli.mcp.mcp_connection.NOTICE_S", 0.1 if behaviour == "slow" else 30)
    tools = find(mcp_user, behaviour, value)
    notices = mcp_user.err.getvalue().splitlines()
    assert [notice.rpartition("server server: ")[2].removeprefix("note: ") for notice in notices] == problems
    assert [*tools] == [*mcp_stand_in.CALLS] and tools["echo"].spec.description == "Do echo."
    assert (run(tools["noisy"]), run(tools["counted"])) == ("heard", "2")


def test_digest_covers_variables_and_a_command_replaces_no_table_of_its_name(mcp_user: McpUser) -> None:
    for name in ("time", "two"):
        mcp_user.configure(name, command=sys.executable, args=[STAND_IN], env={"TOKEN": name})
    assert len({tool.digest for name in ("time", "two") for tool in mcp_user.functions(name, "time").values()}) == 2


def test_long_description_is_cut(mcp_user: McpUser) -> None:
    assert find(mcp_user, "long")["echo"].spec.description == f"{'x' * 3999}…"


def test_one_function_is_chosen_by_its_name_from_one_process_of_its_server(mcp_user: McpUser) -> None:
    mcp_user.configure("server", command=sys.executable, args=[STAND_IN])
    find_tools = ToolOptions().tool_finder(mcp_user.app)
    [counted], [echo] = find_tools("server.counted") or (), find_tools("server.echo") or ()
    assert (counted.spec.name, run(echo, "a"), run(counted)) == ("counted", "a", "2")
    with pytest.raises(UsageError, match="the MCP server server has no function 'ecko'") as error:
        find_tools("server.ecko")
    assert error.value.hint.startswith("did you mean echo? it has echo, counted, ")
    with pytest.raises(UsageError, match="invalid tool: 'sever'") as error:
        find_tools("sever")
    assert error.value.hint.startswith("did you mean server? it must be python, the path of a Python file (.py), or an")


@pytest.mark.parametrize(("table", "problem"), rows("mcp_tables"))
def test_invalid_table_is_an_error(mcp_user: McpUser, table: str, problem: str) -> None:
    mcp_user.config.write_text(f"[mcp.server]\n{table}\n")
    with pytest.raises((ConfigError, UsageError), match=problem) as error:
        mcp_user.functions("server")
    assert "server" in error.value.message and error.value.hint


def test_only_the_table_that_is_named_must_be_valid(mcp_user: McpUser) -> None:
    mcp_user.config.write_text('[mcp."a.b"]\ncommand = "a"\n[mcp.c]\ncommand = "/"\n')
    with pytest.raises(ConfigError, match="invalid name"):
        mcp_user.functions("a.b")
    with pytest.raises(UsageError, match="c cannot be started"):
        mcp_user.functions("c")


# Ends.


@pytest.mark.parametrize("behaviour", ["tidy", "stubborn", "child"])
def test_server_ends_with_its_command(
    new_children: NewChildren, mcp_user: McpUser, tmp_path: Path, behaviour: str
) -> None:
    tools = find(mcp_user, behaviour, tmp_path / "tidied")
    assert run(tools["echo"], "a") == "a"
    started = new_children()
    begin = time.monotonic()
    mcp_user.app.on_exit.close()
    wait_for_end(started)
    assert time.monotonic() - begin < (2 if behaviour == "tidy" else 5)
    assert (tmp_path / "tidied").exists() == (behaviour == "tidy")
