"""The composition root: picks real implementations and directories; tests pass others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.config import Config
from cerebrum_cli.core.errors import ConfigError, UnwritableSessions
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Layer, Settings
from cerebrum_cli.model.installation import Installation, open_with_llama, try_template_file, user_directories
from cerebrum_cli.models.catalogue import ModelSpec
from cerebrum_cli.terminal.streams import Streams, standard_streams

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.engine.bench import Bench, BenchFactory
    from cerebrum_cli.engine.build import Build
    from cerebrum_cli.engine.memory import Device
    from cerebrum_cli.engine.model_options import LoadOptions
    from cerebrum_cli.eval.stored_runs import RunStore
    from cerebrum_cli.merge.merge import Merger
    from cerebrum_cli.merge.weights import Codec
    from cerebrum_cli.models.hub_retries import Progress
    from cerebrum_cli.models.model import InstalledModel
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
    from cerebrum_cli.engine.bench import Bench

    return Bench(options, PROBE.read_text(encoding="utf-8"), paths, directory, gpus)


def llama_codec() -> Codec:
    """Codec for quantized weights. Raises EngineError if llama.cpp cannot be loaded."""
    from cerebrum_cli.engine.llama.codec import LlamaCodec

    return LlamaCodec()


@dataclass(slots=True, kw_only=True)
class App(Installation):
    """The environment of commands: the installation of a user, and the terminal or the pipes.

    `on_exit` closes what a command has left open.
    """

    streams: Streams
    native_log: Callable[[Callable[[str], None]], None]
    build: Callable[[], Build] = llama_build
    llama_version: Callable[[], str] = llama_version
    bench: BenchFactory = process_bench
    codec: Callable[[], Codec] = llama_codec
    on_exit: ExitStack = field(default_factory=ExitStack)

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
        history = History(store, directory / "locks")
        self.on_exit.callback(history.close)
        return history

    @property
    def runs(self) -> RunStore:
        from cerebrum_cli.eval.stored_runs import RunStore

        return RunStore(self.data_directory / "runs")

    def open_bench(self, options: LoadOptions, paths: tuple[Path, ...]) -> Bench:
        """A bench of a model file that may use this machine's GPUs."""
        return self.bench(options, paths, self.cache_directory / "trials", self.capacity().devices or ())

    def puller(self, progress: Progress, offline: bool) -> Puller:
        from cerebrum_cli.models.pull import Puller

        def merge(*arguments: Any) -> InstalledModel:
            from cerebrum_cli.merge.merge import pull_merge

            return pull_merge(self.merger, *arguments)

        return Puller(self.library, progress, merge, offline)

    @property
    def merger(self) -> Merger:
        from cerebrum_cli.merge.merge import Merger

        return Merger(self.library, self.codec)

    def readable_settings(self, overrides: Layer, model: InstalledModel | ModelSpec | None = None) -> Settings:
        """Settings for a command that only reports: without config.toml, with a notice, if that is invalid."""
        try:
            return self.settings(overrides, model)
        except ConfigError as error:
            self.streams.notice(NoticeEvent(error.message, error.hint))
            self._config = Config()
            return self.settings(overrides, model)


def real_app() -> App:
    config, data, cache = user_directories()
    return App(
        config_directory=config,
        data_directory=data,
        cache_directory=cache,
        open_file=partial(open_with_llama, data),
        try_template=partial(try_template_file, data),
        streams=standard_streams(),
        native_log=forward_llama_log,
    )


def forward_llama_log(listener: Callable[[str], None]) -> None:
    from cerebrum_cli.engine.llama.bindings import log

    log.forward = listener
