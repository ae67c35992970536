"""`--mcp`, and what `--tool` takes with this package: the names of servers in config.toml."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from cerebrum_cli.cli.options import ToolOptions
from cerebrum_cli.core.declaration import TEXTS, option, option_group

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.tools import ToolFinder, Tools
    from cerebrum_cli.mcp.mcp_servers import McpServers


@option_group
class McpOptions(ToolOptions):
    mcp: tuple[str, ...] = option(
        "Add the functions of an MCP server (repeatable)", "Input", TEXTS, default=(), metavar="COMMAND"
    )

    @property
    def tool_flag(self) -> str:
        return super().tool_flag or ("--mcp" if self.mcp else "")

    @property
    def tool_sources(self) -> Sequence[str]:
        return (*super().tool_sources, *self.mcp)

    def tool_finder(self, app: App, /) -> ToolFinder:
        """What finds functions of servers; these start when they are asked for, and end with the command."""

        @cache
        def servers() -> McpServers:
            from cerebrum_cli.mcp.mcp_servers import McpServers

            path = app.config_directory / "config.toml"
            found = McpServers(app.config.mcp, path, self.mcp, app.streams.report)
            app.on_exit.callback(found.close)
            return found

        def find(source: str) -> Tools | None:
            if source not in self.mcp and (source == "python" or source.endswith(".py")):
                return None
            return servers().tools_of(source)

        return find


OPTIONS = McpOptions
