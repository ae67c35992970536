"""What a user has installed: models, settings, caches and profiles, and how a model file is opened."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.config import Config, read_config
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import CONFIG, Layer, Settings, SourcedLayer, fold
from cerebrum_cli.models.catalogue import ModelSpec, packaged_catalogue
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.registry import Registry

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend, StopFlag
    from cerebrum_cli.engine.model_options import LoadOptions
    from cerebrum_cli.engine.state_store import StateStore
    from cerebrum_cli.model.profiles import Profile, ProfileStore
    from cerebrum_cli.models.fit import Capacity
    from cerebrum_cli.models.model import InstalledModel

# In the data directory.
DEVICES = "devices.json"
LOADED_FILES = "loaded_files.json"
PROFILES = "profiles"
STATES = "states"  # in the cache directory: the prompt cache, which holds tokens of conversations

OpenFile = Callable[["LoadOptions", Callable[[Event], None], "StopFlag"], "Backend"]
"""Loads a model file and reports progress; the flag interrupts it. llama.cpp, or something smaller in tests."""


def llama_schema_to_grammar(schema: str) -> tuple[str, tuple[str, ...]]:
    """The GBNF grammar of a JSON Schema, and what of the schema it cannot express. Raises GrammarError."""
    from cerebrum_cli.engine.llama.grammar import schema_to_grammar

    return schema_to_grammar(schema)


@dataclass(slots=True)
class Installation:
    """The directories of a user, the models and settings in them, and what opens a model file.

    `try_template` raises FormatError for a file whose chat template takes too much time or memory.
    """

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    open_file: OpenFile
    try_template: Callable[[Path, str], None] = lambda *_: None
    schema_to_grammar: Callable[[str], tuple[str, tuple[str, ...]]] = llama_schema_to_grammar
    library: Library = field(init=False)
    _config: Config | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.library = Library(
            catalogue_paths=(packaged_catalogue(), self.config_directory / "models.toml"),
            registry=Registry(self.data_directory / "models"),
            capacity=self.capacity,
        )

    def capacity(self) -> Capacity:
        """Memory of this machine, and the accelerators that the last loaded model found."""
        from cerebrum_cli.engine.machine import load_devices, total_memory
        from cerebrum_cli.models.fit import Capacity

        return Capacity(total_memory(), load_devices(self.data_directory / DEVICES))

    def prompt_cache(self, model: InstalledModel, format_name: str, settings: Settings) -> StateStore | None:
        """The prompt cache on disk of a model and prompt format; None if caching is off."""
        from cerebrum_cli.engine.state_store import StateStore

        if not settings.cache_gb:
            return None
        return StateStore(
            self.cache_directory / STATES, int(settings.cache_gb * 1e9), self.library.identity(model), format_name
        )

    def profiles(self, settings: Settings | None = None) -> ProfileStore:
        from cerebrum_cli.engine.build import build_fingerprint
        from cerebrum_cli.engine.machine import load_devices, machine_fingerprint
        from cerebrum_cli.model.profiles import ProfileStore, settings_text

        machine = machine_fingerprint(load_devices(self.data_directory / DEVICES))
        machine += settings_text(settings) if settings else ""
        return ProfileStore(self.data_directory / PROFILES, machine, build_fingerprint())

    def profile(self, model: InstalledModel, settings: Settings) -> Profile | None:
        """Profile of a model, measured with these settings or else with defaults; None if it was never tuned."""
        if not (self.data_directory / PROFILES).is_dir():
            return None
        from cerebrum_cli.model.profiles import general_settings

        identity, general = self.library.identity(model), general_settings(settings)
        profile = self.profiles(settings).find(identity)
        return profile if profile or general == settings else self.profiles(general).find(identity)

    def settings(self, overrides: Layer, model: InstalledModel | ModelSpec | None = None) -> Settings:
        """Merge all layers: defaults, what a model recommends, config.toml, then the environment and the command line.

        Raises ConfigError, UsageError, and ModelFileError for the model's file.
        """
        return fold(*(model.recommended if model else ()), self.config.settings, overrides)

    def ignore_settings(self, keys: Collection[str]) -> None:
        """Read config.toml as if it did not set these. Raises ConfigError."""
        kept = {key: value for key, value in self.config.settings.items() if key not in keys}
        self._config = replace(self.config, settings=SourcedLayer(kept, origin=CONFIG))

    @property
    def config(self) -> Config:
        """Contents of config.toml, read once. Raises ConfigError."""
        if self._config is None:
            self._config = read_config(self.config_directory / "config.toml")
        return self._config


def user_directories() -> tuple[Path, Path, Path]:
    """The directories of this user for configuration, data and caches."""
    from platformdirs import PlatformDirs

    directories = PlatformDirs("cerebrum", appauthor=False)
    return directories.user_config_path, directories.user_data_path, directories.user_cache_path


def user_installation() -> Installation:
    """The installation of this user, with llama.cpp."""
    config, data, cache = user_directories()
    return Installation(config, data, cache, partial(open_with_llama, data), partial(try_template_file, data))


def try_template_file(data_directory: Path, path: Path, template: str) -> None:
    """Raise FormatError for a file whose chat template takes too much time or memory in a process with limits."""
    from cerebrum_cli.engine.llama.first_load import require_harmless

    check = "cerebrum_cli.formats.template.try_template_file"
    require_harmless(path, template, data_directory / LOADED_FILES, check)


def open_with_llama(
    data_directory: Path, options: LoadOptions, emit: Callable[[Event], None], stop: StopFlag
) -> Backend:
    """Open a model file with llama.cpp, which the engine's thread imports."""
    from cerebrum_cli.engine.llama.load import open_llama

    check = "cerebrum_cli.formats.template.try_template"
    return open_llama(options, emit, stop, data_directory / DEVICES, data_directory / LOADED_FILES, check)
