"""What a user has: models, settings and caches; how a model file is opened; and servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cerebrum_cli.core.config import Config, read_config
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ConfigError, EndpointError, ModelNotFound, UsageError
from cerebrum_cli.core.events import Emit, Timings
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.saved_prompts import PromptDirectory
from cerebrum_cli.core.settings import CHOSEN, ENVIRONMENT, LOCAL_KEYS, Layer, Settings, fold, without_keys
from cerebrum_cli.library.installed import CATALOGUE, Library, served_model
from cerebrum_cli.library.registry import Registry

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.requests import LoadOptions
    from cerebrum_cli.engine.state_store import StateStore
    from cerebrum_cli.engine.step import StopFlag
    from cerebrum_cli.library.catalogue import ModelSpec
    from cerebrum_cli.library.fit import Capacity
    from cerebrum_cli.library.model import InstalledModel
    from cerebrum_cli.servers.client import Endpoint

TRY_TEMPLATE = "cerebrum_cli.formats.template.try_template"  # what a child process calls with an unknown file
PROMPTS = "prompts"  # in the configuration directory
# In the data directory.
DEVICES = "devices.json"
LOADED_FILES = "loaded_files.json"
SPEED = "speed.json"
STATES = "states"  # in the cache directory: the prompt cache, which holds tokens of conversations
HISTORY = "history"  # of questions typed at the prompt of a chat

OpenFile = Callable[["LoadOptions", Emit, "StopFlag"], "Backend"]
"""Loads a model file and reports progress; the flag interrupts it. llama.cpp, or something smaller in tests."""


@dataclass
class Installation:
    """The directories of a user, the models and settings in them, and what opens a model file.

    `try_template` raises ModelFileError for a file whose chat template takes too much time or memory.
    """

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    open_file: OpenFile
    try_template: Callable[[Path], None] = lambda *_: None
    library: Library = field(init=False)

    def __post_init__(self) -> None:
        self.library = Library(
            catalogue_paths=(CATALOGUE, self.config_directory / "models.toml"),
            registry=Registry(self.data_directory / "models"),
            capacity=self.capacity,
        )

    @classmethod
    def of_user(cls, **others: Any) -> Self:
        from platformdirs import PlatformDirs

        directories = PlatformDirs("cerebrum", appauthor=False)
        data = directories.user_data_path
        return cls(
            directories.user_config_path,
            data,
            directories.user_cache_path,
            partial(open_with_llama, data),
            partial(try_template_file, data),
            **others,
        )

    @property
    def sessions_path(self) -> Path:
        """The database of sessions."""
        return self.data_directory / "sessions" / "sessions.db"

    def capacity(self) -> Capacity:
        """Memory of this machine, the accelerators that the last loaded model found, and its speed without any."""
        from cerebrum_cli.engine.machine import likely_accelerator, load_devices, total_memory
        from cerebrum_cli.engine.speed_file import load_speed
        from cerebrum_cli.library.fit import Capacity

        devices = load_devices(self.data_directory / DEVICES)
        if devices or (devices is None and likely_accelerator() in ("cuda", "metal")):
            return Capacity(total_memory(), devices)
        return Capacity(total_memory(), devices, load_speed(self.data_directory / SPEED))

    def record_bandwidth(self) -> None:
        """Measure how fast the memory is, once, for forecasts before the first reply."""
        from cerebrum_cli.engine.speed_file import record_bandwidth

        record_bandwidth(self.data_directory / SPEED)

    def record_replies(self, model: InstalledModel, replies: Sequence[Timings]) -> None:
        """Record how fast a model without GPUs has replied, for forecasts."""
        from cerebrum_cli.engine.machine import load_devices
        from cerebrum_cli.engine.speed_file import record_replies

        if not load_devices(self.data_directory / DEVICES):
            record_replies(self.data_directory / SPEED, model.sizes, replies)

    def prompt_cache(self, model: InstalledModel, format_name: str, settings: Settings) -> StateStore | None:
        """The prompt cache on disk of a model and prompt format; None if caching is off."""
        from cerebrum_cli.engine.state_store import StateStore

        if not settings.cache_gb:
            return None
        return StateStore(
            self.cache_directory / STATES, int(settings.cache_gb * 1e9), self.library.identity(model), format_name
        )

    def settings(self, overrides: Layer, model: InstalledModel | ModelSpec | None = None) -> Settings:
        """Merge all layers: defaults, what a model recommends, config.toml, then the environment and the command line.

        Raises ConfigError, UsageError, and ModelFileError for the model's file.
        """
        return fold(model.recommended if model else {}, self.config.settings, overrides)

    def ignore_settings(self, keys: Collection[str]) -> None:
        self.config = replace(self.config, settings=without_keys(self.config.settings, keys))

    @property
    def prompts(self) -> PromptDirectory:
        return PromptDirectory(self.config_directory / PROMPTS)

    @cached_property
    def config(self) -> Config:
        """Contents of config.toml, read once. Raises ConfigError."""
        return read_config(self.config_directory / "config.toml")


def try_template_file(data_directory: Path, path: Path) -> None:
    """Raise ModelFileError for a file whose chat template takes too much time or memory in a process with limits."""
    from cerebrum_cli.engine.llama.first_load import require_loads
    from cerebrum_cli.engine.step import StopFlag

    require_loads(path, data_directory / LOADED_FILES, StopFlag(), check=TRY_TEMPLATE, kind="template")


def open_with_llama(data_directory: Path, options: LoadOptions, emit: Emit, stop: StopFlag) -> Backend:
    from cerebrum_cli.engine.llama.load import open_llama

    return open_llama(options, emit, stop, data_directory / DEVICES, data_directory / LOADED_FILES, TRY_TEMPLATE)


@frozen
class Servers:
    """Servers of a model, with `window` requests each at a time; with `earlier` records, only such servers.

    `timeouts` are fields of ServerTimeouts other than the defaults. With `may_differ`, each may have its own model.
    """

    endpoints: Sequence[Endpoint]
    window: int | None = None
    earlier: Sequence[Mapping[str, str]] = ()
    timeouts: JsonObject = field(default_factory=dict)
    may_differ: bool = False


def find_endpoints(
    installation: Installation,
    texts: Sequence[str],
    settings: Settings,
    served_model_name: str | None = None,
    allow_http_key: bool = False,
) -> tuple[Endpoint, ...]:
    if not texts:
        return ()
    named = settings.model
    if not is_chosen(settings) and find_vocabulary(installation, named):  # it may be meant for commands without servers
        named = None
    endpoints = []
    for text in texts:
        endpoint = find_endpoint(installation, text)
        served = served_model_name or endpoint.served_model
        endpoints.append(replace(endpoint, served_model=served, allow_http_key=allow_http_key, named_model=named))
        endpoints[-1].validate()
    urls = [endpoint.url for endpoint in endpoints]
    if repeated := next((url for url in urls if urls.count(url) > 1), None):
        raise UsageError(f"the endpoint {repeated} is given twice", "omit one of them")
    return tuple(endpoints)


def find_endpoint(installation: Installation, text: str) -> Endpoint:
    """A server by its URL or the name of its table. Raises UsageError or ConfigError."""
    from cerebrum_cli.servers.client import Endpoint, parse_url

    tables = installation.config.endpoints
    if table := tables.get(text):
        values: JsonDict = {**table, "name": text, "url": parse_url(table["url"])}
        if variable := values.pop("key_env", ""):
            if environment(variable) is None:
                raise ConfigError(f"endpoint {text}: {variable} is not set", f"run export {variable}=KEY")
            values["key_variable"] = variable
        return Endpoint(**values)
    if "://" in text:
        url = parse_url(text)
        return Endpoint(url.partition("?")[0], url)  # a query may hold a secret
    known = f"config.toml has {', '.join(tables)}" if tables else "config.toml has no table [endpoints.NAME]"
    raise UsageError(f"unknown endpoint {text!r}", f"{known}; a URL begins with http:// or https://")


def find_remote_model(installation: Installation, settings: Settings, endpoints: Sequence[Endpoint]) -> InstalledModel:
    """The model whose vocabulary the servers have, or the one that they are asked for, if the first takes messages.

    Raises ModelNotFound, UsageError, ConfigError, EndpointError.
    """
    from cerebrum_cli.servers.client import BusyServerError
    from cerebrum_cli.servers.description import probe

    model = find_vocabulary(installation, settings.model)
    if model and is_chosen(settings):
        return model
    try:
        info = probe(endpoints[0])
        if info.kind.takes_messages:
            return served_model(info.weights)
    except EndpointError:
        if not model:
            raise
    except BusyServerError:
        pass
    return model or installation.library.resolve_vocabulary(settings.model)


def find_installed(installation: Installation, settings: Settings, servers: Servers | None) -> InstalledModel:
    """The model of the servers, or one that is installed. Raises ModelNotFound, and as `find_remote_model` does."""
    if servers:
        return find_remote_model(installation, settings, servers.endpoints)
    return installation.library.resolve(settings.model)


def find_vocabulary(installation: Installation, name: str | None) -> InstalledModel | None:
    with contextlib.suppress(ModelNotFound):
        return installation.library.resolve_vocabulary(name)
    return None


def is_chosen(settings: Settings) -> bool:
    origin = settings.origin("model")
    return origin in CHOSEN or origin.startswith(ENVIRONMENT)


def require_no_adapters(settings: Settings, option: str) -> None:
    if settings.lora:
        problem = f"{option} cannot apply the adapter {settings.lora[0]}: adapters apply to local models"
        hint = "load it in the server, and use --lora none" if option == "--endpoint" else "use --lora none"
        raise UsageError(problem, hint)


def without_local(settings: Settings) -> Settings:
    """Settings without those of a model on this machine, which config.toml may set. Raises UsageError for adapters."""
    require_no_adapters(settings, "--endpoint")
    defaults = Settings()
    return replace(settings, **{key: getattr(defaults, key) for key in LOCAL_KEYS})
