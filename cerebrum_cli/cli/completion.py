"""Completion in bash, zsh and fish: Typer's, also of `small:Q8_0` and `--model=small`; imported when a shell asks."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any

from cerebrum_cli.core.environment import environment, set_environment

WORD_BREAKS = ":="  # at which bash splits words, by default
BASH_SPECIAL = re.compile(r"([^\w@%+=:,./-])")
ZSH_VALUE = re.compile(r'(^|\(\()"', re.MULTILINE)  # where each candidate begins


def complete(command_line: Any) -> None:
    """Print candidates for the word before the cursor, and exit. Typer completes only the value in `--model=sm`."""
    shorten_help(command_line)
    if environment("COMP_WORDS"):
        complete_in_bash(command_line)
        return
    words = split_words(environment("_TYPER_COMPLETE_ARGS") or "")
    option = option_of(words[-1]) if words else ""
    with printing(lambda text: with_option(option, text)):
        command_line(prog_name="cerebrum", standalone_mode=False)


def shorten_help(command: Any) -> None:
    """Omit defaults, which rich would take for markup."""
    for parameter in command.params:
        parameter.help = parameter.help.partition(" [")[0]
    for subcommand in getattr(command, "commands", {}).values():
        shorten_help(subcommand)


def with_option(option: str, text: str) -> str:
    """Candidates as zsh and fish read them, with the name of an option before each value: they replace whole words."""
    if text.startswith("_arguments"):
        return ZSH_VALUE.sub(rf'\1"{option}', text)
    return "".join(option + line for line in text.splitlines(keepends=True))


def complete_in_bash(command_line: Any) -> None:
    """Complete in bash, which splits words like `small:Q8_0`, and replaces only the part after the colon."""
    cursor = int(environment("COMP_CWORD") or 0)
    words = split_words(environment("COMP_WORDS") or "")[: cursor + 1]
    if len(words) <= cursor:
        words.append("")
    joined = joined_words(words)
    incomplete = joined[-1]
    option = option_of(incomplete)
    unreplaced = incomplete.removesuffix(words[-1].lstrip(WORD_BREAKS))

    def escape(text: str) -> str:
        lines = [(option + line).removeprefix(unreplaced) for line in text.splitlines()]
        return "".join(BASH_SPECIAL.sub(r"\\\1", line) + "\n" for line in lines)

    set_environment("COMP_WORDS", shlex.join(joined))
    set_environment("COMP_CWORD", str(len(joined) - 1))
    with printing(escape):
        command_line(prog_name="cerebrum", standalone_mode=False)


@contextmanager
def printing(change: Callable[[str], str]) -> Iterator[None]:
    """Change what is printed meanwhile."""
    output = StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        sys.stdout.write(change(output.getvalue()))


def option_of(word: str) -> str:
    """The name in `--model=sm` with its equal sign; empty for other words."""
    return word[: word.find("=") + 1] if word.startswith("-") else ""


def split_words(line: str) -> list[str]:
    with suppress(ValueError):  # of an open quote
        return shlex.split(line)
    return line.split()


def joined_words(words: list[str]) -> list[str]:
    """The words before bash split them."""
    joined: list[str] = []
    follows_break = False
    for word in words:
        is_break = bool(word) and not word.strip(WORD_BREAKS)
        if joined and (is_break or (follows_break and word)):
            joined[-1] += word
        else:
            joined.append(word)
        follows_break = is_break
    return joined


def completed_command() -> str:
    line = environment("COMP_WORDS") or environment("_TYPER_COMPLETE_ARGS") or ""
    words = line.split()
    return words[1] if len(words) > 1 else ""
