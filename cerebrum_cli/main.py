"""Run the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.core.environment import environment, forget_exported_size

if TYPE_CHECKING:
    from cerebrum_cli.cli import Command
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.outside_commands import Commands
    from cerebrum_cli.terminal.streams import Streams

COMPLETION = "_CEREBRUM_COMPLETE"  # set by a shell that asks for completions


def run(arguments: list[str] | None = None, app: App | None = None) -> int:
    """Run one command line and return its exit code: the single error handler."""
    forget_exported_size()
    words = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None:  # closed; writing to it is to fail
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    command: Command | None = None
    try:
        is_completing = environment(COMPLETION) is not None
        commands = all_commands() if is_completing else commands_for(words, app)
        if words in (["--help"], ["-h"]):
            from cerebrum_cli.cli.overview import overview

            streams = streams_of(app)
            streams.answer(overview(commands.values(), streams.columns))
            return 0
        from cerebrum_cli.cli.command_line import assembled

        command = named_command(words, commands)
        names = commands if is_completing else [command.name] if command else []
        return assembled(commands, names, is_completing)(arguments, "cerebrum", obj=app, standalone_mode=False) or 0
    except BrokenPipeError:
        return 0
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):  # Typer turned it into exit 1
            sys.stderr = sys.__stderr__  # which it has wrapped, even if there is none
            return 0
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        if environment(COMPLETION):  # whose answer a shell would take for words
            return 1
        from cerebrum_cli.cli.failures import report

        code = report(error, command, app)
        if code is None:  # a bug
            raise
        return code


def named_command(words: Sequence[str], commands: Commands) -> Command | None:
    """The command on a command line, also behind `--`."""
    for word in words[:2]:
        if not word.startswith("-"):
            return commands.get(word)
    return None


def all_commands() -> Commands:
    from cerebrum_cli.cli.outside_commands import every_command

    commands, _ = every_command()
    return commands


def commands_for(words: Sequence[str], app: App | None) -> Commands:
    """The commands of this package, and others if the words name none of it, with a warning of broken ones."""
    if named_command(words, COMMANDS):
        return COMMANDS
    from cerebrum_cli.cli.outside_commands import every_command
    from cerebrum_cli.core.events import NoticeEvent

    commands, warnings = every_command()
    for problem, hint in warnings:
        streams_of(app).note(NoticeEvent(problem, hint))
    return commands


def streams_of(app: App | None) -> Streams:
    from cerebrum_cli.terminal.streams import standard_streams

    return app.streams if app else standard_streams()
