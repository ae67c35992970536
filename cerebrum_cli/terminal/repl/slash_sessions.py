"""The slash commands for saved sessions, and for what the open one holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cerebrum_cli.chat.archive import ArchivedSession
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import atomic_write, translate_os_errors
from cerebrum_cli.core.text import enumeration, format_count
from cerebrum_cli.terminal.interrupts import ignore_ctrl_c
from cerebrum_cli.terminal.repl.repl import LIST_SESSIONS, Repl
from cerebrum_cli.terminal.repl.typed_paths import parse_path
from cerebrum_cli.terminal.session_text import session_page, session_text
from cerebrum_cli.terminal.tables import print_latest, print_matches, print_rows

EXPORTS: Mapping[str, Callable[[ArchivedSession], str]] = {  # by the suffix of the file
    ".md": lambda archived: archived.markdown,
    ".html": session_page,
    ".json": lambda archived: archived.json,
}


def show_history(repl: Repl, _: str) -> None:
    text = session_text(repl.streams, repl.chat.archived, repl.chat.settings.markdown)
    with repl.display.keyboard.released(), repl.signals.acting(ignore_ctrl_c):
        repl.streams.page(f"{text}\n")


def list_sessions(repl: Repl, _: str) -> None:
    print_latest(repl.streams, repl.chat.tree.history.rows, lister="cerebrum sessions list --all")


def search_sessions(repl: Repl, argument: str) -> None:
    print_rows(repl.streams, repl.chat.tree.history.search(argument), False, print_matches, "No matches")


def load_session(repl: Repl, argument: str) -> None:
    repl.switch_session(argument)
    repl.streams.draw(f"Now in session {argument!r}\n")
    repl.show_last_exchange()
    repl.streams.note(repl.chat.difference)


def session_names(repl: Repl, _: str) -> Iterable[str]:
    return repl.chat.tree.history.store.names()


def rename_session(repl: Repl, argument: str) -> str:
    repl.chat.tree.rename(argument)
    if repl.chat.tree.is_saved:
        return f"Session saved as {argument!r}; every turn is saved automatically"
    return f"Session named {argument!r}; it is not saved"


def delete_session(repl: Repl, argument: str) -> str:
    """Delete a session after a question, without a name the open one."""
    tree = repl.chat.tree
    session = tree.history.get(argument, LIST_SESSIONS) if argument else tree.require_session()
    if not repl.input.confirm(f"Delete session {session.name}?", False):
        advice = "" if repl.streams.in_is_terminal else "; use cerebrum sessions rm -y"
        return f"{session.name} not deleted{advice}"
    opened = tree.session
    deleted = f"{session.name} deleted ({format_count(repl.chat.delete_session(session), 'message')})"
    return deleted if tree.session is opened else f"{deleted}; new conversation"


def export_session(repl: Repl, argument: str) -> str:
    """Write the session to a new file, in the format of its suffix."""
    archived, path = repl.chat.archived, parse_path(argument)
    suffix = path.suffix.lower()
    if suffix not in EXPORTS:
        raise UsageError(f"{path}: unsupported file type", f"use {enumeration([*EXPORTS], 'or')}")
    if path.exists():
        raise UsageError(f"{path} already exists", "choose another file")
    text = EXPORTS[suffix](archived)
    with translate_os_errors(UsageError, path, ", or choose another file"):
        atomic_write(path, text.encode())  # a partial file would make the next attempt fail
    return f"wrote {path}"
