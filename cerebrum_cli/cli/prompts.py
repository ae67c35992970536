"""`cerebrum prompts`: list, show, edit, save and delete saved prompts.

Examples:
  cerebrum prompts edit commit
  cerebrum ask -s "Translate into French." --save-prompt french
  git diff | cerebrum ask -p commit
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.cli.completion_values import saved_prompts
from cerebrum_cli.cli.options import FIRST, AskOptions, QuietOptions
from cerebrum_cli.cli.signature import Json, JsonArray, Yes, positional, require_agreement, subcommand
from cerebrum_cli.core.config import PROMPTS, SavedPrompt, find_prompt, line_of, parse_config, read_config_text
from cerebrum_cli.core.declaration import options_of
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.files import replace_user_file
from cerebrum_cli.core.settings import KEYS, Layer, in_directory
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.terminal.repl.external_programs import edit_file
from cerebrum_cli.terminal.tables import NO_PROMPTS, print_prompts, print_rows

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

SAVED = {*KEYS, "prompt", "schema", "extract", "save_prompt", "yes", "quiet"}  # what may be given with --save-prompt
group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
NAME_HELP = "A name from `cerebrum prompts list`"
SKELETON = '''\
# prompt = """
# Write a commit message for this change:
#
# {input}
# """
# system = "Be brief."
# model = "cerebrum-7b"
# temperature = 0.2
# schema = "answer.schema.json"  # relative to this file
# extract = true  # print only the first code block
'''
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TABLE_END = re.compile(
    r"^(?:[ \t]*(?:#[^\n]*)?\r?\n)*(?=[ \t]*\[|\Z)", re.MULTILINE
)  # before comments on the next one


@subcommand(group, name="list", short_help="List saved prompts.")
def list_prompts(app: App, _: QuietOptions, json: JsonArray = False) -> None:
    """List saved prompts, in the order of config.toml."""
    rows = [saved.as_object() for saved in app.config.prompts.values()]
    print_rows(app.streams, rows, json, print_prompts, NO_PROMPTS)


@subcommand(group)
def show(app: App, name: Annotated[str, positional("NAME", NAME_HELP, saved_prompts)], json: Json = False) -> None:
    """Show a saved prompt."""
    saved = find_prompt(app.config.prompts, name)
    if json:
        app.streams.answer_object(saved.as_object())
    else:
        app.streams.answer(prompt_table(name, saved.table()))


@subcommand(group, short_help="Edit a saved prompt, or create it.")
def edit(
    app: App,
    name: Annotated[str, positional("NAME", "A new name, or a saved one", saved_prompts)],
    _: QuietOptions,
) -> None:
    """Open config.toml in $VISUAL or $EDITOR at a saved prompt. A new prompt starts with a commented example."""
    path = app.config_directory / "config.toml"
    before = read_config_text(path)
    text = before
    if not has_prompt(before, name):
        text = f"{_separated(before)}[{PROMPTS}.{_key(require_name(name))}]\n{SKELETON}"
        replace_user_file(path, text.encode())
    try:
        edit_file(path, table_line(text, name))
    finally:
        edited = read_config_text(path)
        if edited == text != before:  # only the skeleton was added
            if before:
                replace_user_file(path, before.encode())
            else:
                path.unlink()
    if edited == text:
        app.streams.report("no changes")
        return
    try:
        prompts = parse_config(edited, path).prompts
    except ConfigError as error:
        again = f"run cerebrum prompts edit {quote(name)} to open the file again, with your text"
        raise ConfigError(error.message, f"{error.hint}; {again}") from error
    app.streams.report(f"{name} saved in {path}" if name in prompts else f"{path} saved; it has no prompt {name}")


@subcommand(group)
def rm(
    app: App,
    names: Annotated[list[str], positional("NAME...", NAME_HELP, saved_prompts)],
    _: QuietOptions,
    yes: Yes = False,
) -> None:
    """Delete saved prompts."""
    chosen = list(dict.fromkeys(find_prompt(app.config.prompts, name).name for name in names))
    listed = ", ".join(chosen)
    what = "saved prompts" if len(chosen) > 1 else "saved prompt"
    require_agreement(app, f"Delete the {what} {listed}?", listed, yes)
    path = app.config_directory / "config.toml"
    text = read_config_text(path)
    for name in chosen:
        text = with_prompt(text, name, None)
    replace_user_file(path, text.encode())
    app.streams.report(f"deleted {listed}")


def save(
    app: App, name: str, prompt: str | None, overrides: Layer, options: AskOptions, on_command_line: frozenset[str]
) -> None:
    """Save what is on the command line as a prompt; variables are not saved. Raises UsageError."""
    from cerebrum_cli.cli.generation import MAX_GRAMMAR_BYTES
    from cerebrum_cli.library.model import absolute_reference
    from cerebrum_cli.replies.prompt_sources import read_piped, read_text

    require_name(name)
    if unsaved := min(on_command_line - SAVED, default=None):
        problem = f"{options_of(type(options))[unsaved].argument} cannot be saved with a prompt"
        raise UsageError(problem, "omit it, and add it to each question")
    settings = dict(
        in_directory({key: value for key, value in overrides.items() if key in on_command_line}, Path.cwd())
    )
    if "model" in settings:
        settings["model"] = absolute_reference(settings["model"])
    piped = app.streams.piped
    text = read_piped(piped) if prompt == "-" and piped else well_formed(prompt or "")
    schema = options.schema if "schema" in on_command_line else None
    if schema:
        read_text(schema, MAX_GRAMMAR_BYTES)
    extract = options.extract if "extract" in on_command_line and options.extract else False
    if schema and extract:
        raise UsageError.conflict(str(options.extract_flag), "--schema")
    values = SavedPrompt(
        name, settings, text.rstrip("\r\n") or None, schema and schema.resolve(), extract == FIRST or extract
    ).table()
    if not values:
        raise UsageError(f"nothing to save as {name}", "add a PROMPT, a system prompt with -s, or a setting")
    is_new = name not in app.config.prompts
    if not (is_new or options.yes or app.streams.confirm(f"Replace the saved prompt {name}?", default=False)):
        raise UsageError(f"the saved prompt {name} already exists", "choose another name, or replace it with -y")
    path = app.config_directory / "config.toml"
    replace_user_file(path, with_prompt(read_config_text(path), name, values).encode())
    app.streams.report(f"{name} saved in {path}; use it with cerebrum ask -p {quote(name)}")


def require_name(name: str) -> str:
    """Return the name of a new prompt. Raises UsageError for one that is hard to type."""
    if not name or name.startswith("-") or not name.isprintable() or any(char.isspace() for char in name):
        raise UsageError.invalid("prompt name", name, "letters, digits, - and _")
    return name


def has_prompt(text: str, name: str) -> bool:
    try:
        return name in tomllib.loads(text).get(PROMPTS, {})
    except (ValueError, RecursionError):
        return table_line(text, name) is not None


# The text of config.toml: comments and all other lines stay as they are.


def table_line(text: str, name: str) -> int | None:
    header = _header(name).search(text)
    return line_of(text, header.start()) if header else None


def with_prompt(text: str, name: str, values: Mapping[str, Any] | None) -> str:
    """Append a prompt's table, replace what is in it, or remove it, but not the comments before the next table.

    Raises ConfigError if it is written in an unusual way.
    """
    expected = tomllib.loads(text)
    prompts = expected.setdefault(PROMPTS, {})
    candidates = _replaced(text, name, values)
    if values is None:
        del prompts[name]
    else:
        if name not in prompts:
            candidates = iter([_separated(text) + prompt_table(name, values)])
        prompts[name] = dict(values)
    for candidate in candidates:
        with suppress(ValueError, RecursionError):
            if {PROMPTS: {}, **tomllib.loads(candidate)} == expected:  # a missing group of prompts is an empty one
                return candidate
    problem = f"[{PROMPTS}.{name}] is written in a form that cannot be changed automatically"
    raise ConfigError(problem, f"edit the file: cerebrum prompts edit {quote(name)}")


def prompt_table(name: str, values: Mapping[str, Any]) -> str:
    return f"[{PROMPTS}.{_key(name)}]\n{_table_body(values)}"


def _table_body(values: Mapping[str, Any]) -> str:
    import tomlkit

    table = tomlkit.table()
    for key, value in values.items():
        if isinstance(value, str) and "\n" in value and "\r" not in value and not value.startswith("\n"):
            string = tomlkit.string(value, multiline=True).as_string()
            table[key] = tomlkit.value('"""\n' + string.removeprefix('"""'))
        else:
            table[key] = value
    return table.as_string()


def _replaced(text: str, name: str, values: Mapping[str, Any] | None) -> Iterator[str]:
    """The text with other values in a table, or without the table, for all places where it may begin and end.

    What looks like the header of a table may be a line in a string.
    """
    for header in _header(name).finditer(text):
        for end in _TABLE_END.finditer(text, header.end()):
            if values is None:
                yield text[: header.start()] + text[end.start() :].lstrip("\r\n")
            else:
                yield text[: header.end()] + _table_body(values) + text[end.start() :]


def _separated(text: str) -> str:
    return f"{text.rstrip()}\n\n" if text.strip() else ""


def _header(name: str) -> re.Pattern[str]:
    keys = "|".join(map(re.escape, dict.fromkeys((_key(name), json.dumps(name, ensure_ascii=False), f"'{name}'"))))
    return re.compile(rf"^[ \t]*\[[ \t]*{PROMPTS}[ \t]*\.[ \t]*(?:{keys})[ \t]*\][^\n]*\n?", re.MULTILINE)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
