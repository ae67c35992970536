"""Servers made with the SDK, over standard streams and over HTTP, and servers of the package index."""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import mcp_sdk_server
import pytest
from command_line import PYTHON
from loopback import Loopback, LoopbackHandler
from scripted_command import app_for, run_here
from waiting import wait_until

from cerebrum_cli.cli.app import App
from cerebrum_cli.cli.options import ToolOptions
from cerebrum_cli.core.environment import user_environment
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.terminal.streams import Streams

pytestmark = pytest.mark.slow

SCRIPT = mcp_sdk_server.__file__
COMMAND = shlex.join([sys.executable, SCRIPT])


class HttpServer:
    """The server on a port, which can be started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.start()

    def start(self) -> None:
        words = [sys.executable, SCRIPT, str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.stop()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    opened = app_for({}, tmp_path, Streams(StringIO(), StringIO(), None, False, False, False))
    opened.config_directory.mkdir(parents=True)
    yield opened
    opened.on_exit.close()


def functions(app: App, source: str) -> dict[str, Tool]:
    tools = ToolOptions(mcp=(source,)).tool_finder(app)(source) or ()
    return {tool.spec.name: tool for tool in tools}


def configured(app: App, table: str) -> dict[str, Tool]:
    (app.config_directory / "config.toml").write_text(f"[mcp.sdk]\n{table}\n")
    return {tool.spec.name: tool for tool in ToolOptions().tool_finder(app)("sdk") or ()}


@pytest.mark.parametrize("over_http", [False, True])
def test_functions_and_results_of_an_sdk_server(app: App, http_server: HttpServer, over_http: bool) -> None:
    tools = functions(app, http_server.url if over_http else COMMAND)
    spec = tools["weather"].spec
    assert (spec.description, spec.parameters["required"]) == ("Forecast for a city.", ["city"])
    assert spec.parameters["properties"]["days"]["type"] == "integer"
    assert json.loads(tools["weather"].run({"city": "Oslo", "days": 2})) == {"city": "Oslo", "degrees": 9.0}
    assert tools["weather"].run({"city": "Oslo", "days": "?"}).startswith("the call failed: ")
    assert tools["poem"].run({}) == mcp_sdk_server.poem()
    assert tools["picture"].run({}) == "[image, image/png, 20 bytes: left out, since it is no text]"
    first, second = (int(tools["counted"].run({})) for _ in range(2))
    assert second == first + 1


def test_sdk_server_has_the_directory_and_variables_of_the_command(app: App) -> None:
    words = f'command = "{sys.executable}"\nargs = ["{SCRIPT}"]\nenv = {{ TOKEN = "a b" }}'
    directory, variables = json.loads(configured(app, words)["surroundings"].run({}))
    assert directory == str(Path.cwd())
    assert {**variables, "TOKEN": "a b"}.items() >= user_environment().items()
    assert variables["TOKEN"] == "a b"


def test_headers_of_a_table_are_sent(app: App, http_server: HttpServer) -> None:
    table = f'url = "{http_server.url}"\nheaders = {{ Authorization = "Bearer secret" }}'
    assert configured(app, table)["authorization"].run({}) == "Bearer secret"


def test_call_that_never_ends_fails_and_the_next_one_does_not(app: App, http_server: HttpServer) -> None:
    tools = configured(app, f'url = "{http_server.url}"\ntimeout = 1')
    failed = "the call failed: its server gave no answer within 1 s"
    assert tools["endless"].run({"marker": str(app.config_directory / "started")}) == failed
    assert tools["poem"].run({}) == mcp_sdk_server.poem()


def test_http_server_that_ended_is_reached_again(app: App) -> None:
    server = HttpServer()
    tools = functions(app, server.url)
    assert "cannot be reached: " in tools["crash"].run({})
    assert "cannot be reached: " in tools["poem"].run({})
    server.stop()
    server.start()
    assert tools["poem"].run({}) == mcp_sdk_server.poem()
    server.stop()


PAGE = b"<html><body><article><h1>Tides</h1><p>High at noon.</p></article></body></html>"


class Pages(LoopbackHandler):
    """A page, and for each number an answer with this status."""

    def do_GET(self) -> None:
        page = PAGE if self.path == "/page" else b""
        self.write_head(200 if page else 404, [("Content-Type", "text/html"), ("Content-Length", str(len(page)))])
        self.wfile.write(page)

    def do_POST(self) -> None:
        self.write_head(int(self.path[1:]), [("Content-Type", "text/html"), ("Content-Length", "0")])


@pytest.fixture
def pages() -> Iterator[Loopback]:
    server = Loopback(Pages)
    server.start()
    yield server
    server.stop()


def address(server: Loopback, path: object) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (200, "answered with an error: Unexpected content type: text/html"),
        (401, "refused access: HTTP status 401"),
        (404, "answered with an error: Not Found"),
    ],
)
def test_url_that_is_no_server_is_an_error(app: App, pages: Loopback, status: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        functions(app, address(pages, status))
    assert address(pages, status) in error.value.message and error.value.hint


def test_url_without_a_server_is_an_error(app: App) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UsageError, match="cannot be reached: "):
        functions(app, f"http://127.0.0.1:{port}")


# Servers of the package index, as users have them: time, fetch from a page on this machine, and git, with a state.


ZONES = {"Asia/Tokyo": "21:00", "Asia/Dubai": "16:00", "America/Lima": "07:00"}  # and their time at 12:00 UTC


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def module(name: str) -> str:
    return f"{PYTHON} -m {name}"


def calls(model: Path, home: Path, rows: dict[str, str], *words: str) -> list[dict[str, Any]]:
    """The calls of an answer to the first of the rows."""
    done = run_here({"rows": {**rows, "": "Done."}}, home, "ask", "-m", model, "-y", "--json", *words, next(iter(rows)))
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = done.object["calls"]
    return found


def test_time_of_each_row(tmp_path: Path, chatml_model: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{zone}?\n" for zone in [*ZONES, "Mars"]))
    rows = {"": "Done."}
    for zone in (*ZONES, "Mars"):
        arguments = {"source_timezone": "Etc/UTC", "time": "12:00", "target_timezone": zone}
        rows = {f"{zone}?": call("convert_time", **arguments), **rows}
    words = ("batch", source, "-o", "-", "-m", chatml_model, "--mcp", module("mcp_server_time"), "-y")
    done = run_here({"rows": rows}, tmp_path, *words)
    assert done.code == 0, done.err
    *known, unknown = [json.loads(line)["calls"][0]["result"] for line in done.out.splitlines()]
    targets = [json.loads(result)["target"] for result in known]
    assert [target["timezone"] for target in targets] == [*ZONES]
    assert [target["datetime"][11:16] for target in targets] == [*ZONES.values()]
    assert unknown.startswith("the call failed: ") and "Mars" in unknown


def test_fetch_of_a_page_on_this_machine(tmp_path: Path, chatml_model: Path, pages: Loopback) -> None:
    server = f"{module('mcp_server_fetch')} --allow-private-ips"
    [fetched] = calls(
        chatml_model, tmp_path, {"Tides?": call("fetch", url=address(pages, "page"), raw=True)}, "--mcp", server
    )
    assert "High at noon." in fetched["result"]


def test_git_keeps_what_an_earlier_call_did(tmp_path: Path, chatml_model: Path) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "-b", "main", repository], check=True)
    name = ("-c", "user.name=A", "-c", "user.email=a@localhost")
    subprocess.run(["git", "-C", repository, *name, "commit", "-q", "--allow-empty", "-m", "First"], check=True)
    path = str(repository)
    rows = {
        "Branches?": call("git_create_branch", repo_path=path, branch_name="topic"),
        "from 'main'": call("git_branch", repo_path=path, branch_type="local"),
    }
    server = f"{module('mcp_server_git')} --repository {path}"
    created, listed = calls(chatml_model, tmp_path, rows, "--mcp", server)
    assert created["result"] == "Created branch 'topic' from 'main'"
    assert listed["result"].split() == ["*", "main", "topic"]
