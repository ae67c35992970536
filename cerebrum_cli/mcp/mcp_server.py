"""One server: its start, its functions, and their calls."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from cerebrum_cli.core.errors import DAMAGE, UsageError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line, short_name, text_digest
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.core.version import __version__
from cerebrum_cli.mcp.connection import END_S, McpConnection, ServerEnded
from cerebrum_cli.mcp.content import result_text
from cerebrum_cli.mcp.json_rpc import RpcError
from cerebrum_cli.mcp.listed_functions import LeftOut, spec_of
from cerebrum_cli.mcp.server_table import ServerTable

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # of the protocol, the newest first
CLIENT = {
    "protocolVersion": VERSIONS[0],
    "capabilities": {},
    "clientInfo": {"name": "cerebrum", "version": __version__},
}
MAX_FUNCTIONS = 1000  # of a server
MAX_PAGES = 100  # of the list of them
NOTICE_S = 3.0  # after which a server that starts is named


class McpServer:
    """A server whose process starts when it is needed; if it has ended, the next call starts it again."""

    def __init__(self, table: ServerTable, report: OnNotice) -> None:
        self._table = table
        self._report = report
        self._connection: McpConnection | None = None
        self._info: JsonObject = {}  # its own name and version

    @cached_property
    def tools(self) -> dict[str, Tool]:
        """The functions that a model can call, by name; reports the others. Raises UsageError."""
        with self._explained():
            listed = self._listed(self._started())
        defined_by = [self._table.words, sorted(self._table.env.items()), self._info, listed]
        digest = text_digest(json.dumps(defined_by))
        tools: dict[str, Tool] = {}
        for item in listed:
            try:
                spec = spec_of(item, tools)
            except LeftOut as problem:
                self._report(NoticeEvent(f"{self._label}: {problem}"))
            else:
                tools[spec.name] = Tool(spec, partial(self._run, spec.name), True, digest, self._table.name)
        if not tools:
            raise self._error("has no functions that a model can call", "omit it")
        return tools

    def close(self, grace_s: float = END_S) -> None:
        """End its process, which has this time to end by itself."""
        if connection := self._connection:
            self._connection = None
            connection.close(grace_s)

    def _run(self, name: str, arguments: JsonObject) -> str:
        """Call a function; whatever the server does, there is a result."""
        try:
            with self._explained():
                connection = self._started()
        except UsageError as error:
            return f"the call failed: {error.message}"
        timeout_s = self._table.timeout_s
        try:
            answer = connection.request("tools/call", {"name": name, "arguments": arguments}, timeout_s)
        except RpcError as error:
            return f"the call failed: {error}"
        except TimeoutError:
            return f"the call failed: no answer within {timeout_s:g} s"
        except ServerEnded as error:
            self.close(0.0)
            return f"{name} ended its server ({error}), which starts again for the next call"
        try:
            return result_text(answer)
        except DAMAGE:
            return "the call failed: its result is not what MCP prescribes"

    def _started(self) -> McpConnection:
        """The connection, after a greeting. Raises OSError, RpcError, ServerEnded, TimeoutError, UsageError."""
        if self._connection and not self._connection.has_ended:
            return self._connection
        self.close(0.0)
        connection = McpConnection(self._table)
        try:
            self._greet(connection)
        except BaseException:
            connection.close(0.0)
            raise
        self._connection = connection
        return connection

    def _greet(self, connection: McpConnection) -> None:
        """Agree on a version of the protocol."""
        number, timeout_s = connection.send("initialize", CLIENT), self._table.timeout_s
        try:
            greeting = connection.answer(number, min(NOTICE_S, timeout_s))
        except TimeoutError:
            if timeout_s <= NOTICE_S:
                raise
            self._report(NoticeEvent(f"waiting for {self._label}"))
            greeting = connection.answer(number, timeout_s - NOTICE_S)
        version = greeting.get("protocolVersion")
        if version not in VERSIONS:
            problem = f"speaks version {foreign_line(str(version))} of the protocol"
            raise self._error(problem, f"use a version of the server that speaks {VERSIONS[0]}, or an earlier one")
        self._info = greeting.get("serverInfo") or {}
        connection.notify("notifications/initialized", {})

    def _listed(self, connection: McpConnection) -> list[Any]:
        """All functions that the server lists, page by page."""
        listed: list[Any] = []
        params: JsonDict = {}
        deadline = time.monotonic() + self._table.timeout_s
        for _ in range(MAX_PAGES):
            page = connection.request("tools/list", params, deadline - time.monotonic())
            functions, cursor = page.get("tools"), page.get("nextCursor")
            if not isinstance(functions, list):
                raise self._error("answered without a list of functions", "update it")
            listed += functions
            if len(listed) > MAX_FUNCTIONS:
                break
            if cursor is None:
                return listed
            params = {"cursor": cursor}
        raise self._error(f"lists more than {MAX_FUNCTIONS:,} functions, or {MAX_PAGES} pages", "omit it")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what may go wrong while a server starts into a UsageError."""
        run_it = f"run it yourself to see why: {shlex.join(self._table.words)}"
        try:
            yield
        except FileNotFoundError as error:
            raise self._error(
                f"cannot be started: command not found: {self._table.words[0]}", "install it, or correct its name"
            ) from error
        except TimeoutError as error:
            raise self._error(f"gave no answer within {self._table.timeout_s:g} s", run_it) from error
        except OSError as error:
            raise self._error(f"cannot be started: {error.strerror}", run_it) from error
        except ServerEnded as error:
            raise self._error(f"ended: {error}", run_it) from error
        except RpcError as error:
            raise self._error(f"answered with an error: {foreign_line(str(error))}", run_it) from error

    @property
    def _label(self) -> str:
        return f"the MCP server {short_name(self._table.name)}"

    def _error(self, problem: str, hint: str) -> UsageError:
        return UsageError(f"{self._label} {problem}", hint)
