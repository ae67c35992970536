"""`cerebrum sessions`: manage saved conversations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option

app = typer.Typer(
    help="List, show, search, export, import and delete saved conversations.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A session's name, as in `cerebrum sessions list`.")]


class ExportFormat(StrEnum):
    """Formats of `sessions export`."""

    MARKDOWN = "markdown"
    JSON = "json"
    SHAREGPT = "sharegpt"
    TRANSCRIPT = "transcript"


@app.command(name="list")
def list_sessions(context: typer.Context, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """List sessions, most recently changed first."""
    from cerebrum_cli.application.chat.archive import session_rows
    from cerebrum_cli.terminal.tables import print_rows, print_sessions

    runtime = options.runtime_of(context)
    empty = "" if quiet else "no saved sessions; cerebrum ask and cerebrum chat create them"
    print_rows(runtime.streams, session_rows(runtime.history.store), json, print_sessions, empty)


@app.command()
def show(context: typer.Context, name: Name, json: options.Json = False) -> None:
    """Show a session's messages."""
    from cerebrum_cli.application.chat.archive import export_session, session_object

    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if json:
        runtime.streams.answer_object(session_object(history.store, session))
    else:
        runtime.streams.answer(export_session(history.store, session, ExportFormat.MARKDOWN.value))


@app.command()
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that must all occur in one message.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search all messages for words, best match first."""
    from cerebrum_cli.application.chat.archive import search_rows
    from cerebrum_cli.terminal.tables import print_matches, print_rows

    runtime = options.runtime_of(context)
    print_rows(
        runtime.streams, search_rows(runtime.history.store, text), json, print_matches, "" if quiet else "No matches"
    )


@app.command()
def rm(context: typer.Context, name: Name, quiet: options.Quiet = False, yes: options.Yes = False) -> None:
    """Delete a session, its unshared messages, and the whole prompt cache."""
    from cerebrum_cli.application.chat.archive import delete_session

    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    history.lock.acquire(session)
    options.require_agreement(runtime.streams, f"Delete session {name}?", name, yes)
    count = delete_session(history, session, runtime.clear_prompt_cache)
    if not quiet:
        runtime.streams.info(f"{name} deleted ({count} {'message' if count == 1 else 'messages'})")


@app.command()
def export(
    context: typer.Context,
    name: Name,
    export_format: Annotated[
        ExportFormat,
        option("--as", help="json: OpenAI messages, transcript: the exact prompt [default: markdown]."),
    ] = ExportFormat.MARKDOWN,
) -> None:
    """Print a session in another format."""
    from cerebrum_cli.application.chat.archive import export_session, export_transcript

    runtime = options.runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if export_format is ExportFormat.TRANSCRIPT:
        model = runtime.library.resolve(session.model)
        text = export_transcript(runtime.open_backend, model, runtime.settings({}, model), history.store, session)
    else:
        text = export_session(history.store, session, export_format.value)
    runtime.streams.answer(text)


@app.command(name="import")
def import_session(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file of OpenAI messages or ShareGPT.")],
    name: Annotated[
        str | None, option("--name", help="Name of the session [default: from FILE].", metavar="NAME")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Import a conversation from another program as a session."""
    from cerebrum_cli.application.chat import archive

    runtime = options.runtime_of(context)
    session = archive.import_session(runtime.history.store, file, name)
    if not quiet:
        runtime.streams.info(f"Imported as {session.name}; continue with cerebrum ask -c")
