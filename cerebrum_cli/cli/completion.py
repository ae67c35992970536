"""Completion in bash, zsh and fish, beyond what Typer does; imported when a shell asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer._click.shell_completion import CompletionItem, ShellComplete, add_completion_class
from typer._completion_classes import BashComplete, FishComplete, ZshComplete

from cerebrum_cli.core.environment import environment

WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # the command line so far: bash's, other shells'
WORD_BREAKS = ":="  # at which bash splits words, by default


def complete(command_line: Any) -> None:
    for shell, words in (("bash", BashWords), ("zsh", ZshWords), ("fish", FishWords)):
        add_completion_class(words, shell)
    command_line(prog_name="cerebrum", standalone_mode=False)


class OptionValues(ShellComplete):
    """Completion of `--model=sm`, which shells replace as one word; without defaults in the help of options."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        option = incomplete[: incomplete.find("=") + 1] if incomplete.startswith("-") else ""
        items = super().get_completions(args, incomplete)
        for item in items:
            item.value = option + item.value
            item.help = item.help and item.help.partition(" [")[0]
        return items


class ZshWords(OptionValues, ZshComplete):
    """Completion in zsh."""


class FishWords(OptionValues, FishComplete):
    """Completion in fish."""


class BashWords(OptionValues, BashComplete):
    """Completion in bash, which splits words like `small:Q8_0` and replaces only the part after the colon."""

    unreplaced = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, last = super().get_completion_args()
        *words, incomplete = joined_words([*args, last])
        self.unreplaced = incomplete.removesuffix(last.lstrip(WORD_BREAKS))
        return words, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return re.sub(r"([^\w@%+=:,./-])", r"\\\1", super().format_completion(item).removeprefix(self.unreplaced))


def joined_words(words: Iterable[str]) -> list[str]:
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
    line = next((line.split() for line in map(environment, WORDS) if line), [])
    return line[1] if len(line) > 1 else ""
