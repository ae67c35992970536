"""Settings: partial layers merged by `fold` into one frozen value.

Lowest layer first: the defaults below and in core/sampling.py, the model's file, its row in models.toml, config.toml,
CEREBRUM_* variables, the saved prompt that `-p` names, the command line. config.toml also names servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.declaration import (
    ADAPTERS,
    CACHE,
    EFFORTS,
    INTEGER,
    LAYERS,
    NAME,
    NUMBER,
    SWITCH,
    THINKING,
    InvalidValue,
    option,
    options_of,
    switch,
    variable,
)
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import atomic_write, expand_user, lock_file, read_small, remove, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLED_TEMPERATURE, SamplingParams
from cerebrum_cli.core.text import Texts, did_you_mean
from cerebrum_cli.core.tools import Tools

Layer = Mapping[str, Any]
EndpointTable = Mapping[str, str]
"""A table `[endpoints.NAME]`: fields of an Endpoint; `key_env` names the environment variable with the API key."""

DEFAULT, MODEL_FILE, CATALOGUE = "default", "model file", "catalog"  # origins of what no user has set
RECOMMENDED = (DEFAULT, MODEL_FILE, CATALOGUE)
CONFIG, SESSION, SAVED_PROMPT = "config.toml", "session", "saved prompt"
PRIVATE = 0o600  # mode of a new config.toml
COMMAND_LINE, SLASH_SET = "command line", "/set"
CHOSEN = (COMMAND_LINE, SLASH_SET)  # for this command
ENVIRONMENT = variable("")  # how its origins begin
EMBEDDED = "embedded"  # the format that the chat template in a model's file writes
ENDPOINTS = "endpoints"
ENDPOINT_FILES = ("ca_file", "client_cert")
ENDPOINT_KEYS = ("url", "key_env", "served_model", *ENDPOINT_FILES)
MCP = "mcp"
EXAMPLE = '[endpoints.NAME] with url = "http://HOST:PORT"'
MCP_EXAMPLE = '[mcp.NAME] with command = "uvx", args = ["mcp-server-time"]'
MAX_PARALLEL = 256  # sequences llama.cpp supports
CACHE_TYPES = ("f16", "q8_0", "q4_0")  # of the KV cache, for its keys and its values


class SourcedLayer(dict[str, Any]):
    """A layer merged from others, later ones over earlier ones, that knows where each value comes from.

    `origin` is that of layers without origins of their own. None sets nothing.
    """

    def __init__(self, *layers: Layer, origin: str = COMMAND_LINE) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}
        for layer in layers:
            known = layer.origins if isinstance(layer, SourcedLayer) else {}
            for key, value in layer.items():
                self.put(key, value, known.get(key, origin))

    @property
    def typed(self) -> list[str]:
        """The keys that the command line sets."""
        return [key for key, origin in self.origins.items() if origin == COMMAND_LINE]

    def put(self, key: str, value: Any, origin: str) -> None:
        if value is not None:
            self[key] = value
            self.origins[key] = origin


@frozen
class Settings(SamplingParams):
    """Everything that can be set for a command, with all layers merged; None leaves a choice to the model or machine.

    `lora` are LoRA adapters, each as FILE or FILE:SCALE. `cache_gb` limits the prompt cache on disk, in GB; 0 turns it
    off. `origins` is where values that are not defaults come from.
    """

    model: str | None = option("Model to use [default: see cerebrum list]", "Model", NAME, short="-m", metavar="MODEL")
    system: str | None = option("System prompt [default: the format's own]", "Input", short="-s", metavar="TEXT")
    format: str | None = option(
        "Prompt format, or a template [default: the model's]",
        "Model",
        NAME,
        alias="--chat-template",
        metavar="NAME|FILE",
    )
    ctx: int | None = option(
        "Context size in tokens [default: up to 8192 or 32768]",
        "Model",
        INTEGER,
        metavar="N",
        least=1,
        local=True,
    )
    lora: tuple[str, ...] = option(
        "Apply a LoRA adapter, or none (repeatable)", "Model", ADAPTERS, default=(), metavar="FILE[:SCALE]"
    )
    threads: int | None = option(
        "CPU threads [default: one per performance core]",
        "Model",
        INTEGER,
        short="-t",
        metavar="N",
        least=1,
        most=1024,
        local=True,
    )
    gpu_layers: str = option(
        "Layers on the GPU, auto or all [default: auto]",
        "Model",
        LAYERS,
        default="auto",
        short="-ngl",
        metavar="N",
        choices=("auto", "all"),
        local=True,
    )
    cpu_moe: str = option(
        "Layers whose experts stay on the CPU [default: auto]",
        kind=LAYERS,
        default="auto",
        choices=("auto", "off"),
        local=True,
    )
    cache_type: str | None = option(
        "Type of cached keys and values, or KEYS:VALUES [default: f16]", kind=CACHE, choices=CACHE_TYPES, local=True
    )
    flash_attn: str | None = option("Flash attention [default: auto]", choices=("auto", "on", "off"), local=True)
    think: str | None = option(
        "Reasoning: on, off, N tokens, low, medium or high",
        "Sampling",
        THINKING,
        metavar="EFFORT",
        choices=("on", "off", *EFFORTS),
    )
    show_thinking: bool = switch("Show reasoning as it is generated [default: off]", "Output")
    no_log: bool = switch("Save no session, history or prompt cache [default: off]", "Output")
    markdown: bool = option("Format Markdown and mathematics on a terminal [default: on]", kind=SWITCH, default=True)
    vi: bool = switch("Edit with vi keys [default: off]")
    bell: bool = switch("Ring the bell after replies of over 10 s [default: off]")
    loop_check: bool = option("End replies that repeat themselves [default: on]", kind=SWITCH, default=True)
    speculative: bool | None = option("Speculative decoding (prompt lookup) [default: on]", kind=SWITCH, local=True)
    cache_gb: float = option(
        "Limit of the prompt cache in GB; 0: off [default: 4]", kind=NUMBER, default=4.0, least=0, local=True
    )
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def origin(self, key: str) -> str:
        """Where a value comes from: "default", "model file", "CEREBRUM_TOP_K"."""
        return self.origins.get(key, DEFAULT)

    def for_samples(self, by: str) -> Settings:
        """These settings for several samples of one prompt, which are all the same at temperature 0.

        `by` is what asks for samples. Raises UsageError if the user has chosen 0; otherwise it becomes 0.7.
        """
        if self.temperature > 0:
            return self
        origin = self.origin("temperature")
        if origin in RECOMMENDED:
            return replace(self, temperature=SAMPLED_TEMPERATURE, origins={**self.origins, "temperature": by})
        hint = "leave temperature unset, or set it above 0"
        if origin not in CHOSEN:
            hint = f"set temperature above 0; {origin} sets 0"
        raise UsageError(f"{by} needs a temperature above 0: at 0 all samples are the same", hint)

    def changed(self, changes: Layer) -> Settings:
        """These settings with changes by name. Raises UsageError for an unknown name or an invalid value."""
        require_known(changes)
        layer = SourcedLayer(changes)
        values = {key: OPTIONS[key].validate(value, key) for key, value in layer.items()}
        return replace(self, **values, origins={**self.origins, **layer.origins})

    def applied_to(self, conversation: Conversation, tools: Tools = ()) -> Conversation:
        """A conversation as it is asked: with the mode of thinking, and the functions that may be called."""
        specs = tuple(tool.spec for tool in tools) or conversation.tools
        return replace(conversation, thinks=self.thinks, effort=self.effort, tools=specs)

    def require_no_adapters(self, option: str) -> None:
        """Raise UsageError for adapters, with an option that cannot apply them."""
        if self.lora:
            problem = f"{option} cannot apply the adapter {self.lora[0]}: adapters apply to local models"
            hint = "start the server with it, and use --lora none" if option == "--endpoint" else "use --lora none"
            raise UsageError(problem, hint)

    @property
    def template_file(self) -> Path | None:
        """The file of a chat template, if the format is one."""
        return Path(expand_user(self.format)) if self.format and names_file(self.format) else None

    @property
    def cache_types(self) -> tuple[str, str]:
        """The types of cached keys and values."""
        keys, _, values = (self.cache_type or CACHE_TYPES[0]).partition(":")
        return keys, values or keys

    @property
    def thinks(self) -> bool | None:
        """Whether a model is to reason before it answers; None leaves it to the chat template."""
        return None if self.think is None else self.think != "off"

    @property
    def reasoning_limit(self) -> int | None:
        """Number of tokens that a model may reason for; None for any number."""
        return None if self.think in (None, "on", *EFFORTS) else int(self.think.replace("off", "0"))

    @property
    def effort(self) -> str | None:
        """How hard a model is to reason, in the words of its chat template; None leaves it to the template."""
        return self.think if self.think in EFFORTS else None


OPTIONS = options_of(Settings)
SAMPLING_KEYS = tuple(options_of(SamplingParams))
GENERATION_KEYS = (*SAMPLING_KEYS, "think", "loop_check")
KEYS = tuple(OPTIONS)
CHAT_KEYS = ("vi", "bell")  # of no effect on a single answer
DIALOGUE_KEYS = (
    "speculative",
    "cache_gb",
    "show_thinking",
    "no_log",
    "markdown",
    *CHAT_KEYS,
)  # of no effect on many rows
LOAD_KEYS = tuple(key for key in KEYS if key not in (*GENERATION_KEYS, *DIALOGUE_KEYS))
REPLY_KEYS = (*LOAD_KEYS, *GENERATION_KEYS)  # of commands that generate replies
# Tables of a layer that apply while `think` is on or off.
WITH_THINKING, WITHOUT_THINKING = MODES = ("thinking", "no_thinking")
LOCAL_KEYS = tuple(key for key, declared in OPTIONS.items() if declared.local)


def mode_of(think: str) -> str:
    """The table of a layer that applies with a value of the setting `think`."""
    return WITHOUT_THINKING if think == "off" else WITH_THINKING


def require_known(names: Iterable[str]) -> None:
    """Raise UsageError for a name that is not one of a setting."""
    for name in names:
        if name not in OPTIONS:
            raise UsageError(f"unknown setting {name!r}", "cerebrum ask --set help lists them")


def fold(*layers: Layer) -> Settings:
    """Merge layers, later ones over earlier ones; None in a layer sets nothing. Raises UsageError.

    A layer may have tables for one mode only. The mode is that of the merged `think`.
    """
    mode = ""
    for layer in layers:
        if layer.get("think") is not None:
            mode = mode_of(OPTIONS["think"].validate(layer["think"]))
    parts = []
    for layer in layers:
        parts += [layer, layer.get(mode, {})]
    merged = SourcedLayer(*parts)
    values = {key: OPTIONS[key].validate(value) for key, value in merged.items() if key in OPTIONS}
    return Settings(**values, origins=merged.origins)


def reply_room(context_size: int, max_tokens: int | None, longest: int = 0) -> int:
    """Tokens that a reply needs in a context: 1/4 of it, or as many as the longest so far, up to half of it.

    At most its maximum tokens.
    """
    room = max(context_size // 4, min(longest, context_size // 2))
    return min(max_tokens or context_size, room)


def without_keys(layer: Layer, keys: Iterable[str]) -> SourcedLayer:
    kept = SourcedLayer(layer)
    for key in keys:
        kept.pop(key, None)
    return kept


def for_other_model(layer: Layer) -> SourcedLayer:
    """A layer for another model than that of the session, whose format and adapters it omits."""
    sourced = SourcedLayer(layer)
    return without_keys(sourced, [key for key in ("format", "lora") if sourced.origins.get(key) == SESSION])


def in_directory(layer: Layer, directory: Path) -> Layer:
    moved = dict(layer)
    if "lora" in layer:
        texts = OPTIONS["lora"].validate(layer["lora"])
        moved["lora"] = tuple(str(directory / expand_user(text)) for text in texts)
    chosen = layer.get("format")
    if isinstance(chosen, str) and names_file(chosen):
        moved["format"] = str(directory / expand_user(chosen))
    return moved


def names_file(format: str) -> bool:
    """Whether a format is the file of a chat template: it has a dot or a slash, unlike any name."""
    return "." in format or "/" in format


def sampling_text(samplers: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> str:
    """Samplers in a line: "temperature 0.6 (model file), top_k 20 (catalog)"; without unknown origins."""
    texts = []
    for key, value in samplers.items():
        text = f"{key} {setting_text(value)}"
        if origins is not None:
            text += f" ({origins.get(key, DEFAULT)})"
        texts.append(text)
    return ", ".join(texts)


def setting_text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(repr(str(item)) for item in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)


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


def write_setting(path: Path, key: str, value: Any) -> None:
    """Write a setting into a config.toml; remove it for None. Processes take turns. Raises ConfigError."""
    target = path.resolve()
    lock = target.with_name(f".{target.name}.lock")
    with translate_os_errors(ConfigError, path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(lock_file(lock, lambda: None, mode=PRIVATE, is_required=False)):
            try:
                mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE
                atomic_write(target, with_setting(path, key, value).encode(), mode=mode)
            finally:
                remove(lock)


def with_setting(path: Path, key: str, value: Any) -> str:
    """The text of a config.toml with a setting, or without it for None. Raises ConfigError."""
    import tomlkit

    content = read_config_text(path)
    parse_toml(content, path)  # for its errors
    document = tomlkit.parse(content)
    written = key.replace("_", "-") if key.replace("_", "-") in document else key
    if value is None:
        document.pop(written, None)
    else:
        document[written] = value
    return tomlkit.dumps(document)


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
