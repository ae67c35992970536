"""Assemble the command line, and turn errors into messages and exit codes."""

from __future__ import annotations

import errno
import re
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
from cerebrum_cli.core.errors import CerebrumError, Interrupted, UsageError
from cerebrum_cli.core.version import __version__

if TYPE_CHECKING:
    from types import ModuleType

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.commands import Commands
    from cerebrum_cli.cli.signature import CommandGroup, Declared
    from cerebrum_cli.core.extensions import Command

COMPLETION = "_CEREBRUM_COMPLETE"  # set by a shell that asks for completions
CORE = {command.name: command for command in COMMANDS}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
NO_TEMPORARY_DIRECTORY = (errno.ENOENT, None)  # error number and file name
OFF = dict.fromkeys(("help", "install_completion", "show_completion"), False)  # a value that Typer need not convert
OTHER_COMMANDS = {  # of other programs, and what does the same here
    "help": "did you mean cerebrum --help?",
    "version": "did you mean cerebrum --version?",
    "models": "did you mean cerebrum list?",
    "list-models": "did you mean cerebrum list?",
    "ls": "did you mean cerebrum list?",
    "install": "did you mean cerebrum pull?",
    "download": "did you mean cerebrum pull?",
    "remove": "did you mean cerebrum rm?",
    "info": "did you mean cerebrum show?",
    "logs": "did you mean cerebrum sessions list?",
    "prompt": "did you mean cerebrum ask?",
    "run": "did you mean cerebrum chat MODEL?",
    "serve": "start llama-server -m FILE, and use it with cerebrum chat --endpoint URL",
}
OTHER_OPTIONS = {  # of llama.cpp's programs, and what does the same here
    "--system-prompt": "did you mean --system?",
    "--n-predict": "did you mean --max-tokens?",
    "--ctx-size": "did you mean --ctx?",
}


def assembled(commands: Commands, names: Collection[str]) -> Any:
    """The command line; only commands of these names have options, since loading those of all takes 20 ms."""
    return TyperGroup(
        name="cerebrum",
        help="Run local GGUF reasoning models in a terminal, each in its own prompt format.",
        epilog="Every option can also be set as CEREBRUM_...: --max-tokens is CEREBRUM_MAX_TOKENS.",
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
    function = getattr(module, command.attribute)
    if not callable(function):
        return declared_command(command, module, function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(function, typer.Typer):
        app.add_typer(function, name=command.name, help=command.summary)
        group: Any = get_command(app)
        return group.commands[command.name]
    app.command(command.name, help=command.summary)(function)
    return get_command(app)


def module_of(command: Command) -> ModuleType:
    """The module of a command. Raises CerebrumError for one from outside that cannot be imported."""
    try:
        return import_module(command.module)
    except Exception as error:
        if command.module.startswith(f"{__package__}."):
            raise
        problem = f"the command {command.name} cannot be used: {type(error).__name__}: {error}"
        raise CerebrumError(problem, "update or uninstall its package") from error


def declared_command(command: Command, module: ModuleType, declared: Declared | CommandGroup) -> Any:
    """A command, or a group of them, whose options its functions declare; the docstring ends with examples."""
    from cerebrum_cli.cli.parser import DeclaredCommand, grouped
    from cerebrum_cli.cli.signature import Declared

    documented = declared.function if isinstance(declared, Declared) else module
    details, _, examples = cleandoc(documented.__doc__ or "").partition("\n\nExamples:\n")
    shown: dict[str, Any] = {"short_help": command.summary, "epilog": f"\b\nExamples:\n{examples}"}
    if isinstance(declared, Declared):
        return DeclaredCommand(command.name, declared, help=f"{command.summary}.\n\n{details}", **shown)
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
            typer.echo(f"cerebrum {__version__}")
            ctx.exit()


def run(arguments: list[str] | None = None, app: App | None = None) -> int:
    """Run one command line and return its exit code: the single error handler."""
    words = sys.argv[1:] if arguments is None else arguments
    command: Command | None = None
    try:
        if environment(COMPLETION) is not None:
            from cerebrum_cli.cli.commands import every_command
            from cerebrum_cli.cli.completion import complete, completed_command

            commands, _ = every_command()
            complete(assembled(commands, {completed_command()}))
        commands = commands_for(words, app)
        command = named_command(words, commands)
        names = [command.name] if command else []
        return assembled(commands, names)(arguments, "cerebrum", obj=app, standalone_mode=False) or 0
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        if context and error.message == context.get_help():  # of a command without arguments
            typer.echo(error.message, err=True)
        else:
            print_error(app, usage_error(error, context, command))
        return error.exit_code
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):  # Typer turned it into exit 1
            return 0
        return exit.code if isinstance(exit.code, int) else 1
    except OSError as error:
        problem = file_error(error)
        print_error(app, problem)
        return problem.exit_code
    except CerebrumError as error:
        if error.hint or not isinstance(error, Interrupted):
            print_error(app, error)
        return error.exit_code


def named_command(words: Sequence[str], commands: Commands) -> Command | None:
    """The command on a command line, also behind `--`."""
    first = next((word for word in words[:2] if not word.startswith("-")), "")
    return commands.get(first)


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


def file_error(error: OSError) -> CerebrumError:
    """The error for a disk that is full or not writable. Raises any other error again: it is a bug."""
    from cerebrum_cli.terminal.streams import discard

    problem, place = str(error.strerror), error.filename
    if error.errno not in DISK_ERRORS and (error.errno, place) != NO_TEMPORARY_DIRECTORY:
        raise error
    if place is None:
        discard(sys.stdout)  # Typer may not have been able to write help or version
    else:
        problem = f"{place}: {problem}"
    return CerebrumError(problem, "free disk space, check permissions, or write elsewhere")


def usage_error(error: typer.TyperException, context: typer.Context | None, command: Command | None) -> UsageError:
    problem, _, near = error.message.rstrip(".?").partition(". Did you mean ")
    hints = {**OTHER_OPTIONS, **(command.hints if command else {})}
    path = "cerebrum"
    if context:
        path = context.command_path
    elif command:
        path = f"cerebrum {command.name}"
    hint = f"did you mean {near}?" if near else f"see {path} --help"
    if context and (unknown := re.fullmatch("No such option: (.*)", problem, re.DOTALL)):
        option = unknown[1]
        hint = hints.get(option) or similar_options(option, context) or hint
        if re.match("-([^a-zA-Z-]|$)", option) and context.info_name in ("ask", "chat"):
            hint = f'put -- before a question that begins with a hyphen: {path} -- "..."'
    elif unknown := re.fullmatch("No such command .(.*).", problem, re.DOTALL):
        hint = OTHER_COMMANDS.get(unknown[1], hint)
        if path == "cerebrum" and not re.fullmatch(r"(?a)[\w-]+", unknown[1]):
            hint = 'did you mean cerebrum ask "..."?'
    return UsageError(problem[:1].lower() + problem[1:], hint)


def similar_options(name: str, context: typer.Context) -> str:
    from cerebrum_cli.core.declaration import flag
    from cerebrum_cli.core.settings import OPTIONS
    from cerebrum_cli.core.text import did_you_mean

    known = [opt for parameter in context.command.params for opt in parameter.opts]
    key = name.lstrip("-").replace("-", "_")
    dashed = flag(key)
    if "--set" in known and key in OPTIONS and dashed not in known:
        return f"use --set {key}=VALUE"
    if longer := [opt for opt in known if name.startswith("--") and opt.startswith(dashed)]:
        return f"did you mean {' or '.join(longer)}?"
    return did_you_mean(name, known, 2, 0.7).rstrip()


def print_error(app: App | None, error: CerebrumError) -> None:
    from cerebrum_cli.terminal.streams import standard_streams

    (app.streams if app else standard_streams()).error(error)


def print_notice(app: App | None, problem: str, hint: str) -> None:
    from cerebrum_cli.terminal.streams import standard_streams

    (app.streams if app else standard_streams()).note(problem, hint)
