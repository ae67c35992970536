"""`cerebrum prompts`: list, show, edit and delete saved prompts.

Examples:
  cerebrum prompts edit commit
  git diff | cerebrum ask -p commit
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import BaseCommand, argument, saved_prompts
from cerebrum_cli.cli.options import json_option, require_agreement, yes_option
from cerebrum_cli.core.declaration import option_group
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import atomic_write, translate_os_errors
from cerebrum_cli.core.saved_prompts import SavedPrompt, read_prompt
from cerebrum_cli.core.settings import read_config_text
from cerebrum_cli.terminal.tables import print_prompts

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

NAME_HELP = "A name from `cerebrum prompts list`"
EXAMPLE = """\
+++
# system = "Be brief."
# model = "cerebrum-7b"
# temperature = 0.2
# schema = "answer.schema.json"  # relative to this file
# extract = true  # print only the first code block
#
# [defaults]  # of {language} and other names in the prompt, which ask -P language=VALUE sets
# language = "English"
+++
Write a commit message for this change:

{input}
"""


@option_group
class ListPrompts(BaseCommand):
    """List saved prompts."""

    json: bool = json_option("array")

    def run(self, app: App) -> None:
        rows = [saved.as_object() for saved in app.prompts.read_all()]
        print_prompts(app.streams, rows, self.json)


@option_group
class ShowPrompt(BaseCommand):
    """Show a saved prompt."""

    name: str = argument("NAME", NAME_HELP, saved_prompts)
    json: bool = json_option()

    def run(self, app: App) -> None:
        path = app.prompts.find_file(self.name)
        if self.json:
            app.streams.answer(read_prompt(path).as_object())
            return
        app.streams.answer(read_config_text(path))
        with suppress(ConfigError):  # a file with a fault is shown, too
            report_placeholders(app, read_prompt(path))


@option_group
class EditPrompt(BaseCommand):
    """Edit a saved prompt, or create it.

    Opens its file in $VISUAL or $EDITOR. A new prompt starts with an example.
    """

    name: str = argument("NAME", "A new name, or a saved one", saved_prompts)

    def run(self, app: App) -> None:
        path = app.prompts.file(self.name)
        is_new = self.name not in app.prompts.names()
        if is_new:
            require_name(self.name)
            write_prompt(path, EXAMPLE)
        before = read_config_text(path)
        try:
            app.streams.edit(path)
        finally:
            is_unchanged = read_config_text(path) == before
            if is_new and is_unchanged:
                path.unlink()
        if is_unchanged:
            app.streams.note("no changes")
            return
        try:
            saved = read_prompt(path)
        except ConfigError as error:
            error.hint = f"run cerebrum prompts edit {self.name} to open the file again, with your text; {error.hint}"
            raise
        app.streams.note(f"{self.name} saved in {path}")
        report_placeholders(app, saved)


@option_group
class RmPrompts(BaseCommand):
    """Delete saved prompts."""

    names: list[str] = argument("NAME...", NAME_HELP, saved_prompts, is_list=True)
    yes: bool = yes_option()

    def run(self, app: App) -> None:
        chosen = list(dict.fromkeys(self.names))
        files = [app.prompts.find_file(name) for name in chosen]
        listed = ", ".join(chosen)
        what = "saved prompts" if len(chosen) > 1 else "saved prompt"
        require_agreement(app, f"Delete the {what} {listed}?", listed, self.yes)
        for file in files:
            file.unlink()
        app.streams.note(f"deleted {listed}")


def report_placeholders(app: App, saved: SavedPrompt) -> None:
    if saved.placeholders:
        first = saved.placeholders[0]
        literal = f"write {{{{{first}}}}} for the literal text {{{first}}}"
        app.streams.note(f"placeholders: {', '.join(saved.placeholders)}; {literal}")


def require_name(name: str) -> None:
    """Raise UsageError for the name of a new prompt that is hard to type, or no file's."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise UsageError.invalid("prompt name", name, "letters, digits, - and _")


def write_prompt(path: Path, text: str) -> None:
    with translate_os_errors(ConfigError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path.resolve(), text.encode())


GROUP = {"list": ListPrompts, "show": ShowPrompt, "edit": EditPrompt, "rm": RmPrompts}
