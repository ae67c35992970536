"""The slash commands of a chat: one table, which help, completion and near misses read."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from cerebrum_cli.ground.errors import UsageError


class Slash(NamedTuple):
    """A command: what stands after its name, and what it does."""

    name: str
    argument: str
    does: str


class Line(NamedTuple):
    """A line that calls a command."""

    name: str
    argument: str


SLASHES = (
    Slash("help", "", "show the commands and the keys"),
    Slash("exit", "", "leave; Ctrl-D does too"),
    Slash("clear", "", "begin a new conversation; this one is kept"),
    Slash("system", "[TEXT]", "show the system prompt, or lead the conversation with another from now on"),
    Slash("undo", "", "take the last question and its reply back"),
    Slash("retry", "[TEMPERATURE]", "answer the last question again"),
    Slash("continue", "", "go on with a reply that was cut"),
    Slash("fork", "[NAME]", "go on in a session of its own; this one stays as it is"),
    Slash("sessions", "", "list the sessions that are kept"),
    Slash("load", "NAME", "go on with another session"),
    Slash("file", "PATH", "put a file before the next question"),
    Slash("prompt", "", "show the exact text the model sees"),
    Slash("final", "", "show the final answer of the last reply"),
    Slash("think", "", "show what was thought before the last reply"),
    Slash("tokens", "", "show how much of the context is used"),
    Slash("stats", "", "show what the last reply cost"),
)


def parse_slash(line: str) -> Line | None:
    """Return the command a line calls, None for one that calls none. UsageError for one there is not."""
    if not line.startswith("/"):
        return None
    name, _, argument = line[1:].partition(" ")
    names = [slash.name for slash in SLASHES]
    if name in names:
        return Line(name, argument.strip())
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    do = f"did you mean /{near[0]}? " if near else ""
    raise UsageError(f"there is no command /{name}", f"{do}/help shows them; a space before the slash asks it instead")


def help_text() -> str:
    """Return the commands and the keys, a line each."""
    rows = [(f"/{slash.name} {slash.argument}".rstrip(), slash.does) for slash in SLASHES]
    width = max(len(call) for call, _ in (*rows, *KEYS))
    return "".join(f"{call:<{width}}  {does}\n" for call, does in (*rows, ("", ""), *KEYS))


KEYS = (
    ("Enter", "ask"),
    ("Alt-Enter, Ctrl-J", "a new line"),
    ('"""', "begins and ends a text of several lines"),
    ("Tab", "complete a command or a file name"),
    ("Ctrl-R", "search what was asked before"),
    ("Ctrl-X Ctrl-E", "write in your editor"),
    ("Ctrl-C", "end a reply and keep what was said; twice at an empty prompt leaves"),
    ("Ctrl-D", "leave"),
)
