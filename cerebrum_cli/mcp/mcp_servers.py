"""The servers that a command may use, by name, and which of their functions `--tool` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import OnNotice
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import MCP_EXAMPLE
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.core.tools import ToolFinder, Tools
from cerebrum_cli.mcp.mcp_server import McpServer
from cerebrum_cli.mcp.server_table import ServerTable

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


def open_servers(app: App, commands: Sequence[str]) -> ToolFinder:
    """What finds functions of servers; these start when they are asked for, and end with the command."""
    path = app.config_directory / "config.toml"
    servers = McpServers(app.config.mcp, path, commands, app.streams.note)
    app.on_exit.callback(servers.close)
    return servers.tools_of


class McpServers:
    """Servers by name, each started when its functions are first asked for; close them."""

    def __init__(self, tables: Mapping[str, JsonObject], path: Path, commands: Iterable[str], report: OnNotice) -> None:
        """The tables of config.toml, which are read when they are named, and command lines. Raises UsageError."""
        self._tables, self._path, self._report = tables, path, report
        self._servers = {}
        for command in commands:
            if command not in tables:  # a table has its name to itself
                self._servers[command] = McpServer(ServerTable.of_command(command), report)

    def _server(self, name: str) -> McpServer | None:
        """A server by its name. Raises ConfigError if its table is invalid; those of others do not matter."""
        if name not in self._servers and name in self._tables:
            table = ServerTable.of_table(name, self._tables[name], self._path)
            self._servers[name] = McpServer(table, self._report)
        return self._servers.get(name)

    def tools_of(self, source: str) -> Tools:
        """All functions of a server, by its name, or one, by NAME.FUNCTION. Raises UsageError."""
        name, function = source, ""
        server = self._server(name)
        if server is None:
            name, _, function = source.partition(".")
            server = self._server(name)
        if server is None:
            near = did_you_mean(name, [*self._tables, *self._servers])
            expected = f"python, the path of a Python file (.py), or an MCP server in config.toml: {MCP_EXAMPLE}"
            raise UsageError(f"invalid tool: {source!r}", f"{near}it must be {expected}")
        tools = server.tools
        if not function:
            return tuple(tools.values())
        if function not in tools:
            problem = f"the MCP server {name} has no function {function!r}"
            raise UsageError(problem, f"{did_you_mean(function, [*tools])}it has {', '.join(tools)}")
        return (tools[function],)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
