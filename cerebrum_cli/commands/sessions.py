"""`cerebrum sessions`: the conversations that are kept."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option

if TYPE_CHECKING:
    from cerebrum_cli.terminal.streams import Streams

app = typer.Typer(
    help="List, show, search, export, import and remove the conversations that are kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A session, named as in `cerebrum sessions list`.")]


class Shape(StrEnum):
    """What a session is exported as."""

    MARKDOWN = "markdown"
    JSON = "json"
    SHAREGPT = "sharegpt"
    TRANSCRIPT = "transcript"


@app.command(name="list")
def list_sessions(context: typer.Context, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """List the sessions, the last changed first."""
    from cerebrum_cli.application.chat.archive import session_rows
    from cerebrum_cli.terminal.tables import print_sessions

    runtime = options.runtime_of(context)
    nothing = "" if quiet else "no session is kept yet; cerebrum ask begins one"
    print_rows(runtime.streams, session_rows(runtime.history.store), json, print_sessions, nothing)


@app.command()
def show(context: typer.Context, name: Name, json: options.Json = False) -> None:
    """Show what was said in a session."""
    from cerebrum_cli.application.chat.archive import export_session, session_object

    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if json:
        runtime.streams.answer_object(session_object(history.store, session))
    else:
        runtime.streams.answer(export_session(history.store, session, Shape.MARKDOWN.value))


@app.command()
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that all stand in one message.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find messages by their words, the best match first."""
    from cerebrum_cli.application.chat.archive import search_rows
    from cerebrum_cli.terminal.tables import print_hits

    runtime = options.runtime_of(context)
    nothing = "" if quiet else "nothing is found"
    print_rows(runtime.streams, search_rows(runtime.history.store, text), json, print_hits, nothing)


@app.command()
def rm(context: typer.Context, name: Name, quiet: options.Quiet = False, yes: options.Yes = False) -> None:
    """Delete a session, every message no other session leads to, and what models have read of any."""
    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    history.lock.acquire(session)
    options.require_agreement(runtime.streams, f"Delete the session {name}?", name, yes)
    count = history.store.remove(session)
    history.lock.discard()
    runtime.clear_prompt_cache()
    history.store.vacuum()
    if not quiet:
        runtime.streams.info(f"{name} is gone, and {count} {'message' if count == 1 else 'messages'} with it")


@app.command()
def export(
    context: typer.Context,
    name: Name,
    shape: Annotated[
        Shape, option("--as", help="json is OpenAI's messages, transcript the exact prompt [default: markdown].")
    ] = Shape.MARKDOWN,
) -> None:
    """Print a session for other programs, or for people."""
    from cerebrum_cli.application.chat.archive import export_session, export_transcript

    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if shape is Shape.TRANSCRIPT:
        model = runtime.library.resolve(session.model)
        text = export_transcript(runtime.open_backend, model, runtime.settings({}, model), history.store, session)
    else:
        text = export_session(history.store, session, shape.value)
    runtime.streams.answer(text)


@app.command(name="import")
def import_session(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OpenAI's messages or ShareGPT, as JSON.")],
    name: Annotated[str | None, option("--name", help="What to call it.", metavar="NAME")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Keep a conversation that another program has written."""
    from cerebrum_cli.application.chat.archive import import_session

    runtime = options.runtime_of(context)
    session = import_session(runtime.history.store, file, name)
    if not quiet:
        runtime.streams.info(f"{session.name} is kept; cerebrum ask -c goes on from it")


def print_rows(
    streams: Streams,
    rows: list[dict[str, Any]],
    json: bool,
    as_table: Callable[[Streams, list[dict[str, Any]]], None],
    nothing: str,
) -> None:
    """Print rows as one JSON list or as a table; where there are none say so, if anything."""
    if json:
        streams.answer_object(rows)
    elif rows:
        as_table(streams, rows)
    elif nothing:
        streams.info(nothing)
