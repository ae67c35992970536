"""`cerebrum sessions`: manage saved conversations.

Examples:
  cerebrum sessions list
  cerebrum sessions search "sky"
  cerebrum sessions show physics > physics.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cerebrum_cli.cli.completion_values import sessions
from cerebrum_cli.cli.options import JsonArray, QuietOptions, Yes, require_agreement
from cerebrum_cli.cli.signature import Argument, CommandGroup, subcommand
from cerebrum_cli.core.controls import strip_controls
from cerebrum_cli.core.declaration import INTEGER, SWITCH, TEXT, Option
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import format_count
from cerebrum_cli.terminal.tables import LISTED, print_latest, print_rows

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.terminal.streams import Streams

group: CommandGroup = {}
Name = Annotated[str, Argument("NAME", "A session's name, as in `cerebrum sessions list`", sessions)]
SPACES = str.maketrans("\t\n", "  ")


@subcommand(group, name="list", short_help="List sessions.")
def list_sessions(
    app: App,
    _: QuietOptions,
    number: Annotated[
        int | None,
        Option(
            f"List at most N [default: {LISTED} on a terminal]", "Output", INTEGER, short="-n", metavar="N", least=1
        ),
    ] = None,
    all: Annotated[bool, Option("List all, with answers that went to a pipe or file", "Output", SWITCH)] = False,
    json: JsonArray = False,
) -> None:
    """List sessions: the latest is last on a terminal, first in a pipe or with --json."""

    if all and number is not None:
        raise UsageError.conflict("--all", "--number")
    rows = app.read_history().rows
    if all:
        number = len(rows)
    if json:
        app.streams.answer_object(rows[:number])
    else:
        print_latest(app.streams, rows, number, all)


@subcommand(group)
def show(
    app: App,
    name: Name,
    json: Annotated[bool, Option("Print a JSON object with OpenAI's messages", "Output", SWITCH)] = False,
) -> None:
    """Print a session as Markdown."""

    history = app.read_history()
    archived = history.archived(history.get(name))
    if json:
        app.streams.answer_object(archived.object)
    else:
        from cerebrum_cli.terminal.sinks import show_answer

        renders = app.readable_settings({}).markdown
        before = ""
        for role, text in archived.markdown_parts:
            app.streams.answer(before)
            show_answer(app.streams, f"{text}\n", markdown=renders and role in ("", "assistant"))
            before = "\n"


@subcommand(group, short_help="Search all messages.")
def search(
    app: App,
    text: Annotated[str, Argument("TEXT", "Words that must all occur in one message")],
    _: QuietOptions,
    json: JsonArray = False,
) -> None:
    """Search all messages for words, in any case, the latest message first."""

    print_rows(app.streams, app.read_history().search(text), json, print_matches, "No matches")


def print_matches(streams: Streams, matches: Iterable[JsonObject]) -> None:
    for match in matches:
        line = "{session}  {created:.10}  {role}: {excerpt}".format_map(match)
        streams.answer(f"{strip_controls(line).translate(SPACES)}\n")


@subcommand(group, short_help="Delete sessions, and the prompt cache.")
def rm(
    app: App,
    _: QuietOptions,
    yes: Yes = False,
    names: Annotated[list[str] | None, Argument("[NAME]...", "Names of sessions", sessions)] = None,
    older_than: Annotated[
        str | None, Option("Delete sessions unchanged for AGE, such as 30d", "Input", TEXT, metavar="AGE")
    ] = None,
) -> None:
    """Delete sessions with their messages, questions typed in them, and the prompt cache."""
    history = app.read_history()
    chosen = {name: history.get(name) for name in names or ()}
    if older_than:
        for session in history.older_than(older_than):
            chosen[session.name] = session
    elif not names:
        raise UsageError("no session given", "name one or more, or use --older-than")
    if not chosen:
        app.streams.info(f"no session is older than {older_than}")
        return
    for session in chosen.values():  # before the question: one that is open cannot be deleted
        history.lock(session)
    listed = ", ".join(chosen)
    what = f"session {listed}"
    if len(chosen) > 1:
        what = f"{len(chosen)} sessions ({listed})"
    require_agreement(app, f"Delete {what}?", listed, yes)
    states, typed = app.prompt_cache_directory, app.history_path
    for session, count in history.delete(list(chosen.values()), states, typed):
        app.streams.report(f"{session.name} deleted ({format_count(count, 'message')})")
