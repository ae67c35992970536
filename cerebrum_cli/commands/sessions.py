"""`cerebrum sessions`: manage saved conversations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cerebrum_cli.commands.completion import completing, sessions
from cerebrum_cli.commands.context import require_agreement, runtime_of
from cerebrum_cli.commands.signature import SectionedCommand, composed, parameter
from cerebrum_cli.runtime.options import DeleteOptions, QuietOptions

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A session's name, as in `cerebrum sessions list`.", autocompletion=completing(sessions)
    ),
]
Json = Annotated[bool, parameter("json", "Print JSON", "Output")]


class ExportFormat(StrEnum):
    """Formats of `sessions export`."""

    MARKDOWN = "markdown"
    JSON = "json"
    SHAREGPT = "sharegpt"
    TRANSCRIPT = "transcript"


@app.command(name="list", cls=SectionedCommand)
@composed
def list_sessions(context: typer.Context, options: QuietOptions, json: Json = False) -> None:
    """List sessions, most recently changed first."""
    from cerebrum_cli.application.chat.archive import session_rows
    from cerebrum_cli.terminal.tables import print_rows, print_sessions

    runtime = runtime_of(context)
    empty = "" if options.quiet else "no saved sessions; cerebrum ask and cerebrum chat create them"
    print_rows(runtime.streams, session_rows(runtime.history.store), json, print_sessions, empty)


@app.command(cls=SectionedCommand)
@composed
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show a session's messages."""
    from cerebrum_cli.application.chat.archive import export_session, session_object

    runtime = runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if json:
        runtime.streams.answer_object(session_object(history.store, session))
    else:
        runtime.streams.answer(export_session(history.store, session, ExportFormat.MARKDOWN.value))


@app.command(cls=SectionedCommand)
@composed
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that must all occur in one message.")],
    options: QuietOptions,
    json: Json = False,
) -> None:
    """Search all messages for words, best match first."""
    from cerebrum_cli.application.chat.archive import search_rows
    from cerebrum_cli.terminal.tables import print_matches, print_rows

    runtime = runtime_of(context)
    print_rows(
        runtime.streams,
        search_rows(runtime.history.store, text),
        json,
        print_matches,
        "" if options.quiet else "No matches",
    )


@app.command(cls=SectionedCommand, short_help="Delete a session, and the whole prompt cache")
@composed
def rm(context: typer.Context, name: Name, options: DeleteOptions) -> None:
    """Delete a session, its unshared messages, and the whole prompt cache."""
    from cerebrum_cli.application.chat.archive import delete_session

    runtime = runtime_of(context)
    history = runtime.history
    session = history.get(name)
    history.lock.acquire(session)
    require_agreement(runtime, f"Delete session {name}?", name, options.yes)
    count = delete_session(history, session, runtime.clear_prompt_cache)
    if not options.quiet:
        runtime.streams.info(f"{name} deleted ({count} {'message' if count == 1 else 'messages'})")


@app.command(cls=SectionedCommand)
@composed
def export(
    context: typer.Context,
    name: Name,
    export_format: Annotated[
        ExportFormat,
        parameter("as", "json: OpenAI messages, transcript: exact prompt [default: markdown]", "Output"),
    ] = ExportFormat.MARKDOWN,
) -> None:
    """Print a session in another format."""
    from cerebrum_cli.application.chat.archive import export_session, export_transcript

    runtime = runtime_of(context)
    history = runtime.history
    session = history.get(name)
    if export_format is ExportFormat.TRANSCRIPT:
        model = runtime.library.resolve(session.model)
        text = export_transcript(runtime.open_backend, model, runtime.settings({}, model), history.store, session)
    else:
        text = export_session(history.store, session, export_format.value)
    runtime.streams.answer(text)


@app.command(name="import", cls=SectionedCommand)
@composed
def import_session(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file of OpenAI messages or ShareGPT.")],
    options: QuietOptions,
    name: Annotated[
        str | None, parameter("name", "Name of the session [default: from FILE]", "Input", metavar="NAME")
    ] = None,
) -> None:
    """Import a conversation from another program as a session."""
    from cerebrum_cli.application.chat import archive

    runtime = runtime_of(context)
    session = archive.import_session(runtime.history.store, file, name)
    if not options.quiet:
        runtime.streams.info(f"Imported as {session.name}; continue with cerebrum ask -c")
