"""Chats with scripted models, for the tests of what a chat does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from cerebrum_cli.application.chat.chat import Chat
from cerebrum_cli.application.chat.history import History
from cerebrum_cli.application.inference.loading import ModelLoader
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.core.settings import Settings, fold
from cerebrum_cli.engine.backend import Backend, StopFlag
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.sessions.lock import SessionLock
from cerebrum_cli.sessions.store import Store


class Loadable(Protocol):
    """Something that opens as a backend."""

    def open(self, tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        """Load it."""


def make_chat(store: Store, directory: Path, file: Path, backend: Callable[[], Loadable], **given: object) -> Chat:
    """Return a chat with scripted models, whose states are kept in a folder; the name `missing` is no model's."""
    layer = {"system": "S", "format": "cerebrum", **given}

    def resolve(reference: str | None) -> Model:
        if reference == "missing":
            raise ModelNotFound("missing is not here", "pull it")
        return Model(reference or "small", (file,))

    def states(model: Model, form: str, settings: Settings) -> StateStore | None:
        return StateStore(directory / "states", 10**9, model.name, form) if settings.cache_gb else None

    opener = ModelLoader(resolve, lambda layer, _: fold(layer), lambda _: backend().open, states)
    model, settings = opener.resolve_settings(layer)
    history = History(store, SessionLock(directory / "locks"))
    return Chat(history, opener, layer, opener.open(model, settings), settings)


def text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def finish(events: Iterable[Event]) -> FinishEvent:
    [ended] = [event for event in events if isinstance(event, FinishEvent)]
    return ended


def contents(chat: Chat) -> list[str]:
    return [stored.message.content for stored in chat.messages]
