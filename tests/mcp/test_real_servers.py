"""Servers of the package index, as users have them: time, fetch from a page on this machine, and git, with a state."""

import json
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from command_line import PYTHON
from loopback import Loopback
from scripted_command import run_here

pytestmark = pytest.mark.slow

ZONES = {"Asia/Tokyo": "21:00", "Asia/Dubai": "16:00", "America/Lima": "07:00"}  # and their time at 12:00 UTC


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def module(name: str) -> str:
    return f"{PYTHON} -m {name}"


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/page"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if found:
            self.wfile.write(b"<html><body><article><h1>Tides</h1><p>High at noon.</p></article></body></html>")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    server = Loopback(Page)
    server.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/page"
    server.stop()


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


def test_fetch_of_a_page_on_this_machine(tmp_path: Path, chatml_model: Path, page: str) -> None:
    server = f"{module('mcp_server_fetch')} --allow-private-ips"
    [fetched] = calls(chatml_model, tmp_path, {"Tides?": call("fetch", url=page, raw=True)}, "--mcp", server)
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
