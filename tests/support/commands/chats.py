"""Chats with scripted models, for tests of `Chat`."""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from scripted_backend import ScriptedBackend

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.message_tree import MessageTree
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.core.settings import Layer, fold
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.registry import RegistryEntry
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.replies.source import Installation, ModelSource
from cerebrum_cli.servers.endpoint import Endpoint, Servers


def make_chat(
    store: Store,
    directory: Path,
    file: Path,
    backend: Callable[[], ScriptedBackend],
    endpoints: tuple[Endpoint, ...] = (),
    **given: object,
) -> Chat:
    """Create a chat with scripted models and a prompt cache in `directory`; there is no model named `missing`.

    With `endpoints`, servers generate, and the scripted model gives the vocabulary.
    """
    layer = {"system": "S", "format": "cerebrum", **given}

    def resolve(layer: Layer) -> ModelSource:
        if layer.get("model") == "missing":
            raise ModelNotFound("missing is not installed", "pull it")
        name = layer.get("model") or "small"
        model = InstalledModel(name, (file,), entry=RegistryEntry(name, file, 1, "00", 1, "local"))
        servers = Servers(endpoints) if endpoints else None
        return ModelSource(installation, model, fold(layer), servers).for_chat()

    def open_file(_: LoadOptions, emit: Callable[[Event], None], stop: StopFlag) -> Backend:
        return backend().open(emit, stop)

    installation = Installation(directory / "config", directory / "data", directory / "cache", open_file)
    source = resolve(layer)
    source.choose_format()
    history = History(store, directory / "locks")
    return Chat(
        tree=MessageTree(history),
        resolve=resolve,
        overrides=layer,
        loaded=open_source(source),
        settings=source.settings,
    )


def text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def finish(events: Iterable[Event]) -> FinishEvent:
    [finish_event] = [event for event in events if isinstance(event, FinishEvent)]
    return finish_event


def contents(chat: Chat) -> list[str]:
    return [stored.message.content for stored in chat.tree.messages]


def children(store: Store, parent: int | None) -> list[str]:
    """All texts in the tree that follow a message, oldest first; for None, all first questions."""
    with closing(sqlite3.connect(store.path or "")) as database:
        rows = database.execute("SELECT content FROM messages WHERE parent IS ? ORDER BY id", (parent,))
        return [content for (content,) in rows]
