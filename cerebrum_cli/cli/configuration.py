"""`cerebrum config`: the settings in config.toml."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cerebrum_cli.cli.options import JsonArray, QuietOptions
from cerebrum_cli.cli.signature import Argument, composed
from cerebrum_cli.cli.variables import variable_that_sets
from cerebrum_cli.core.config import parse_toml, read_config_text
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import atomic_write, translate_os_errors
from cerebrum_cli.core.paths import absolute_reference
from cerebrum_cli.core.settings import KEYS, OPTIONS, in_directory
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.terminal.tables import print_columns, print_rows

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

    from cerebrum_cli.cli.app import App

ACTIONS = ("list", "set", "unset")
USAGE = "write cerebrum config, cerebrum config set KEY VALUE, or cerebrum config unset KEY"
ENVIRONMENT_TABLE = ".env."  # in the name of a variable for an MCP server, which may be secret
HIDDEN = "***"
PRIVATE = 0o600


def actions(_: App) -> Iterable[str]:
    return ACTIONS


def keys(_: App) -> Iterable[str]:
    return KEYS


@composed
def config(
    app: App,
    _: QuietOptions,
    action: Annotated[str | None, Argument("list|set|unset", "What to do [default: list]", actions)] = None,
    key: Annotated[str | None, Argument("KEY", "A setting; cerebrum ask --set help lists them", keys)] = None,
    values: Annotated[list[str] | None, Argument("VALUE...", "Its value, or the values of a list")] = None,
    json: JsonArray = False,
) -> None:
    """Settings in config.toml apply to every command; its comments are kept.

    Examples:
      cerebrum config set model cerebrum-7b
      cerebrum config set temperature 0.2
      cerebrum config unset temperature
    """
    path = app.config_directory / "config.toml"
    match action, key, values:
        case None | "list", None, None:
            list_values(app, path, json)
        case "set", str(), [*_]:
            set_value(app, path, key, values)
        case "unset", str(), None:
            unset(app, path, key)
        case "list" | "set" | "unset", _, _:
            raise UsageError(f"missing or unexpected argument of config {action}", USAGE)
        case _:
            raise UsageError(f"unknown argument {action!r}", USAGE)


def list_values(app: App, path: Path, json: bool) -> None:
    """Print what config.toml sets, tables by names such as endpoints.gpu.url."""
    rows = []
    for key, value in flat(parse_toml(read_config_text(path), path)):
        rows.append({"key": key, "value": HIDDEN if ENVIRONMENT_TABLE in key else plain(value)})
    show = partial(print_columns, {"key": "key", "value": lambda row: shown(row["value"])}, shorten="value")
    print_rows(app.streams, rows, json, show, "no settings; cerebrum config set KEY VALUE makes one")
    app.streams.info(f"file: {path}")


def flat(table: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                yield from flat(item, f"{prefix}{key}[{index}].")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> Any:
    """A value of TOML as one of JSON: dates and numbers that JSON lacks as text."""
    if isinstance(value, list):
        return list(map(plain, value))
    is_exact = isinstance(value, int | str) or (isinstance(value, float) and isfinite(value))
    return value if is_exact else str(value)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def set_value(app: App, path: Path, name: str, texts: list[str]) -> None:
    """Write a setting, with absolute paths. Raises UsageError for a value that it cannot have."""
    key = require_key(name)
    if len(texts) > 1 and not OPTIONS[key].kind.is_list:
        raise UsageError(f"several values for {name}", f"quote a value with spaces: '{' '.join(texts)}'")
    value = OPTIONS[key].parse(texts, name, has_quotes=False)
    value = in_directory({key: value}, Path.cwd())[key]
    if key == "model":
        value = absolute_reference(value)
    value = list(value) if isinstance(value, tuple) else value
    document = read_document(path)
    if before := spellings(document, key):  # which have comments
        document[before[0]] = value
        for other in before[1:]:
            del document[other]
    else:
        document = with_keys(document, {key: value})
    write(path, document)
    app.streams.report(f"{name} set to {shown(value)} in {path}")
    if over := variable_that_sets(key):
        app.streams.note(f"the environment variable {over} overrides it", f"unset {over}")


def unset(app: App, path: Path, name: str) -> None:
    """Remove a setting; also one that is unknown, which no other command would read."""
    document = read_document(path)
    found = [name] if name in document else spellings(document, key_of(name))
    if isinstance(document.get(name.partition(".")[0]), dict):
        raise UsageError(f"{name} is a table, or a part of one", f"edit {path}")
    if not found:
        require_key(name)
        raise UsageError(f"{path} does not set {name}", "cerebrum config lists what it sets")
    for each in found:
        del document[each]
    write(path, document)
    app.streams.report(f"{name} removed from {path}")


def key_of(name: str) -> str:
    return name.replace("-", "_")


def require_key(name: str) -> str:
    """The key of a setting whose name may have dashes. Raises UsageError if there is none."""
    key = key_of(name)
    if key in OPTIONS:
        return key
    near = did_you_mean(key, KEYS)
    raise UsageError(f"there is no setting {name!r}", f"{near}list all with cerebrum ask --set help")


def spellings(document: TOMLDocument, key: str) -> list[str]:
    """The names in a document that stand for a key."""
    return [name for name in document if key_of(name) == key]


def read_document(path: Path) -> TOMLDocument:
    """The document with its comments. Raises ConfigError."""
    import tomlkit

    text = read_config_text(path)
    parse_toml(text, path)  # for its errors
    return tomlkit.parse(text)


def with_keys(document: TOMLDocument, values: dict[str, Any]) -> TOMLDocument:
    """A document with further settings; before the comment of the first table if it has only tables."""
    import tomlkit

    if all(isinstance(value, dict) for value in document.values()):
        blank_line = "\n" if document else ""
        return tomlkit.parse(tomlkit.dumps(values) + blank_line + tomlkit.dumps(document))
    document.update(values)
    return document


def write(path: Path, document: TOMLDocument) -> None:
    import tomlkit

    mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE
    with translate_os_errors(ConfigError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path.resolve(), tomlkit.dumps(document).encode(), mode=mode)
