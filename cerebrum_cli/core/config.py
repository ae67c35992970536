"""config.toml: settings, and the servers it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.settings import KEYS, Layer, convert, in_directory

ENDPOINTS = "endpoints"
_UNQUOTED = re.compile(
    r"^[ \t]*([\w-]+)[ \t]*=[ \t]*(?!true\b|false\b|inf\b|nan\b)([A-Za-z][^\s#\"'\[{]*)[ \t]*(?:#|$)", re.M
)


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A table `[endpoints.NAME]`: `key_env` names the environment variable that holds the API key."""

    url: str
    key_env: str | None = None
    served_model: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """Contents of a config.toml."""

    settings: Layer = field(default_factory=dict)
    endpoints: Mapping[str, EndpointTable] = field(default_factory=dict)


def read_config(path: Path) -> Config:
    """Read a config.toml; a missing file sets nothing. Raises ConfigError with file and key."""
    import tomllib

    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if unquoted := _UNQUOTED.search(text):
            problem = f"{path}:{line_of(text, unquoted.start())}: {unquoted[2]} is text without quotes"
            raise ConfigError(problem, f'write {unquoted[1]} = "{unquoted[2]}"') from error
        raise ConfigError(f"{path}: {error}", "fix the file, or move it elsewhere") from error
    tables = values.pop(ENDPOINTS, {})
    layer = {}
    for name, value in values.items():
        key = name.replace("-", "_")
        place = re.search(rf"^[ \t\[\"']*{re.escape(name)}[ \t=.\]\"']", text, re.MULTILINE)
        where = f"{path}:{line_of(text, place.start())}" if place else str(path)
        if key not in KEYS:
            known = (*KEYS, ENDPOINTS)
            near = "".join(f"did you mean {match}? " for match in get_close_matches(key, known, 1))
            raise ConfigError(f"{where}: unknown key `{name}`", f"{near}known keys: {', '.join(known)}")
        if expected := convert(key, value)[1]:
            raise ConfigError(f"{where}: {name} is {value!r}", f"it must be {expected}")
        layer[key] = value
    return Config(in_directory(layer, path.parent), read_endpoints(tables, path))


def read_endpoints(tables: Any, path: Path) -> dict[str, EndpointTable]:
    """Read the tables `[endpoints.NAME]`. Raises ConfigError."""
    example = '[endpoints.NAME] with url = "http://HOST:PORT"'
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{path}: `{ENDPOINTS}` is not a group of tables", f"write {example}")
    known = [each.name for each in fields(EndpointTable)]
    endpoints = {}
    for name, table in tables.items():
        where = f"{path}: [{ENDPOINTS}.{name}]"
        if unknown := next((key for key in table if key not in known), None):
            raise ConfigError(f"{where}: unknown key `{unknown}`", f"known keys: {', '.join(known)}")
        if wrong := next((key for key, value in table.items() if not isinstance(value, str) or not value), None):
            raise ConfigError(f"{where}: {wrong} is {table[wrong]!r}", "it must be text")
        if "url" not in table:
            raise ConfigError(f"{where}: there is no url", f"write {example}")
        endpoints[name] = EndpointTable(**table)
    return endpoints


def line_of(text: str, position: int) -> int:
    """Number of the line at a position, from 1."""
    return text.count("\n", 0, position) + 1
