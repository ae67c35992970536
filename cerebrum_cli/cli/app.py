"""The composition root: picks real implementations and directories; tests pass others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Config, Layer, Settings
from cerebrum_cli.replies.source import Installation
from cerebrum_cli.terminal.streams import Streams, standard_streams

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.engine.capacity import Build
    from cerebrum_cli.library.pull import Puller


def llama_build() -> Build:
    from cerebrum_cli.engine.capacity import installed_build

    return installed_build()


@dataclass(slots=True, kw_only=True)
class App(Installation):
    """The environment of commands: the installation of a user, and the terminal or the pipes.

    `on_exit` closes what a command has left open.
    """

    streams: Streams = field(default_factory=standard_streams)
    build: Callable[[], Build] = llama_build
    on_exit: ExitStack = field(default_factory=ExitStack)

    def open_history(self, saves: bool = True) -> History:
        """Sessions of this user, whose database is opened on first use; new ones in memory unless it `saves`."""
        from cerebrum_cli.chat.history import History

        history = History.at(self.sessions_path if saves else None)
        self.on_exit.callback(history.close)
        return history

    def read_history(self) -> History:
        """Sessions of this user for a command that creates none; their disk may be read-only."""
        return self.open_history(self.sessions_path.exists())

    @contextmanager
    def puller(
        self,
        offline: bool,
        context: int | None = None,
        yes: bool = False,
        type: str | None = None,
        from_weights: bool = False,
    ) -> Iterator[Puller]:
        """What plans downloads and pulls models, with progress and questions on the terminal."""
        from cerebrum_cli.library.pull import DownloadOptions, Puller
        from cerebrum_cli.terminal.progress import FileProgress
        from cerebrum_cli.weights.building import BUILDER

        def confirm(question: str, default: bool) -> bool | None:
            progress.close()
            if yes or not self.streams.can_ask:
                return yes or None
            return self.streams.confirm(question, default)

        with FileProgress(self.streams) as progress:
            yield Puller(
                library=self.library,
                progress=progress,
                confirm=confirm,
                options=DownloadOptions(offline, context, type, from_weights),
                builder=BUILDER,
            )

    def readable_settings(self, overrides: Layer, recommended: Layer | None = None) -> Settings:
        """Settings for a command that only reports: without config.toml, with a notice, if that is invalid."""
        try:
            return self.settings(overrides, recommended)
        except ConfigError as error:
            self.streams.note(NoticeEvent(error.message, error.hint))
            self.config = Config()
            return self.settings(overrides, recommended)
