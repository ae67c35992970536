"""Completion in bash, zsh and fish: Typer's, in bash also of `small:Q8_0`; imported when a shell asks."""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import typer

from cerebrum_cli.core.environment import environment, set_environment

BASH_SPECIAL = re.compile(r"([^\w@%+=:,./-])")


def complete(command_line: Any) -> None:
    """Print candidates for the word before the cursor, and exit."""
    shorten_help(command_line)
    unreplaced = join_words(environment("COMP_WORDS") or "")
    output = StringIO()
    try:
        with redirect_stdout(output):
            command_line(prog_name="cerebrum", standalone_mode=False)
    finally:
        text = output.getvalue()
        if unreplaced is not None:
            lines = [BASH_SPECIAL.sub(r"\\\1", line.removeprefix(unreplaced)) for line in text.splitlines()]
            text = "\n".join(lines)
        typer.echo(text, nl=False)


def shorten_help(command: Any) -> None:
    """Omit defaults, which rich would take for markup."""
    for parameter in command.params:
        parameter.help = (parameter.help or "").partition(" [")[0]
    for subcommand in getattr(command, "commands", {}).values():
        shorten_help(subcommand)


def join_words(line: str) -> str | None:
    """Join words that bash splits at colons; return the part of the last that it does not replace, None elsewhere."""
    cursor = environment("COMP_CWORD")
    if cursor is None:
        return None
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    words = [*words, ""][: int(cursor) + 1]
    joined = shlex.split(shlex.join(words).replace(" : ", ":").replace(" :", ":"))
    set_environment("COMP_WORDS", shlex.join(joined))
    set_environment("COMP_CWORD", str(len(joined) - 1))
    return joined[-1].removesuffix(words[-1].lstrip(":"))


def completed_command() -> str:
    line = environment("COMP_WORDS") or environment("_TYPER_COMPLETE_ARGS") or ""
    words = line.split()
    return words[1] if len(words) > 1 else ""
