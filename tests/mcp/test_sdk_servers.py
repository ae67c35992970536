"""Servers made with the SDK, over standard streams and over HTTP, and servers of the package index."""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import PYTHON
from loopback import Loopback, LoopbackHandler
from mcp_user import McpUser
from waiting import wait_until

from cerebrum_cli.core.environment import user_environment
from cerebrum_cli.core.errors import UsageError

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parents[1] / "support" / "servers" / "mcp_sdk_server.py")  # an import takes a second
POEM = "  ä € \U0001f600\n\n\tend "


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class HttpServer:
    """The server on a port, which can be started again."""

    def __init__(self) -> None:
        self.port = free_port()
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


@pytest.mark.parametrize("over_http", [False, True])
def test_functions_and_results_of_an_sdk_server(mcp_user: McpUser, http_server: HttpServer, over_http: bool) -> None:
    source = http_server.url if over_http else shlex.join([sys.executable, SCRIPT])
    tools = mcp_user.functions(source, source)
    spec = tools["weather"].spec
    assert (spec.description, spec.parameters["required"]) == ("Forecast for a city.", ["city"])
    assert spec.parameters["properties"]["days"]["type"] == "integer"
    assert json.loads(tools["weather"].run({"city": "Oslo", "days": 2})) == {"city": "Oslo", "degrees": 9.0}
    assert tools["weather"].run({"city": "Oslo", "days": "?"}).startswith("the call failed: ")
    assert tools["poem"].run({}) == POEM
    assert tools["picture"].run({}) == "[image, image/png, 20 bytes: left out, since it is no text]"
    first, second = (int(tools["counted"].run({})) for _ in range(2))
    assert second == first + 1


def test_sdk_server_has_the_directory_and_variables_of_the_command(mcp_user: McpUser) -> None:
    mcp_user.configure("sdk", command=sys.executable, args=[SCRIPT], env={"TOKEN": "a b"})
    directory, variables = json.loads(mcp_user.functions("sdk")["surroundings"].run({}))
    assert directory == str(Path.cwd())
    assert {**variables, "TOKEN": "a b"}.items() >= user_environment().items()
    assert variables["TOKEN"] == "a b"


def test_headers_and_the_timeout_of_a_table_apply(mcp_user: McpUser, http_server: HttpServer, tmp_path: Path) -> None:
    mcp_user.configure("sdk", url=http_server.url, timeout=1, headers={"Authorization": "Bearer secret"})
    tools = mcp_user.functions("sdk")
    assert tools["authorization"].run({}) == "Bearer secret"
    failed = "the call failed: its server gave no answer within 1 s"
    assert tools["endless"].run({"marker": str(tmp_path / "started")}) == failed
    assert tools["poem"].run({}) == POEM


def test_http_server_that_ended_is_reached_again(mcp_user: McpUser) -> None:
    server = HttpServer()
    tools = mcp_user.functions(server.url, server.url)
    assert "cannot be reached: " in tools["crash"].run({})
    assert "cannot be reached: " in tools["poem"].run({})
    server.stop()
    server.start()
    assert tools["poem"].run({}) == POEM
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
    return f"http://127.0.0.1:{server.server_port}/{path}"


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (200, "answered with an error: Unexpected content type: text/html"),
        (401, "refused access: HTTP status 401"),
        (404, "answered with an error: Not Found"),
        (None, "cannot be reached: "),
    ],
)
def test_url_that_is_no_server_is_an_error(
    mcp_user: McpUser, pages: Loopback, status: int | None, problem: str
) -> None:
    url = address(pages, status) if status else f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UsageError, match=problem) as error:
        mcp_user.functions(url, url)
    assert url in error.value.message and error.value.hint


# Servers of the package index, as users have them.


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_servers_of_the_package_index_run_calls_in_order(mcp_user: McpUser, pages: Loopback) -> None:
    path = str(mcp_user.home / "repository")
    subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)
    name = ("-c", "user.name=A", "-c", "user.email=a@localhost")
    subprocess.run(["git", "-C", path, *name, "commit", "-q", "--allow-empty", "-m", "First"], check=True)
    noon = {"source_timezone": "Etc/UTC", "time": "12:00"}
    calls = (
        *(call("convert_time", target_timezone=zone, **noon) for zone in ("Asia/Tokyo", "Mars")),
        call("fetch", url=address(pages, "page"), raw=True),
        call("git_create_branch", repo_path=path, branch_name="topic"),
        call("git_branch", repo_path=path, branch_type="local"),
    )
    servers = ("mcp_server_time", "mcp_server_fetch --allow-private-ips", f"mcp_server_git --repository {path}")
    options = [word for server in servers for word in ("--mcp", f"{PYTHON} -m {server}")]
    done = mcp_user.run({"All?": "\n".join(calls), "": "Done."}, "ask", "-y", "--json", *options, "All?")
    assert done.code == 0, done.err
    tokyo, mars, page, created, listed = (made["result"] for made in done.object["calls"])
    assert json.loads(tokyo)["target"]["datetime"][11:16] == "21:00"
    assert mars.startswith("the call failed: ") and "Mars" in mars
    assert "High at noon." in page
    assert created == "Created branch 'topic' from 'main'"
    assert listed.split() == ["*", "main", "topic"]
