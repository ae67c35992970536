"""How a server is started: from a table `[mcp.NAME]` of config.toml, or a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Self

from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import expand_user
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import MCP_EXAMPLE
from cerebrum_cli.core.text import Texts, did_you_mean

KEYS = ("command", "args", "env", "timeout")
TIMEOUT_S = 60.0


@frozen
class ServerTable:
    """The words of a server's command, further variables of its environment, and the seconds that an answer may take.

    `name` is that of its table, or its command line.
    """

    name: str
    words: Texts
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S

    @classmethod
    def of_command(cls, command: str) -> Self:
        """The server of `--mcp`. Raises UsageError."""
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise UsageError(f"invalid --mcp: {command!r}: {error}", "close the quote") from error
        if not words:
            raise UsageError.invalid("--mcp", command, "a command, such as 'uvx mcp-server-time'")
        return cls(command, words)

    @classmethod
    def of_table(cls, name: str, table: JsonObject, path: Path) -> Self:
        """The server of a table. Raises ConfigError."""
        where = f"{path}: [mcp.{name}]: "
        if name == "python" or "." in name:  # `--tool` reads these as other tools
            raise ConfigError(f"{where}invalid name", "use another name, without dots")
        if "command" not in table:
            raise ConfigError(f"{where}command is missing", f"write {MCP_EXAMPLE}")
        for key, value in table.items():
            if key not in KEYS:
                near = did_you_mean(key, KEYS)
                raise ConfigError(f"{where}unknown key `{key}`", f"{near}known keys: {', '.join(KEYS)}")
            if not is_valid(key, value):
                raise ConfigError.invalid(key, value, EXPECTED[key], where)
        words = expand_user(table["command"]), *table.get("args", ())
        return cls(name, tuple(map(str, words)), table.get("env", {}), float(table.get("timeout", TIMEOUT_S)))


EXPECTED = {
    "command": "the name or path of a program",
    "args": "a list of texts",
    "env": "a table of texts",
    "timeout": "a number of seconds above 0",
}


def is_valid(key: str, value: Any) -> bool:
    match key:
        case "command":
            return is_text(value) and bool(value)
        case "args":
            return isinstance(value, list) and all(map(is_text, value))
        case "env":
            is_table = isinstance(value, dict) and all(map(is_text, [*value, *value.values()]))
            return is_table and all(name and "=" not in name for name in value)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value  # which no program can get
