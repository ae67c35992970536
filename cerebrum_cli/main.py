"""Assemble the commands, and turn what goes wrong into a line and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import CerebrumError, Interrupted, OutputError
from cerebrum_cli.core.settings import environment

if TYPE_CHECKING:
    from cerebrum_cli.runtime import Runtime

COMPLETION = "_CEREBRUM_COMPLETE"  # set by the shell that asks what could come next, without arguments
# In the order of the help: each command's name, and its function or group in a module of its own.
COMMANDS = {
    "ask": "ask",
    "chat": "chat",
    "batch": "batch",
    "pull": "pull",
    "list": "list_models",
    "show": "show",
    "rm": "rm",
    "merge": "merge",
    "tune": "tune",
    "doctor": "doctor",
    "sessions": "app",
}


def assembled(only: str | None = None, outlined: bool = False) -> typer.Typer:
    """Return the command line, with one command alone where that is known: to read all options takes 20 ms.

    One that is `outlined` has no options: its help tells of the commands, and only what each is for.
    """
    app = typer.Typer(
        name="cerebrum",
        help="Run local GGUF reasoning models in a terminal, in the exact prompt format each was trained on.",
        epilog="Every option has a CEREBRUM_* environment twin: --max-tokens is CEREBRUM_MAX_TOKENS.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name, attribute in COMMANDS.items():
        if only in (name, None):
            command = getattr(import_module(f"cerebrum_cli.commands.{name}"), attribute)
            if outlined:
                app.command(name=name, help=command.info.help if name == "sessions" else command.__doc__)(nothing)
            elif isinstance(command, typer.Typer):
                app.add_typer(command, name=name)
            else:
                app.command(name=name)(command)
    return app


def nothing() -> None:
    """Stand in for a command that is only told of."""


def show_version(asked: bool) -> None:
    """Print the version and leave, before anybody asks for a command."""
    if asked:
        typer.echo(f"cerebrum {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Take the options before a command."""


def run(arguments: list[str] | None = None, runtime: Runtime | None = None) -> int:
    """Run one command line and return its exit code: the one door errors leave by."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        only = given[0] if given and given[0] in COMMANDS else None
        outlined = given in ([], ["-h"], ["--help"]) and environment(COMPLETION) is None
        assembled(only, outlined)(args=arguments, obj=runtime)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer made exit 1 of it
            return 0
        return leaving.code if isinstance(leaving.code, int) else 1
    except Interrupted as error:
        if error.hint:
            tell(runtime, error)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return leave_full_disk()
    except CerebrumError as error:
        tell(runtime, error)
        return error.exit_code
    return 0


def tell(runtime: Runtime | None, error: CerebrumError) -> None:
    """Say on standard error what is and what to do."""
    from cerebrum_cli.terminal.streams import standard_streams

    (runtime.streams if runtime else standard_streams()).error(error)


def leave_full_disk() -> int:
    """Say that help or version could not be written, which Typer writes by itself."""
    from cerebrum_cli.terminal.streams import discard, standard_streams

    discard(sys.stdout)
    standard_streams().error(OutputError("standard output: no space left", "free some space, or write elsewhere"))
    return OutputError.exit_code


def main() -> None:
    """Run the command line of this process."""
    try:
        code = run()
    except KeyboardInterrupt:  # before there was anything to end, or after it has
        code = 128 + signal.SIGINT
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would end the end of Python, in its own words
    sys.exit(code)
