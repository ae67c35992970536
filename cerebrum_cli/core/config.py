"""config.toml: settings, and the servers it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.files import expand_user, read_small
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import CONFIG, KEYS, OPTIONS, Layer, SourcedLayer, in_directory
from cerebrum_cli.core.text import Texts, did_you_mean

ENDPOINTS = "endpoints"
ENDPOINT_FILES = ("ca_file", "client_cert")
ENDPOINT_KEYS = ("url", "key_env", "served_model", *ENDPOINT_FILES)
MCP = "mcp"
EXAMPLE = '[endpoints.NAME] with url = "http://HOST:PORT"'
MCP_EXAMPLE = '[mcp.NAME] with command = "uvx", args = ["mcp-server-time"]'

EndpointTable = Mapping[str, str]
"""A table `[endpoints.NAME]`: fields of an Endpoint; `key_env` names the environment variable with the API key."""


@frozen
class Config:
    settings: Layer = field(default_factory=dict)
    endpoints: Mapping[str, EndpointTable] = field(default_factory=dict)
    mcp: Mapping[str, JsonObject] = field(default_factory=dict)  # tables of MCP servers, which the package `mcp` reads


def read_config(path: Path) -> Config:
    """Read a config.toml; a missing file sets nothing. Raises ConfigError with file and key."""
    text = read_config_text(path)
    if not text:  # importing what parses it takes some milliseconds
        return Config()
    values = parse_toml(text, path)
    endpoints = read_endpoints(values.pop(ENDPOINTS, {}), path)
    mcp = values.pop(MCP, {})
    require_tables(MCP, mcp, path, MCP_EXAMPLE)
    settings = read_settings(values, text, path, (ENDPOINTS, MCP))
    return Config(SourcedLayer(settings, origin=CONFIG), endpoints, mcp)


def read_config_text(path: Path) -> str:
    """Text of a user's file, empty if it is missing. Raises ConfigError."""
    try:
        return read_small(path).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"not UTF-8 text (byte {error.start})"
        raise ConfigError(f"{path}: {problem}", "edit the file, or move it elsewhere") from error


def parse_toml(text: str, path: Path) -> JsonDict:
    """Parse the text of a TOML file. Raises ConfigError."""
    import tomllib

    try:
        values = tomllib.loads(text)
        repr(values)  # hexadecimal numbers of any length are read, but cannot be shown
        return values
    except (ValueError, RecursionError) as error:
        hint = "edit the file, or move it elsewhere"
        if "Invalid value" in str(error):
            hint = f'{hint}; text needs quotes: model = "starter"'
        raise ConfigError(f"{path}: invalid TOML: {error}", hint) from error


def read_settings(values: JsonObject, text: str, path: Path, other_keys: Texts) -> Layer:
    """The settings in a file, with paths relative to its directory; `other_keys` are allowed. Raises ConfigError."""
    layer: JsonDict = {}
    for name, value in values.items():
        where = str(path)
        if place := re.search(rf"^[ \t\[\"']*{re.escape(name)}[ \t=.\]\"']", text, re.MULTILINE):
            line = text.count("\n", 0, place.start()) + 1
            where = f"{path}:{line}"
        key = name.replace("-", "_")
        if key not in OPTIONS:
            known = (*KEYS, *other_keys)
            near = did_you_mean(key, known)
            raise ConfigError(f"{where}: unknown key `{name}`", near.rstrip() or f"known keys: {', '.join(known)}")
        try:
            layer[key] = OPTIONS[key].convert(value)
        except InvalidValue as invalid:
            raise ConfigError.invalid(name, value, invalid.expected, f"{where}: ") from invalid
    return in_directory(layer, path.parent)


def read_endpoints(tables: Any, path: Path) -> dict[str, EndpointTable]:
    """Read the tables `[endpoints.NAME]`. Raises ConfigError."""
    require_tables(ENDPOINTS, tables, path, EXAMPLE)
    return {name: read_endpoint(name, table, path) for name, table in tables.items()}


def require_tables(name: str, tables: Any, path: Path, example: str) -> None:
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{path}: `{name}` must contain only tables", f"write {example}")


def read_endpoint(name: str, table: JsonObject, path: Path) -> EndpointTable:
    where = f"{path}: [{ENDPOINTS}.{name}]"
    values = dict(table)
    for key, value in table.items():
        if key not in ENDPOINT_KEYS:
            raise ConfigError(f"{where}: unknown key `{key}`", f"known keys: {', '.join(ENDPOINT_KEYS)}")
        if not isinstance(value, str) or not value:
            raise ConfigError.invalid(key, value, "non-empty text", f"{where}: ")
        if key in ENDPOINT_FILES:
            values[key] = str(path.parent / expand_user(value))
    if "url" not in table:
        raise ConfigError(f"{where}: url is missing", f"write {EXAMPLE}")
    return values
