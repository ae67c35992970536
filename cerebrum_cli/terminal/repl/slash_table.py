"""The slash commands and keys of a chat: the tables which help, completion, near misses and the README read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import wrap
from typing import Literal, NamedTuple

from cerebrum_cli.application.inference.format_choice import FORMAT_NAMES
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import KEYS as SETTINGS
from cerebrum_cli.core.settings import OPTIONS

CALLS = 22  # columns of a call in the help

USUAL = "default"  # what /system takes for the format's own

ELSEWHERE = {"model": "/model", "system": "/system"}  # settings with a command of their own
SETTABLE = tuple(key for key in SETTINGS if key not in ELSEWHERE)
VALUES = {"format": FORMAT_NAMES} | {key: option.choices for key, option in OPTIONS.items() if option.choices}
PARTS = ("question", "answer")  # of a turn, that can be edited

Completes = Literal["", "path", "model", "session", "setting", "part"]


class Slash(NamedTuple):
    """A command: what stands after its name, what it does, and what its argument is one of."""

    name: str
    argument: str
    does: str
    completes: Completes = ""


class Line(NamedTuple):
    """A line that calls a command."""

    name: str
    argument: str


SLASHES = (
    Slash("help", "", "show the commands and the keys"),
    Slash("exit", "", "leave; Ctrl-D does too"),
    Slash("clear", "", "begin a new conversation; this one is kept"),
    Slash(
        "system",
        f"[TEXT|{USUAL}]",
        "show the system prompt, or lead the conversation with another from now on, or with the format's own",
    ),
    Slash("model", "[MODEL]", "show the model, or go on with another", "model"),
    Slash("set", "KEY [VALUE]", "change a setting; without a value it is as usual again", "setting"),
    Slash("params", "", "show the settings"),
    Slash("undo", "", "take the last question and its reply back"),
    Slash("retry", "[TEMP|SEED]", "answer the last question again, at a temperature or with a seed"),
    Slash("votes", "K [QUESTION]", "sample K chains and take the answer most come to; the last question without one"),
    Slash("edit", "[answer]", "change the last question, or its reply, in your editor, and go on", "part"),
    Slash("continue", "", "go on with a reply that was cut"),
    Slash("fork", "[NAME]", "go on in a session of its own; this one stays as it is"),
    Slash("sessions", "", "list the sessions that are kept"),
    Slash("load", "NAME", "go on with another session", "session"),
    Slash("save", "NAME", "give this session a name; it is kept under any"),
    Slash(
        "export", "FILE", "write the session: .md for people, .json OpenAI's messages, .txt the exact prompt", "path"
    ),
    Slash("file", "FILE", "put a file before the next question", "path"),
    Slash("tokens", "", "show how much of the context is used"),
    Slash("stats", "", "show what the last reply cost"),
    Slash("copy", "[N]", "copy the last reply, or the N-th code block of it"),
    Slash("final", "", "show the final answer of the last reply"),
    Slash("prompt", "", "show the exact text the model sees"),
    Slash("think", "", "show what was thought before the last reply"),
)

KEYS = (
    ("Enter", "ask"),
    ("Alt-Enter, Ctrl-J", "a new line"),
    ('"""', "begins and ends a text of several lines"),
    ("Tab", "complete a command, a file, a model, a session or a setting"),
    ("Up, Down", "what was asked before"),
    ("Ctrl-R", "search what was asked before"),
    ("Ctrl-X Ctrl-E", "write in $VISUAL or $EDITOR"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-C", "end a reply and keep what was said; twice at an empty prompt leaves"),
    ("Ctrl-D", "leave"),
)


def parse_slash(line: str) -> Line | None:
    """Return the command a line calls, None for one that calls none. UsageError for one there is not."""
    if not line.startswith("/"):
        return None
    name, *rest = line[1:].split(maxsplit=1) if line[1:2].strip() else ("",)
    names = [slash.name for slash in SLASHES]
    if name in names:
        return Line(name, rest[0].strip() if rest else "")
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    do = f"did you mean /{near[0]}? " if near else ""
    raise UsageError(f"there is no command /{name}", f"{do}/help shows them; a space before the slash asks it instead")


def setting_key(text: str) -> str:
    """Return a setting's key, which may be written as the command line's option."""
    return text.removeprefix("--").replace("-", "_")


def near_setting(key: str) -> str | None:
    """Return the setting that was meant: the one that begins so, else one that is written much like it."""
    if not key:
        return None
    begun = [each for each in SETTABLE if each.startswith(key)]
    return begun[0] if len(begun) == 1 else next(iter(get_close_matches(key, SETTABLE, n=1, cutoff=0.5)), None)


def help_text(width: int) -> str:
    """Return the commands and the keys, a line each, or as many as they take in a window of so many columns."""
    slashes = [(f"/{slash.name} {slash.argument}".rstrip(), slash.does) for slash in SLASHES]
    return f"{_listed(slashes, width)}\n{_listed(KEYS, width)}"


def _listed(rows: Iterable[tuple[str, str]], width: int) -> str:
    lines = []
    for call, does in rows:
        indent = " " * CALLS
        begin = f"{call:<{CALLS - 1}} " if len(call) < CALLS else f"{call}  "
        lines += wrap(begin + does, max(width, 2 * CALLS), subsequent_indent=indent, drop_whitespace=True)
    return "".join(f"{line}\n" for line in lines)
