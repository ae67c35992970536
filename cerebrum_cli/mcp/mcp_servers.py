"""The servers that a command may use, by name, and which of their functions `--tool` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from cerebrum_cli.core.config import MCP_EXAMPLE
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import OnNotice
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.mcp.mcp_server import McpServer
from cerebrum_cli.mcp.server_table import ServerTable


class McpServers:
    """Servers by name, each started when its functions are first asked for; close them."""

    def __init__(self, tables: Iterable[ServerTable], report: OnNotice) -> None:
        self._servers = {table.name: McpServer(table, report) for table in tables}

    @classmethod
    def configured(
        cls, tables: Mapping[str, JsonObject], path: Path, commands: Iterable[str], report: OnNotice
    ) -> Self:
        """The servers of config.toml, and those of command lines. Raises ConfigError, UsageError."""
        named = [ServerTable.of_table(name, table, path) for name, table in tables.items()]
        return cls([*map(ServerTable.of_command, commands), *named], report)  # a table has its name to itself

    def tools_of(self, source: str) -> Tools:
        """All functions of a server, by its name, or one, by NAME.FUNCTION. Raises UsageError."""
        name, function = source, ""
        if source not in self._servers:
            name, _, function = source.partition(".")
        if name not in self._servers:
            near = did_you_mean(name, [*self._servers])
            expected = f"python, the path of a Python file (.py), or an MCP server in config.toml: {MCP_EXAMPLE}"
            raise UsageError(f"invalid tool: {source!r}", f"{near}it must be {expected}")
        tools = self._servers[name].tools
        if not function:
            return tuple(tools.values())
        if function not in tools:
            problem = f"the MCP server {name} has no function {function!r}"
            raise UsageError(problem, f"{did_you_mean(function, [*tools])}it has {', '.join(tools)}")
        return (tools[function],)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
