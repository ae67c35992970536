"""How a server is reached: by a table `[mcp.NAME]` of config.toml, a command line or a URL."""

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

EXPECTED = {  # of the keys of a table
    "command": "the name or path of a program",
    "args": "a list of texts",
    "env": "a table of texts",
    "url": "a URL that begins with http:// or https://",
    "headers": "a table of texts",
    "timeout": "a number of seconds above 0",
}
TIMEOUT_S = 30.0


@frozen
class ServerTable:
    """The words of a server's command and further variables for it, or its URL and headers of each request.

    `name` is that of its table, or its command line or URL. `timeout_s` limits its start and each answer.
    """

    name: str
    words: Texts = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S

    @classmethod
    def of_option(cls, value: str) -> Self:
        """The server of `--mcp`. Raises UsageError."""
        if is_url(value):
            return cls(value, url=value)
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            raise UsageError(f"invalid --mcp: {value!r}: {error}", "close the quote") from error
        if not words:
            raise UsageError.invalid("--mcp", value, "a command, such as 'uvx mcp-server-time', or a URL")
        return cls(value, words)

    @classmethod
    def of_table(cls, name: str, table: JsonObject, path: Path) -> Self:
        """The server of a table. Raises ConfigError."""
        where = f"{path}: [mcp.{name}]: "
        if name == "python" or "." in name:  # `--tool` reads these as other tools
            raise ConfigError(f"{where}invalid name", "use another name, without dots")
        for key, value in table.items():
            if key not in EXPECTED:
                near = did_you_mean(key, [*EXPECTED])
                raise ConfigError(f"{where}unknown key `{key}`", f"{near}known keys: {', '.join(EXPECTED)}")
            if not is_valid(key, value):
                raise ConfigError.invalid(key, value, EXPECTED[key], where)
        if ("command" in table) == ("url" in table):
            problem = "command and url are both given" if "url" in table else "command or url is missing"
            raise ConfigError(f"{where}{problem}", f"write {MCP_EXAMPLE}, or url alone")
        words = ()
        if "command" in table:
            words = (str(expand_user(table["command"])), *table.get("args", ()))
        return cls(
            name,
            words,
            table.get("env", {}),
            table.get("url", ""),
            table.get("headers", {}),
            float(table.get("timeout", TIMEOUT_S)),
        )


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def is_valid(key: str, value: Any) -> bool:
    match key:
        case "command":
            return is_text(value) and bool(value)
        case "url":
            return is_text(value) and is_url(value)
        case "args":
            return isinstance(value, list) and all(map(is_text, value))
        case "env" | "headers":
            is_table = isinstance(value, dict) and all(map(is_text, [*value, *value.values()]))
            return is_table and all(name and "=" not in name for name in value)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value  # which no program can get
