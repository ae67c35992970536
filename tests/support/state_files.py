"""Directories of saved states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.state_store import State, StateStore

BODY = bytes(range(64))
TOKENS = (1, 2, 3, 70_000)


def open_store(directory: Path, *, limit: int = 10**9, model: str = "digest", format: str = "chatml") -> StateStore:
    return StateStore(directory, limit, model, format)


def put(states: StateStore, tokens: Sequence[int], *, body: bytes = BODY, kind: str = "kind") -> None:
    def save(path: Path) -> None:
        path.write_bytes(body)

    states.write(tokens, kind, len(body), save)


def find(states: StateStore, prompt: Sequence[int], *, kind: str = "kind") -> tuple[State | None, list[NoticeEvent]]:
    told: list[NoticeEvent] = []
    return states.find_longest(prompt, kind, lambda length, shared: True, told.append), told
