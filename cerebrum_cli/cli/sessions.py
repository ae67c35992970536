"""`cerebrum sessions`: manage saved conversations.

Examples:
  cerebrum sessions list
  cerebrum sessions search "sky"
  cerebrum sessions show physics > physics.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import BaseCommand, argument, sessions
from cerebrum_cli.cli.options import json_option, require_agreement, yes_option
from cerebrum_cli.core.declaration import INTEGER, option, option_group, switch
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import format_count
from cerebrum_cli.terminal.tables import LISTED, print_latest, print_matches, print_rows

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


@option_group
class ListSessions(BaseCommand):
    """List sessions.

    The latest is last on a terminal, first in a pipe or with --json.
    """

    number: int | None = option(
        f"List at most N [default: {LISTED} on a terminal]", "Output", INTEGER, short="-n", metavar="N", least=1
    )
    all: bool = switch("List all, with answers that went to a pipe or file", "Output")
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        if self.all and self.number is not None:
            raise UsageError.conflict("--all", "--number")
        rows = app.read_history().rows
        number = len(rows) if self.all else self.number
        if self.json:
            app.streams.answer(rows[:number])
        else:
            print_latest(app.streams, rows, number, self.all)


@option_group
class ShowSession(BaseCommand):
    """Print a session as Markdown."""

    name: str = argument("NAME", "A session's name, as in `cerebrum sessions list`", sessions)
    json: bool = switch("Print a JSON object with OpenAI's messages", "Output")
    html: bool = switch("Print an HTML page", "Output")

    def run(self, app: App) -> None:
        from cerebrum_cli.terminal.session_text import session_page, session_text

        if self.json and self.html:
            raise UsageError.conflict("--json", "--html")
        history = app.read_history()
        archived = history.archived(history.get(self.name))
        if self.json:
            app.streams.answer(archived.object)
            return
        if self.html:
            app.streams.answer(session_page(archived))
            return
        text = session_text(app.streams, archived, app.readable_settings({}).markdown)
        app.streams.answer(text, is_styled=True)


@option_group
class SearchSessions(BaseCommand):
    """Search all messages.

    Words are found in any case. The latest message is last on a terminal, first in a pipe or with --json.
    """

    text: str = argument("TEXT", "Words that must all occur in one message")
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        print_rows(app.streams, app.read_history().search(self.text), self.json, print_matches, "No matches")


@option_group
class RmSessions(BaseCommand):
    """Delete sessions, and the prompt cache.

    Questions that were typed in them are deleted, too.
    """

    names: list[str] = argument("[NAME]...", "Names of sessions", sessions, is_list=True, is_required=False)
    older_than: str | None = option("Delete sessions unchanged for AGE, such as 30d", "Input", metavar="AGE")
    yes: bool = yes_option()

    def run(self, app: App) -> None:
        history = app.read_history()
        chosen = {name: history.get(name) for name in self.names}
        if self.older_than:
            for session in history.older_than(self.older_than):
                chosen[session.name] = session
        elif not self.names:
            raise UsageError("no session given", "name one or more, or use --older-than")
        if not chosen:
            app.streams.draw(f"no session is older than {self.older_than}\n")
            return
        for session in chosen.values():  # before the question: one that is open cannot be deleted
            history.lock(session)
        listed = ", ".join(chosen)
        what = f"session {listed}"
        if len(chosen) > 1:
            what = f"{len(chosen)} sessions ({listed})"
        require_agreement(app, f"Delete {what}?", listed, self.yes)
        states, typed = app.prompt_cache_directory, app.history_path
        for session, count in history.delete(list(chosen.values()), states, typed):
            app.streams.note(f"{session.name} deleted ({format_count(count, 'message')})")


GROUP = {"list": ListSessions, "show": ShowSession, "search": SearchSessions, "rm": RmSessions}
