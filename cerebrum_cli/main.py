"""Assemble the command line, and run it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_install_completion_arguments

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.core.environment import environment

if TYPE_CHECKING:
    from types import ModuleType

    from cerebrum_cli.cli import Command
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.command import BaseCommand, CommandGroup
    from cerebrum_cli.cli.commands import Commands

COMPLETION = "_CEREBRUM_COMPLETE"  # set by a shell that asks for completions
CORE = {command.name: command for command in COMMANDS}
OFF = dict.fromkeys(("help", "install_completion", "show_completion"), False)  # a value that Typer need not convert


def assembled(commands: Commands, names: Collection[str]) -> Any:
    """The command line; only commands of these names have options, since loading those of all takes 20 ms."""
    return TyperGroup(
        name="cerebrum",
        help="Chat with language models on your own computer, from the terminal.",
        epilog="Every setting can also be set as CEREBRUM_...: --max-tokens is CEREBRUM_MAX_TOKENS.",
        commands={name: assembled_command(command, name in names) for name, command in commands.items()},
        params=[VersionOption(), *get_install_completion_arguments()],
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "default_map": OFF},
    )


def assembled_command(command: Command, is_named: bool) -> Any:
    if not is_named:
        return TyperCommand(command.name, help=command.summary, short_help=command.summary)
    module = module_of(command)
    declared = getattr(module, command.attribute)
    if isinstance(declared, (dict, type)):
        return own_command(command, module, declared)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)  # of another package
    if isinstance(declared, typer.Typer):
        app.add_typer(declared, name=command.name, help=command.summary)
        group: Any = get_command(app)
        return group.commands[command.name]
    app.command(command.name, help=command.summary)(declared)
    return get_command(app)


def module_of(command: Command) -> ModuleType:
    """The module of a command. Raises CerebrumError for one from outside that cannot be imported."""
    try:
        return import_module(command.module)
    except Exception as error:
        if command.module.startswith(f"{__package__}."):
            raise
        from cerebrum_cli.core.errors import CerebrumError

        problem = f"the command {command.name} cannot be used: {type(error).__name__}: {error}"
        raise CerebrumError(problem, "update or uninstall its package") from error


def own_command(command: Command, module: ModuleType, declared: type[BaseCommand] | CommandGroup) -> Any:
    """A command, or a group of them; its docstring, or that of the group's module, ends with examples."""
    from cerebrum_cli.cli.command import ParsedCommand, grouped

    documented = declared if isinstance(declared, type) else module
    details, _, examples = cleandoc(documented.__doc__ or "").partition("Examples:\n")
    shown: dict[str, Any] = {"short_help": command.summary, "epilog": f"\b\nExamples:\n{examples}"}
    if isinstance(declared, type):
        return ParsedCommand(command.name, declared, help=f"{command.summary}.\n\n{details}".rstrip(), **shown)
    return grouped(command.name, declared, help=f"{command.summary}.", **shown)


class VersionOption(TyperOption):
    """`--version`, whose value Typer need not convert."""

    def __init__(self) -> None:
        unconverted: Any = None
        super().__init__(
            param_decls=["version", "--version"],
            type_descriptor=unconverted,
            is_flag=True,
            is_eager=True,
            expose_value=False,
            help="Print the version.",
        )

    def process_value(self, ctx: Any, value: Any) -> None:
        if value:
            from cerebrum_cli.core.version import __version__

            typer.echo(f"cerebrum {__version__}")
            ctx.exit()


def run(arguments: list[str] | None = None, app: App | None = None) -> int:
    """Run one command line and return its exit code: the single error handler."""
    words = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None:  # closed; writing to it is to fail
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    command: Command | None = None
    try:
        if environment(COMPLETION) is not None:
            from cerebrum_cli.cli.commands import every_command

            commands, _ = every_command()
            assembled(commands, commands)(prog_name="cerebrum", standalone_mode=False)  # prints candidates, and exits
        commands = commands_for(words, app)
        command = named_command(words, commands)
        names = [command.name] if command else []
        return assembled(commands, names)(arguments, "cerebrum", obj=app, standalone_mode=False) or 0
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):  # Typer turned it into exit 1
            sys.stderr = sys.__stderr__  # which it has wrapped, even if there is none
            return 0
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        from cerebrum_cli.cli.failures import report

        code = report(error, command, app, words)
        if code is None:  # a bug
            raise
        return code


def named_command(words: Sequence[str], commands: Commands) -> Command | None:
    """The command on a command line, also behind `--`."""
    for word in words[:2]:
        if not word.startswith("-"):
            return commands.get(word)
    return None


def commands_for(words: Sequence[str], app: App | None) -> Commands:
    """The commands of the core, and the others if the words name no command of it, with a warning of broken ones."""
    if named_command(words, CORE):
        return CORE
    from cerebrum_cli.cli.commands import every_command, own_commands

    commands = own_commands()
    if named_command(words, commands):
        return commands
    commands, warnings = every_command()
    for problem, hint in warnings:
        print_notice(app, problem, hint)
    return commands


def print_notice(app: App | None, problem: str, hint: str) -> None:
    from cerebrum_cli.terminal.streams import standard_streams

    (app.streams if app else standard_streams()).note(problem, hint)
