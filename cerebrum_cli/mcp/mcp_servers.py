"""The servers that a command may use, by name, and which of their functions `--tool` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import OnNotice
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import MCP_EXAMPLE
from cerebrum_cli.core.text import did_you_mean, pip_install
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.mcp.server_table import ServerTable

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from cerebrum_cli.mcp.mcp_server import McpServer


class McpServers:
    """Servers by name, each started when its functions are first asked for; close them."""

    def __init__(self, tables: Mapping[str, JsonObject], path: Path, options: Iterable[str], report: OnNotice) -> None:
        """The tables of config.toml, which are read when they are named, and commands or URLs. Raises UsageError."""
        self._tables, self._path, self._report = tables, path, report
        self._options = {option: ServerTable.of_option(option) for option in options}
        self._servers: dict[str, McpServer] = {}
        self._portal: BlockingPortal | None = None  # to the event loop of all servers
        self._on_close = ExitStack()

    def tools_of(self, source: str) -> Tools:
        """All functions of a server, by its name, or one, by NAME.FUNCTION. Raises UsageError."""
        name, function = source, ""
        server = self._server(name)
        if server is None:
            name, _, function = source.partition(".")
            server = self._server(name)
        if server is None:
            near = did_you_mean(name, [*self._tables, *self._options])
            expected = f"python, the path of a Python file (.py), or an MCP server in config.toml: {MCP_EXAMPLE}"
            raise UsageError(f"invalid tool: {source!r}", f"{near}it must be {expected}")
        tools = server.tools
        if not function:
            return tuple(tools.values())
        if function not in tools:
            problem = f"the MCP server {name} has no function {function!r}"
            raise UsageError(problem, f"{did_you_mean(function, [*tools])}it has {', '.join(tools)}")
        return (tools[function],)

    def _server(self, name: str) -> McpServer | None:
        """A server by its name. Raises ConfigError if its table is invalid; those of others do not matter."""
        if name not in self._servers:
            if name in self._tables:  # a table has its name to itself
                self._servers[name] = self._new(ServerTable.of_table(name, self._tables[name], self._path))
            elif name in self._options:
                self._servers[name] = self._new(self._options[name])
        return self._servers.get(name)

    def _new(self, table: ServerTable) -> McpServer:
        try:
            from anyio.from_thread import start_blocking_portal

            from cerebrum_cli.mcp.mcp_server import McpServer
        except ImportError as error:
            raise UsageError(f"MCP servers need mcp: {error}", pip_install('"cerebrum-cli[mcp]"')) from error
        if self._portal is None:
            self._portal = self._on_close.enter_context(start_blocking_portal())
        return McpServer(table, self._portal, self._report)

    def close(self) -> None:
        """End all servers, and wait for that."""
        for server in self._servers.values():
            server.close()
        self._on_close.close()
