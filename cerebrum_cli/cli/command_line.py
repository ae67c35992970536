"""Assemble the command line for Typer."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext, suppress
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import typer
from typer._click.shell_completion import CompletionItem, add_completion_class
from typer._completion_classes import ZshComplete
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_install_completion_arguments

from cerebrum_cli.cli import DESCRIPTION, EPILOG
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.text import describe_error

if TYPE_CHECKING:
    from types import ModuleType

    from cerebrum_cli.cli import Command
    from cerebrum_cli.cli.command import BaseCommand, CommandGroup
    from cerebrum_cli.cli.outside_commands import Commands

OFF = dict.fromkeys(("help", "show_completion"), False)  # a value that Typer need not convert


def assembled(commands: Commands, names: Collection[str], is_completing: bool = False) -> Any:
    """The command line; only commands of these names have options, since loading those of all takes 20 ms.

    Raises CerebrumError if one from outside cannot be used; completion does without its options.
    """
    _, show_completion = get_install_completion_arguments()
    add_completion_class(ZshCompletion, ZshCompletion.name)
    shown: dict[str, Any] = {}
    for name, command in commands.items():
        shown[name] = TyperCommand(name, help=command.summary, short_help=command.summary)
        with suppress(UnusableCommand) if is_completing else nullcontext():
            if name in names:
                shown[name] = assembled_command(command)
    return TyperGroup(
        name="cerebrum",
        help=DESCRIPTION,
        epilog=EPILOG,
        commands=shown,
        params=[VersionOption(), show_completion],
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "default_map": OFF},
    )


class UnusableCommand(CerebrumError):
    """A command from outside that cannot be imported or declared."""


def assembled_command(command: Command) -> Any:
    """A command with its options. Raises UnusableCommand for one from outside whose code fails."""
    try:
        return declared_command(command)
    except BaseException as error:  # code of others may raise anything
        if command.module.startswith("cerebrum_cli."):
            raise
        problem = f"the command {command.name} cannot be used: {describe_error(error)}"
        raise UnusableCommand(problem, "update or uninstall its package") from error


def declared_command(command: Command) -> Any:
    module = import_module(command.module)
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


def own_command(command: Command, module: ModuleType, declared: type[BaseCommand] | CommandGroup) -> Any:
    """A command, or a group of them; its docstring, or that of the group's module, ends with examples."""
    from cerebrum_cli.cli.command import ParsedCommand, grouped

    documented = declared if isinstance(declared, type) else module
    details, _, examples = cleandoc(documented.__doc__ or "").partition("Examples:\n")
    shown: dict[str, Any] = {"short_help": command.summary, "epilog": f"\b\nExamples:\n{examples}"}
    if isinstance(declared, type):
        return ParsedCommand(command.name, declared, help=f"{command.summary}.\n\n{details}".rstrip(), **shown)
    return grouped(command.name, declared, help=f"{command.summary}.", **shown)


class ZshCompletion(ZshComplete):
    """Completion in zsh, with apostrophes, which Typer leaves out of texts that are quoted with these."""

    def format_completion(self, item: CompletionItem) -> str:
        return super().format_completion(item).replace("''", r"'\''")


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
