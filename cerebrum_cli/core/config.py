"""config.toml: settings, and the servers and saved prompts it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from shlex import quote
from typing import Any

from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import read_small
from cerebrum_cli.core.settings import CONFIG, KEYS, OPTIONS, SAVED_PROMPT, Layer, SourcedLayer, in_directory, keys_of
from cerebrum_cli.core.text import did_you_mean

ENDPOINTS = "endpoints"
ENDPOINT_FILES = ("ca_file", "client_cert")
PROMPTS = "prompts"
INPUT = "{input}"  # in a saved prompt, the place of the question
PROMPT_KEYS = ("prompt", "schema", "extract")  # of a saved prompt, besides settings
_UNQUOTED = re.compile(
    r"^[ \t]*([\w-]+)[ \t]*=[ \t]*(?!true\b|false\b|inf\b|nan\b)([A-Za-z][^\s#\"'\[{]*)[ \t]*(?:#|$)", re.M
)


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A table `[endpoints.NAME]`: `key_env` names the environment variable that holds the API key.

    `ca_file` and `client_cert` are paths, as of an Endpoint.
    """

    url: str
    key_env: str | None = None
    served_model: str | None = None
    ca_file: str | None = None
    client_cert: str | None = None


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """Settings and a prompt under a name; `schema` is the file of a JSON Schema that constrains the answer.

    `extract` is the code block that is printed: True for the first, "last", or the first in a language.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    schema: Path | None = None
    extract: bool | str = False

    def fill(self, input: str) -> str:
        """The question for an input, which may be empty unless the prompt has a place for it. Raises UsageError."""
        if self.prompt is None:
            return input
        if INPUT not in self.prompt:
            return f"{self.prompt}\n\n{input}" if input else self.prompt
        if not input:
            problem = f"the saved prompt {self.name} uses {INPUT}, but no input was given"
            raise UsageError(problem, "give it as an argument, in a file with -f, or through a pipe")
        return self.prompt.replace(INPUT, input)

    def require_without(self, use: str, *keys: str) -> None:
        """Raise UsageError if the prompt sets a key that has no effect in a use."""
        if key := next((key for key in keys if getattr(self, key)), None):
            problem = f"the saved prompt {self.name} sets {key}, which has no effect in {use}"
            raise UsageError(problem, f"use cerebrum ask -p {quote(self.name)}")

    def table(self) -> dict[str, Any]:
        settings = {
            key: [str(item) for item in value] if isinstance(value, tuple) else value
            for key, value in self.settings.items()
        }
        own = {"prompt": self.prompt, "schema": self.schema and str(self.schema), "extract": self.extract or None}
        return settings | {key: value for key, value in own.items() if value is not None}

    def as_object(self) -> dict[str, Any]:
        settings = self.table()
        own = {key: settings.pop(key, None) for key in ("prompt", "system", "model", "schema", "extract")}
        return {"name": self.name, **own, "settings": settings}


@dataclass(frozen=True, slots=True)
class Config:
    settings: Layer = field(default_factory=dict)
    endpoints: Mapping[str, EndpointTable] = field(default_factory=dict)
    prompts: Mapping[str, SavedPrompt] = field(default_factory=dict)


def read_config(path: Path) -> Config:
    """Read a config.toml; a missing file sets nothing. Raises ConfigError with file and key."""
    text = read_config_text(path)
    return parse_config(text, path) if text else Config()


def read_config_text(path: Path) -> str:
    """Text of a user's file with its line ends, empty if it is missing. Raises ConfigError."""
    try:
        return read_small(path).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"not UTF-8 text (byte {error.start})"
        raise ConfigError(f"{path}: {problem}", "edit the file, or move it elsewhere") from error


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Parse the text of a TOML file. Raises ConfigError."""
    import tomllib

    try:
        values = tomllib.loads(text)
        repr(values)  # hexadecimal numbers of any length are read, but cannot be shown
        return values
    except (ValueError, RecursionError) as error:
        if unquoted := _UNQUOTED.search(text):
            problem = f"{path}:{line_of(text, unquoted.start())}: {unquoted[2]} is text without quotes"
            raise ConfigError(problem, f'write {unquoted[1]} = "{unquoted[2]}"') from error
        is_syntax = isinstance(error, tomllib.TOMLDecodeError)
        problem = f"invalid TOML: {error}" if is_syntax else "a value is nested too deeply, or has too many digits"
        raise ConfigError(f"{path}: {problem}", "edit the file, or move it elsewhere") from error


def parse_config(text: str, path: Path) -> Config:
    """Parse the text of a config.toml. Raises ConfigError with file and key."""
    values = parse_toml(text, path)
    endpoints, prompts = values.pop(ENDPOINTS, {}), values.pop(PROMPTS, {})
    layer: dict[str, Any] = {}
    for name, value in values.items():
        place = re.search(rf"^[ \t\[\"']*{re.escape(name)}[ \t=.\]\"']", text, re.MULTILINE)
        where = f"{path}:{line_of(text, place.start())}" if place else str(path)
        layer |= read_setting(name, value, where, (ENDPOINTS, PROMPTS))
    require_tables(prompts, f"{path}: `{PROMPTS}`", '[prompts.NAME] with prompt = "..."')
    saved = {name: read_prompt(name, table, path) for name, table in prompts.items()}
    return Config(SourcedLayer(in_directory(layer, path.parent), origin=CONFIG), read_endpoints(endpoints, path), saved)


def read_setting(name: str, value: Any, where: str, other_keys: tuple[str, ...]) -> Layer:
    """The setting of a name, converted; `other_keys` are allowed beside it. Raises ConfigError."""
    keys = keys_of(name)
    if not keys:
        known = (*KEYS, *other_keys)
        near = did_you_mean(name.replace("-", "_"), known)
        raise ConfigError(f"{where}: unknown key `{name}`", near.rstrip() or f"known keys: {', '.join(known)}")
    try:
        return {key: OPTIONS[key].convert(value) for key in keys}
    except InvalidValue as invalid:
        raise ConfigError.invalid(name, value, invalid.expected, f"{where}: ") from invalid


def read_endpoints(tables: Any, path: Path) -> dict[str, EndpointTable]:
    """Read the tables `[endpoints.NAME]`. Raises ConfigError."""
    example = '[endpoints.NAME] with url = "http://HOST:PORT"'
    require_tables(tables, f"{path}: `{ENDPOINTS}`", example)
    known = [key.name for key in fields(EndpointTable)]
    endpoints = {}
    for name, table in tables.items():
        where = f"{path}: [{ENDPOINTS}.{name}]"
        if unknown := next((key for key in table if key not in known), None):
            raise ConfigError(f"{where}: unknown key `{unknown}`", f"known keys: {', '.join(known)}")
        if wrong := next((key for key, value in table.items() if not isinstance(value, str) or not value), None):
            raise ConfigError.invalid(wrong, table[wrong], "non-empty text", f"{where}: ")
        if "url" not in table:
            raise ConfigError(f"{where}: url is missing", f"write {example}")
        paths = {key: str(path.parent / Path(table[key]).expanduser()) for key in ENDPOINT_FILES if key in table}
        endpoints[name] = EndpointTable(**table | paths)
    return endpoints


def read_prompt(name: str, table: Mapping[str, Any], path: Path) -> SavedPrompt:
    """Read a table `[prompts.NAME]`; relative paths in it are relative to config.toml. Raises ConfigError."""
    where = f"{path}: [{PROMPTS}.{name}]"
    own = {key: table[key] for key in ("prompt", "schema") if key in table}
    extract = table.get("extract", False)
    if wrong := next((key for key, value in own.items() if not isinstance(value, str) or not value.strip()), None):
        raise ConfigError.invalid(wrong, own[wrong], "non-empty text", f"{where}: ")
    if not (extract is True or extract is False or (isinstance(extract, str) and extract)):
        raise ConfigError.invalid("extract", extract, 'true, "last", or a language like "python"', f"{where}: ")
    if extract and "schema" in own:
        raise ConfigError.conflict("extract", "schema", "remove one of them", f"{where}: ")
    settings: dict[str, Any] = {}
    for key in (key for key in table if key not in PROMPT_KEYS):
        settings |= read_setting(key, table[key], where, PROMPT_KEYS)
    prompt, schema = own.get("prompt"), own.get("schema")
    file = schema and path.parent / Path(schema).expanduser()
    layer = SourcedLayer(in_directory(settings, path.parent), origin=SAVED_PROMPT)
    return SavedPrompt(name, layer, prompt and prompt.rstrip("\r\n"), file, extract)


def find_prompt(prompts: Mapping[str, SavedPrompt], name: str, is_option: bool = False) -> SavedPrompt:
    """A saved prompt by its name, which may be the value of -p. Raises UsageError if there is none."""
    if name in prompts:
        return prompts[name]
    if is_option and len(name.split()) > 1:
        hint = f"-p takes the name of a saved prompt; the question is an argument: cerebrum ask {quote(name)}"
    elif prompts:
        hint = f"{did_you_mean(name, tuple(prompts))}list all with cerebrum prompts list"
    else:
        hint = f"none are saved; create it with cerebrum prompts edit {quote(name)}"
    raise UsageError(f"no saved prompt named {name!r}", hint)


def require_tables(value: Any, where: str, example: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise ConfigError(f"{where} must contain only tables", f"write {example}")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
