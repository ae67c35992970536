"""One server: its start, its functions, and their calls."""

from __future__ import annotations

import json
import shlex
from functools import cached_property, partial

from anyio.from_thread import BlockingPortal

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import short_name, text_digest
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.mcp.content import result_text
from cerebrum_cli.mcp.listed_functions import LeftOut, spec_of
from cerebrum_cli.mcp.mcp_connection import McpConnection, ServerFault
from cerebrum_cli.mcp.server_process import ServerEnded
from cerebrum_cli.mcp.server_table import ServerTable


class McpServer:
    """A server that is started when it is needed; if it has ended, the next call starts it again."""

    def __init__(self, table: ServerTable, portal: BlockingPortal, report: OnNotice) -> None:
        self._table, self._portal, self._report = table, portal, report
        self._connection: McpConnection | None = None

    @cached_property
    def tools(self) -> dict[str, Tool]:
        """The functions that a model can call, by name; reports the others. Raises UsageError."""
        table = self._table
        try:
            connection = self._connected()
        except ServerFault as fault:
            try_it = f"run it yourself to see why: {shlex.join(table.words)}" if table.words else "check its URL"
            raise self._error(str(fault), fault.hint or try_it) from fault
        listed = [function.model_dump(mode="json", exclude_none=True) for function in connection.functions]
        way = [table.words, sorted(table.env.items())] if table.words else [table.url]
        digest = text_digest(json.dumps([*way, connection.server_info, listed]))
        tools: dict[str, Tool] = {}
        for function in connection.functions:
            try:
                spec = spec_of(function.name, function.description or "", function.input_schema, tools)
            except LeftOut as problem:
                self._report(NoticeEvent(f"{self._label}: {problem}"))
            else:
                tools[spec.name] = Tool(spec, partial(self._run, spec.name), True, digest, table.name)
        if not tools:
            raise self._error("has no functions that a model can call", "omit it")
        return tools

    def close(self) -> None:
        if self._connection:
            self._connection.close()

    def _run(self, name: str, arguments: JsonObject) -> str:
        """Call a function; whatever the server does, there is a result."""
        try:
            return result_text(self._connected().call(name, arguments))
        except ServerFault as fault:
            again = ""
            if isinstance(fault.__cause__, ServerEnded):
                again = "; it starts again for the next call"
            return f"the call failed: its server {fault}{again}"

    def _connected(self) -> McpConnection:
        """The connection, which is opened first if necessary. Raises ServerFault."""
        if self._connection and not self._connection.has_ended:
            return self._connection
        try:
            self._connection = self._opened(probes=True)
        except ServerFault as fault:
            if not isinstance(fault.__cause__, ServerEnded):
                raise
            self._connection = self._opened(probes=False)  # servers made with rmcp before 3.0 end at the probe
        return self._connection

    def _opened(self, probes: bool) -> McpConnection:
        connection = McpConnection(self._table, self._portal, probes)
        connection.wait(lambda: self._report(NoticeEvent(f"waiting for {self._label}")))
        return connection

    @property
    def _label(self) -> str:
        return f"the MCP server {short_name(self._table.name)}"

    def _error(self, problem: str, hint: str) -> UsageError:
        return UsageError(f"{self._label} {problem}", hint)
