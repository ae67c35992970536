"""A user of MCP servers, which config.toml has tables of."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from command_line import Finished
from scripted_command import app_for, run_here

from cerebrum_cli.cli.options import ToolOptions
from cerebrum_cli.core.tools import Tool
from cerebrum_cli.terminal.streams import Streams


class McpUser:
    """Finds functions as one command does, in this process, or runs commands on a scripted model."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.err = StringIO()
        self.app = app_for({}, home, Streams(StringIO(), self.err, None, False, False, False))
        self.app.config_directory.mkdir(parents=True)
        self.config = self.app.config_directory / "config.toml"

    def configure(self, name: str, **table: Any) -> None:
        """Add a table; an object is one of texts."""
        lines = [f"{key} = {toml(value)}" for key, value in table.items()]
        with self.config.open("a") as file:
            file.write("\n".join([f"[mcp.{name}]", *lines, ""]))

    def functions(self, source: str, *given: str) -> dict[str, Tool]:
        """Functions by name of a source that `--tool` or, if it is given, `--mcp` names."""
        tools = ToolOptions(mcp=given).tool_finder(self.app)(source) or ()
        return {tool.spec.name: tool for tool in tools}

    def run(self, rows: dict[str, str], command: str, *arguments: str | Path) -> Finished:
        """Run a command with a model that has these replies, and calls whatever it calls."""
        return run_here({"rows": rows}, self.home, command, *arguments, "-m", self.model)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(text)}" for key, text in value.items()) + "}"
    return json.dumps(value)
