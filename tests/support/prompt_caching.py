"""Scripted engines with a prompt cache on disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from asking import Reply, collect_replies, running_engine
from scripted_backend import ScriptedBackend, replies, tokens
from state_files import open_store

from cerebrum_cli.core.events import Event, NoticeEvent, SequenceId
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request

FILE = "a long file, " * 10  # 130 tokens
FIRST, SECOND = FILE + "first?", FILE + "second?"
GOES_ON = FIRST + "one. and then?"
SCRIPT = {FIRST: "one. ", SECOND: "two. ", FIRST + "one. and then?": "three. ", "x" * 100: "y", "short": "brief"}


def scripted(**fields: object) -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), **{"context_size": 300, **fields})  # type: ignore[arg-type]


def caching_engine(
    backend: ScriptedBackend, directory: Path, limit: int = 10**6
) -> AbstractContextManager[LocalEngine]:
    """Start an engine with a prompt cache; check that it frees everything."""
    return running_engine(backend, open_store(directory, limit=limit))


def ask_once(
    engine: LocalEngine, prompt: str, *, n: int = 1, limit: int | None = None
) -> tuple[Reply, list[NoticeEvent]]:
    events: list[Event] = list(engine.generate([Request(tokens(prompt), SamplingParams(max_tokens=limit), n=n)]))
    said = collect_replies(event for event in events if not isinstance(event, NoticeEvent))
    return said[SequenceId(0)], [event for event in events if isinstance(event, NoticeEvent)]


def fill_cache(directory: Path, prompt: str = FIRST, least: int = 1, **fields: object) -> None:
    with caching_engine(scripted(**fields), directory) as engine:
        ask_once(engine, prompt)
        engine.save_prompt_cache(least)


def file_count(directory: Path) -> int:
    return len(list(directory.iterdir())) if directory.exists() else 0
