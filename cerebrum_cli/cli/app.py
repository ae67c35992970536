"""The composition root: picks real implementations and directories; tests pass others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.config import Config, read_config
from cerebrum_cli.core.errors import ConfigError, UnwritableSessions
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import CONFIG, Layer, Settings, SourcedLayer, fold
from cerebrum_cli.models.catalogue import ModelSpec, packaged_catalogue
from cerebrum_cli.models.library import Library
from cerebrum_cli.terminal.streams import Streams, standard_streams

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
    from cerebrum_cli.engine.build import Build
    from cerebrum_cli.engine.load_options import LoadOptions
    from cerebrum_cli.engine.memory import Device
    from cerebrum_cli.engine.state_store import StateStore
    from cerebrum_cli.engine.trials import Bench, BenchFactory
    from cerebrum_cli.eval.stored_runs import RunStore
    from cerebrum_cli.merge.merge import Merger
    from cerebrum_cli.merge.weights import Codec
    from cerebrum_cli.model.loading import BackendFactory, Resources
    from cerebrum_cli.model.profiles import Profile, ProfileStore
    from cerebrum_cli.models.fit import Capacity
    from cerebrum_cli.models.hub_retries import Progress
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.models.pull import Puller

PROBE = Path(__file__).parents[1] / "data" / "probe.txt"


def llama_build() -> Build:
    """How the installed llama.cpp was built. Raises EngineError if it cannot be loaded."""
    from cerebrum_cli.engine.llama.devices import build

    return build()


def llama_version() -> str:
    """The version of the installed llama.cpp. Raises EngineError if it cannot be loaded."""
    from cerebrum_cli.engine.llama.devices import version

    return version()


def process_bench(
    options: LoadOptions, paths: tuple[Path, ...], directory: Path | None = None, gpus: tuple[Device, ...] = ()
) -> Bench:
    """A bench that opens the model in child processes; they write into `directory`."""
    from cerebrum_cli.engine.trials import Bench

    return Bench(options, PROBE.read_text(encoding="utf-8"), paths, directory, gpus)


def llama_codec() -> Codec:
    """Codec for quantized weights. Raises EngineError if llama.cpp cannot be loaded."""
    from cerebrum_cli.engine.llama.codec import LlamaCodec

    return LlamaCodec()


@dataclass(slots=True)
class App:
    """The environment of commands: directories, streams, the model library, and how a model is opened."""

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    streams: Streams
    open_backend: BackendFactory
    native_log: Callable[[Callable[[str], None]], None]
    schema_to_grammar: Callable[[str], tuple[str, tuple[str, ...]]]
    build: Callable[[], Build] = llama_build
    llama_version: Callable[[], str] = llama_version
    bench: BenchFactory = process_bench
    codec: Callable[[], Codec] = llama_codec
    try_template: Callable[[Path, Path, str], None] = lambda *_: None
    library: Library = field(init=False)
    _config: Config | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.library = Library(
            catalogue_paths=(packaged_catalogue(), self.config_directory / "models.toml"),
            directory=self.data_directory / "models",
            capacity=self.capacity,
        )

    def capacity(self) -> Capacity:
        """Memory of this machine, and the accelerators that the last loaded model found."""
        from cerebrum_cli.engine.machine import load_devices, total_memory
        from cerebrum_cli.models.fit import Capacity

        return Capacity(total_memory(), load_devices(devices_file(self.data_directory)))

    def open_history(self, detaches: bool = False, saves: bool = True) -> History:
        """Sessions of this user; the database is opened on first use. See `Store` for `detaches`.

        Unless it `saves`, changes are made in memory only.
        """
        from cerebrum_cli.chat.history import History
        from cerebrum_cli.chat.store import Store

        directory = self.data_directory / "sessions"
        path = directory / "sessions.db"
        store = Store(path, detaches)
        if not saves:
            if path.exists():
                store.names()  # opens it, to be copied
            store.detach(UnwritableSessions("no_log is on", "turn it off with --set no_log=off"))
        return History(store, directory / "locks")

    def resources(self, no_profile: bool = False) -> Resources:
        """Resources for opening models; `no_profile` leaves out tuning profiles."""
        from cerebrum_cli.model.loading import Resources

        profile = {} if no_profile else {"profile": self.profile}
        return Resources(
            self.open_backend,
            self.prompt_cache,
            **profile,
            swap_directory=self.cache_directory,
            try_template=partial(self.try_template, self.data_directory),
        )

    def prompt_cache(self, model: Model, format_name: str, settings: Settings) -> StateStore | None:
        from cerebrum_cli.engine.state_store import StateStore

        if not settings.cache_gb:
            return None
        return StateStore(self.states, int(settings.cache_gb * 1e9), self.library.identity(model), format_name)

    def profiles(self, settings: Settings | None = None) -> ProfileStore:
        from cerebrum_cli.engine.build import build_fingerprint
        from cerebrum_cli.engine.machine import load_devices, machine_fingerprint
        from cerebrum_cli.model.profiles import ProfileStore, settings_text

        machine = machine_fingerprint(load_devices(devices_file(self.data_directory)))
        machine += settings_text(settings) if settings else ""
        return ProfileStore(self._profiles, machine, build_fingerprint())

    def profile(self, model: Model, settings: Settings) -> Profile | None:
        """Profile of a model, measured with these settings or else with defaults; None if it was never tuned."""
        if not self._profiles.is_dir():
            return None
        from cerebrum_cli.model.profiles import general_settings

        identity, general = self.library.identity(model), general_settings(settings)
        found = self.profiles(settings).find(identity)
        return found if found or general == settings else self.profiles(general).find(identity)

    @property
    def runs(self) -> RunStore:
        from cerebrum_cli.eval.stored_runs import RunStore

        return RunStore(self.data_directory / "runs")

    def open_bench(self, options: LoadOptions, paths: tuple[Path, ...]) -> Bench:
        """A bench of a model file that may use this machine's GPUs."""
        return self.bench(options, paths, self.cache_directory / "trials", self.capacity().devices or ())

    @property
    def _profiles(self) -> Path:
        return self.data_directory / "profiles"

    @property
    def states(self) -> Path:
        """Directory of the prompt cache, which holds tokens of conversations."""
        return self.cache_directory / "states"

    def puller(self, progress: Progress, offline: bool) -> Puller:
        from cerebrum_cli.models.pull import Puller

        def merge(*arguments: Any) -> Model:
            from cerebrum_cli.merge.merge import pull_merge

            return pull_merge(self.merger, *arguments)

        return Puller(self.library, progress, merge, offline)

    @property
    def merger(self) -> Merger:
        from cerebrum_cli.merge.merge import Merger

        return Merger(self.library, self.codec)

    def settings(self, overrides: Layer, model: Model | ModelSpec | None = None) -> Settings:
        """Merge all layers: defaults, what a model recommends, config.toml, then the environment and the command line.

        Raises ConfigError, UsageError, and ModelFileError for the model's file.
        """
        return fold(*(model.recommended if model else ()), self.config.settings, overrides)

    def ignore_settings(self, keys: Collection[str]) -> None:
        """Read config.toml as if it did not set these. Raises ConfigError."""
        kept = {key: value for key, value in self.config.settings.items() if key not in keys}
        self._config = replace(self.config, settings=SourcedLayer(kept, origin=CONFIG))

    def readable_settings(self, overrides: Layer, model: Model | ModelSpec | None = None) -> Settings:
        """Settings for a command that only reports: without config.toml, with a notice, if that is invalid."""
        try:
            return self.settings(overrides, model)
        except ConfigError as error:
            self.streams.notice(NoticeEvent(error.message, error.hint))
            self._config = Config()
            return self.settings(overrides, model)

    @property
    def config(self) -> Config:
        """Contents of config.toml, read once. Raises ConfigError."""
        if self._config is None:
            self._config = read_config(self.config_directory / "config.toml")
        return self._config


def real_app() -> App:
    from platformdirs import PlatformDirs

    directories = PlatformDirs("cerebrum", appauthor=False)
    return App(
        config_directory=directories.user_config_path,
        data_directory=directories.user_data_path,
        cache_directory=directories.user_cache_path,
        streams=standard_streams(),
        open_backend=lambda options: llama_opener(options, directories.user_data_path),
        native_log=forward_llama_log,
        schema_to_grammar=llama_schema_to_grammar,
        try_template=try_template_file,
    )


def devices_file(data_directory: Path) -> Path:
    return data_directory / "devices.json"


def loaded_files(data_directory: Path) -> Path:
    return data_directory / "loaded_files.json"


def try_template_file(data_directory: Path, path: Path, template: str) -> None:
    """Raise FormatError for a file whose chat template takes too much time or memory in a process with limits."""
    from cerebrum_cli.engine.llama.first_load import FileCheck, require_harmless

    check = FileCheck("cerebrum_cli.formats.template", "try_template_file", "chat template")
    require_harmless(path, template, loaded_files(data_directory), check)


def llama_opener(options: LoadOptions, data_directory: Path) -> OpenBackend:
    """How llama.cpp opens a model; the engine's thread imports it."""

    def open_backend(emit: Callable[[Event], None], stop: StopFlag) -> Backend:
        from cerebrum_cli.engine.llama.first_load import FileCheck
        from cerebrum_cli.engine.llama.load import open_llama

        check = FileCheck("cerebrum_cli.formats.template", "try_template", "chat template")
        return open_llama(options, emit, stop, devices_file(data_directory), loaded_files(data_directory), check)

    return open_backend


def forward_llama_log(listener: Callable[[str], None]) -> None:
    from cerebrum_cli.engine.llama.bindings import log

    log.forward = listener


def llama_schema_to_grammar(schema: str) -> tuple[str, tuple[str, ...]]:
    from cerebrum_cli.engine.llama.grammar import schema_to_grammar

    return schema_to_grammar(schema)
