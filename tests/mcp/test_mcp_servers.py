"""MCP servers, most of which misbehave: each call has a result, each start functions or an error; no process stays."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import mcp_stand_in
import psutil
import pytest
from anyio.from_thread import BlockingPortal
from cases import rows
from scripted_command import app_for
from waiting import NewChildren, wait_for_end, wait_until

from cerebrum_cli.cli.options import ToolOptions
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.terminal.streams import Streams

pytestmark = pytest.mark.slow

STAND_IN = str(Path(mcp_stand_in.__file__))
Found = dict[str, Tool]


class Servers:
    """The functions of servers in config.toml, for one command."""

    def __init__(self, home: Path) -> None:
        self._err = StringIO()
        self.app = app_for({}, home, Streams(StringIO(), self._err, None, False, False, False))
        self.app.config_directory.mkdir(parents=True)

    def configure(self, name: str, **table: Any) -> None:
        with (self.app.config_directory / "config.toml").open("a") as file:
            file.write(f"[mcp.{name}]\n")
            for key, value in table.items():
                pairs = (
                    ", ".join(f"{each} = {json.dumps(text)}" for each, text in value.items()) if key == "env" else ""
                )
                file.write(f"{key} = {f'{{{pairs}}}' if pairs else json.dumps(value)}\n")

    def find(self, behaviour: str = "", value: object = "", source: str = "server", **table: Any) -> Found:
        """The functions of a stand-in, by name."""
        self.configure("server", command=sys.executable, args=[STAND_IN, behaviour, str(value)], **table)
        return {tool.spec.name: tool for tool in ToolOptions().tool_finder(self.app)(source) or ()}

    @property
    def notices(self) -> str:
        return self._err.getvalue()

    def close(self) -> None:
        self.app.on_exit.close()


@pytest.fixture
def servers(new_children: NewChildren, tmp_path: Path) -> Iterator[Servers]:
    opened = Servers(tmp_path)
    yield opened
    started = new_children()
    opened.close()
    wait_for_end(started)


def run(tool: Tool, given: str = "") -> str:
    return tool.run({"text": given} if given else {})


# Calls.


def test_functions_are_listed_page_by_page_and_keep_their_state(servers: Servers) -> None:
    tools = servers.find()
    assert [*tools] == [*mcp_stand_in.CALLS]
    assert all(tool.asks for tool in tools.values())
    assert tools["echo"].spec.description == "Do echo."
    assert tools["echo"].spec.parameters == {**mcp_stand_in.TEXTS, "required": []}
    assert [run(tools["echo"], "ä\n€"), run(tools["counted"]), run(tools["counted"])] == ["ä\n€", "2", "3"]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("structured", '{"a": 1}'),
        ("fails", "the call failed: no such city"),
        ("asking", '[null, "List roots not supported"]'),
        ("noisy", "heard"),
    ],
)
def test_call_has_a_result(servers: Servers, name: str, result: str) -> None:
    assert run(servers.find()[name]).replace("None", "null").replace("'", '"') == result


def test_invalid_result_is_a_failed_call(servers: Servers) -> None:
    tools = servers.find()
    assert run(tools["nonsense"]).startswith("the call failed: its server sent an invalid answer: ")
    assert run(tools["counted"]) == "2"


def test_result_that_is_no_text_has_a_line_for_each_part(servers: Servers) -> None:
    assert run(servers.find()["kinds"]).splitlines() == [
        "one\ufffd",
        "[image, image/png, 3,000 bytes: left out, since it is no text]",
        "[audio, audio/wav, 3 bytes: left out, since it is no text]",
        "[link: file:///a]",
        "embedded",
        "[resource, file:///a: left out, since it is no text]",
    ]


def test_large_arguments_and_results_arrive_whole(servers: Servers) -> None:
    tools = servers.find()
    assert run(tools["huge"], "1000000") == "x" * 1_000_000
    assert run(tools["echo"], "y" * 1_000_000) == "y" * 1_000_000


def test_crash_is_a_result_and_the_next_call_starts_the_server_again(servers: Servers) -> None:
    tools = servers.find()
    assert run(tools["counted"]) == "1"
    ended = "the call failed: its server ended"
    again = "; it starts again for the next call"
    assert run(tools["crash"]) == f"{ended}: exit code 3: ValueError: \x1b[2Jno luck{again}"
    assert run(tools["counted"]) == "1"
    assert run(tools["closes"]) == f"{ended}: it closed its output{again}"


def test_server_that_ended_between_calls_starts_again(new_children: NewChildren, servers: Servers) -> None:
    tools = servers.find()
    assert run(tools["leaves"], "bye") == "bye"
    wait_for_end([child for child in new_children() if STAND_IN in child.cmdline()])
    wait_until(lambda: run(tools["counted"]) == "1")  # once its end has been noticed


def test_late_answer_is_not_that_of_another_call(servers: Servers) -> None:
    tools = servers.find(timeout=3)  # in which the stand-in must start, too
    assert run(tools["silent"]) == "the call failed: its server gave no answer within 3 s"
    assert [run(tools["echo"], word) for word in ("one", "two")] == ["one", "two"]


def test_endless_message_ends_the_server(servers: Servers) -> None:
    tools = servers.find()
    assert "it sent a message of more than 16,777,216 bytes" in run(tools["endless_line"])
    assert run(tools["echo"], "again") == "again"


def test_server_that_cannot_start_again_is_a_result(servers: Servers) -> None:
    script = servers.app.config_directory / "server.py"
    script.write_text(Path(STAND_IN).read_text())
    servers.configure("server", command=sys.executable, args=[str(script)])
    tools = {tool.spec.name: tool for tool in ToolOptions().tool_finder(servers.app)("server") or ()}
    script.unlink()
    run(tools["crash"])
    assert run(tools["echo"]).startswith("the call failed: its server ended: exit code 2: ")


@pytest.mark.parametrize("begins_slowly", [False, True])
def test_ctrl_c_interrupts_a_call_but_not_the_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_slowly: bool
) -> None:
    tools = servers.find()
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


@pytest.mark.parametrize(
    ("behaviour", "value", "problem"),
    [
        ("exits", "", r"the MCP server server ended: exit code 3: ValueError: \x1b\[2Jno luck"),
        ("dumb", "", "the MCP server server gave no answer within 0.5 s"),
        ("refuses", "", "the MCP server server answered with an error: Unsupported protocol version"),
        ("version", "1.0", "the MCP server server sent an invalid answer: Unsupported protocol version"),
        ("no list", "", "the MCP server server sent an invalid answer: "),
        ("none", "", "the MCP server server has no functions that a model can call"),
        ("slow", 60, "the MCP server server gave no answer within 0.5 s"),
    ],
)
def test_server_that_cannot_be_used_is_an_error(servers: Servers, behaviour: str, value: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        servers.find(behaviour, value, timeout=0.5 if behaviour in ("dumb", "slow") else 20)
    assert error.value.hint


def test_server_that_writes_forever_without_its_output_is_an_error(servers: Servers) -> None:
    servers.configure("server", command="sh", args=["-c", "exec >&-; exec yes >&2"])
    with pytest.raises(UsageError, match="ended: it closed its output: y"):
        ToolOptions().tool_finder(servers.app)("server")


@pytest.mark.parametrize("line", ["This is no MCP.", '{"jsonrpc": "2.0", "id": 1, "method": "ping"}'])
def test_server_that_only_writes_is_an_error(servers: Servers, line: str) -> None:
    servers.configure("server", command="yes", args=[line], timeout=1)
    with pytest.raises(UsageError, match="server gave no answer within 1 s"):
        ToolOptions().tool_finder(servers.app)("server")


def test_server_that_ends_at_the_probe_of_the_newest_version_is_started_again(servers: Servers) -> None:
    assert run(servers.find("strict")["counted"]) == "1"  # as servers made with rmcp before 3.0


def test_digest_covers_variables(servers: Servers) -> None:
    for name, value in (("one", "a"), ("two", "b")):
        servers.configure(name, command=sys.executable, args=[STAND_IN], env={"TOKEN": value})
    find = ToolOptions().tool_finder(servers.app)
    assert len({tool.digest for name in ("one", "two") for tool in find(name) or ()}) == 2


def test_command_does_not_replace_a_table_of_its_name(servers: Servers) -> None:
    servers.configure("time", command=sys.executable, args=[STAND_IN])
    assert ToolOptions(mcp=("time",)).tool_finder(servers.app)("time")


def test_long_description_is_cut(servers: Servers) -> None:
    assert servers.find("long")["echo"].spec.description == f"{'x' * 3999}…"


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18"])
def test_server_may_speak_an_earlier_version(servers: Servers, version: str) -> None:
    assert "echo" in servers.find("version", version)


def test_server_may_log_on_standard_output(servers: Servers) -> None:
    assert run(servers.find("logs")["noisy"]) == "heard" and servers.notices == ""


def test_server_that_starts_slowly_is_named(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.mcp.mcp_connection.NOTICE_S", 0.1)
    assert "echo" in servers.find("slow", 0.5)
    assert servers.notices == "note: waiting for the MCP server server\n"


def test_functions_that_a_model_cannot_call_are_named_and_left_out(servers: Servers) -> None:
    assert [*servers.find("unusable")] == [*mcp_stand_in.CALLS]
    assert [line.partition("server server: ")[2] for line in servers.notices.splitlines()] == [
        r"a function is left out: 'has spaces\x1b[2J' cannot be its name",
        "the function refers is left out: its schema cannot be read",
    ]


def test_second_function_of_a_name_is_left_out(servers: Servers) -> None:
    assert servers.find("twins")["echo"].spec.description == "Do echo."
    assert servers.notices == "note: the MCP server server: the second function echo is left out\n"


def test_one_function_is_chosen_by_its_name(servers: Servers) -> None:
    assert [*servers.find(source="server.echo")] == ["echo"]
    find = ToolOptions().tool_finder(servers.app)
    with pytest.raises(UsageError, match="the MCP server server has no function 'ecko'") as error:
        find("server.ecko")
    assert error.value.hint.startswith("did you mean echo? it has echo, counted, ")
    with pytest.raises(UsageError, match="invalid tool: 'sever'") as error:
        find("sever")
    assert error.value.hint.startswith("did you mean server? it must be python, the path of a Python file (.py), or an")


def test_server_starts_once_for_a_command(servers: Servers) -> None:
    servers.find()
    find = ToolOptions().tool_finder(servers.app)
    [counted], [echo] = find("server.counted") or (), find("server.echo") or ()
    assert [run(echo, "a"), run(counted)] == ["a", "2"]


@pytest.mark.parametrize(("table", "problem"), rows("mcp_tables"))
def test_invalid_table_is_an_error(servers: Servers, table: str, problem: str) -> None:
    (servers.app.config_directory / "config.toml").write_text(f"[mcp.server]\n{table}\n")
    with pytest.raises((ConfigError, UsageError), match=problem) as error:
        ToolOptions().tool_finder(servers.app)("server")
    assert "server" in error.value.message and error.value.hint


def test_only_the_table_that_is_named_must_be_valid(servers: Servers) -> None:
    (servers.app.config_directory / "config.toml").write_text('[mcp."a.b"]\ncommand = "a"\n[mcp.c]\ncommand = "/"\n')
    find = ToolOptions().tool_finder(servers.app)
    with pytest.raises(ConfigError, match="invalid name"):
        find("a.b")
    with pytest.raises(UsageError, match="c cannot be started"):
        find("c")


# Ends.


@pytest.mark.parametrize("behaviour", ["", "stubborn", "child"])
def test_server_ends_with_its_command(new_children: NewChildren, servers: Servers, behaviour: str) -> None:
    tools = servers.find(behaviour)
    assert run(tools["echo"], "a") == "a"
    started = new_children()
    begin = time.monotonic()
    servers.close()
    wait_for_end(started)
    assert time.monotonic() - begin < (5 if behaviour else 2)


COMMAND = f"""
import shlex, sys
from pathlib import Path
from scripted_command import app_for
from cerebrum_cli.cli.options import ToolOptions
command = shlex.join([sys.executable, {STAND_IN!r}, sys.argv[1]])
app = app_for({{}}, Path("home"))
tools = ToolOptions(mcp=(command,)).tool_finder(app)(command)
[silent] = [tool for tool in tools if tool.spec.name == "silent"]
silent.run({{"text": "started"}})
"""


@pytest.mark.parametrize("behaviour", ["", "stubborn", "child"])
def test_server_ends_with_a_command_that_is_killed(tmp_path: Path, behaviour: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = subprocess.Popen([sys.executable, "-c", COMMAND, behaviour], cwd=tmp_path, env=environment)
    wait_until((tmp_path / "started").exists)
    started = psutil.Process(command.pid).children(recursive=True)
    assert len(started) >= 2
    command.kill()
    command.wait()
    wait_for_end(started)
