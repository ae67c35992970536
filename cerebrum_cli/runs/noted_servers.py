"""The servers, or nodes, that answered the rows of a run, among its notes; their addresses are not recorded."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TypeVar

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.events import ServersEvent
from cerebrum_cli.model.loaded_model import LoadedModel
from cerebrum_cli.runs.journal import Journal

Records = Sequence[Mapping[str, str]]
T = TypeVar("T")


def noting_servers(events: Generator[T, None, None], run: Journal, model: LoadedModel) -> Generator[T, None, None]:
    """Yield events, and note the servers at the end, and as soon as they are known: the process may be killed."""
    is_noted = not model.is_remote
    try:
        with closing(events):
            for event in events:
                if (not is_noted and model.engine.is_loaded) or isinstance(event, ServersEvent):
                    note_servers(run, model)
                    is_noted = True
                yield event
    finally:
        note_servers(run, model)


def noted_servers(run: Journal) -> Records:
    records: Records = run.notes.get("servers", ())
    return records


def note_servers(run: Journal, model: LoadedModel) -> None:
    """Note the kind, build and model of the servers with the rows they answered."""
    if model.is_remote and model.engine.is_loaded:
        note_records(run, model.engine.builds)


def note_records(run: Journal, records: Records) -> None:
    """Add those of these records that are not noted yet."""
    known = noted_servers(run)
    if new := [record for record in records if record not in known]:
        with suppress(BatchError):  # of a full disk: what went wrong before it matters more
            run.write_notes({**run.notes, "servers": [*known, *new]})
