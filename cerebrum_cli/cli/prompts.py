"""`cerebrum prompts`: list, show, edit, save and delete saved prompts.

Examples:
  cerebrum prompts edit commit
  cerebrum ask -s "Translate into French." --save-prompt french
  git diff | cerebrum ask -p commit
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cerebrum_cli.cli.completion_values import saved_prompts
from cerebrum_cli.cli.options import FIRST, AskOptions, Json, JsonArray, Names, QuietOptions, Yes, require_agreement
from cerebrum_cli.cli.signature import Argument, CommandGroup, subcommand
from cerebrum_cli.core.config import read_config_text
from cerebrum_cli.core.declaration import options_of
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import atomic_write, translate_os_errors
from cerebrum_cli.core.grammar import schema_file
from cerebrum_cli.core.saved_prompts import SavedPrompt, read_prompt
from cerebrum_cli.core.settings import KEYS, Layer, in_directory
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.terminal.tables import print_prompts

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

SAVED = {*KEYS, "prompt", "schema", "extract", "save_prompt", "yes", "quiet"}  # what may be given with --save-prompt
group: CommandGroup = {}
NAME_HELP = "A name from `cerebrum prompts list`"
EXAMPLE = """\
+++
# system = "Be brief."
# model = "cerebrum-7b"
# temperature = 0.2
# schema = "answer.schema.json"  # relative to this file
# extract = true  # print only the first code block
+++
Write a commit message for this change:

{input}
"""


@subcommand(group, name="list", short_help="List saved prompts.")
def list_prompts(app: App, _: QuietOptions, json: JsonArray = False) -> None:
    """List saved prompts by name."""
    rows = [saved.as_object() for saved in app.prompts.read_all()]
    print_prompts(app.streams, rows, json)


@subcommand(group)
def show(app: App, name: Annotated[str, Argument("NAME", NAME_HELP, saved_prompts)], json: Json = False) -> None:
    """Show a saved prompt."""
    path = app.prompts.find_file(name)
    if json:
        app.streams.answer_object(read_prompt(path).as_object())
    else:
        app.streams.answer(read_config_text(path))
        with suppress(ConfigError):  # a file with a fault is shown, too
            report_placeholders(app, read_prompt(path))


@subcommand(group, short_help="Edit a saved prompt, or create it.")
def edit(
    app: App,
    name: Annotated[str, Argument("NAME", "A new name, or a saved one", saved_prompts)],
    _: QuietOptions,
) -> None:
    """Open the file of a saved prompt in $VISUAL or $EDITOR. A new prompt starts with an example."""
    path = app.prompts.file(name)
    is_new = name not in app.prompts.names()
    if is_new:
        require_name(name)
        write_prompt(path, EXAMPLE)
    before = read_config_text(path)
    try:
        app.streams.edit(path)
    finally:
        is_unchanged = read_config_text(path) == before
        if is_new and is_unchanged:
            path.unlink()
    if is_unchanged:
        app.streams.report("no changes")
        return
    try:
        saved = read_prompt(path)
    except ConfigError as error:
        error.hint += f"; run cerebrum prompts edit {name} to open the file again, with your text"
        raise
    app.streams.report(f"{name} saved in {path}")
    report_placeholders(app, saved)


@subcommand(group)
def rm(
    app: App,
    names: Annotated[list[str], Argument("NAME...", NAME_HELP, saved_prompts)],
    _: QuietOptions,
    yes: Yes = False,
) -> None:
    """Delete saved prompts."""
    chosen = list(dict.fromkeys(names))
    files = [app.prompts.find_file(name) for name in chosen]
    listed = ", ".join(chosen)
    what = "saved prompts" if len(chosen) > 1 else "saved prompt"
    require_agreement(app, f"Delete the {what} {listed}?", listed, yes)
    for file in files:
        file.unlink()
    app.streams.report(f"deleted {listed}")


def save(
    app: App, name: str, prompt: str | None, overrides: Layer, options: AskOptions, on_command_line: Names
) -> None:
    """Save what is on the command line as a prompt; variables are not saved. Raises UsageError."""
    require_name(name)
    if unsaved := min(on_command_line - SAVED, default=None):
        problem = f"{options_of(type(options))[unsaved].argument} cannot be saved with a prompt"
        raise UsageError(problem, "omit it, and add it to each question")
    schema = typed_schema(options, on_command_line)
    extract: bool | str = False
    if options.extract and options.extract_flag and "extract" in on_command_line:
        extract = options.extract == FIRST or options.extract
    if schema and extract:
        raise UsageError.conflict(str(options.extract_flag), "--schema")
    saved = SavedPrompt(name, saved_settings(overrides, on_command_line), typed_prompt(app, prompt), schema, extract)
    if not (saved.prompt or saved.header):
        raise UsageError(f"nothing to save as {name}", "add a PROMPT, a system prompt with -s, or a setting")
    path = app.prompts.file(name)
    is_new = not path.exists()
    if not (is_new or options.yes or app.streams.confirm(f"Replace the saved prompt {name}?", default=False)):
        raise UsageError(f"the saved prompt {name} already exists", "choose another name, or replace it with -y")
    write_prompt(path, saved.file_text())
    app.streams.report(f"{name} saved in {path}; use it with cerebrum ask -p {saved.usage}")
    report_placeholders(app, saved)


def report_placeholders(app: App, saved: SavedPrompt) -> None:
    if saved.placeholders:
        first = saved.placeholders[0]
        names = ", ".join(saved.placeholders)
        app.streams.report(f"placeholders: {names}; {{{{{first}}}}} is the text {{{first}}}")


def saved_settings(overrides: Layer, on_command_line: Names) -> Layer:
    """Settings of the command line with absolute paths: a saved prompt is used in any directory."""
    from cerebrum_cli.core.paths import absolute_reference

    typed = {key: value for key, value in overrides.items() if key in on_command_line}
    settings = dict(in_directory(typed, Path.cwd()))
    if "model" in settings:
        settings["model"] = absolute_reference(settings["model"])
    return settings


def typed_prompt(app: App, prompt: str | None) -> str | None:
    from cerebrum_cli.attachments.prompt_sources import read_piped

    text = well_formed(prompt or "")
    if prompt == "-" and app.streams.piped:
        text = read_piped(app.streams.piped)
    return text.strip("\r\n") or None


def typed_schema(options: AskOptions, on_command_line: Names) -> str | None:
    """The schema, or the path of its file, which can be read. Raises UsageError."""
    from cerebrum_cli.cli.constraints import schema_text

    if options.schema is None or "schema" not in on_command_line:
        return None
    schema_text(options.schema)
    path = schema_file(options.schema)
    return str(path.resolve()) if path else options.schema


def require_name(name: str) -> None:
    """Raise UsageError for the name of a new prompt that is hard to type, or no file's."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise UsageError.invalid("prompt name", name, "letters, digits, - and _")


def write_prompt(path: Path, text: str) -> None:
    with translate_os_errors(ConfigError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path.resolve(), text.encode())
