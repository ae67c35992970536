"""The commands of packages that are installed beside this one.

Such a package has an entry point of the group `cerebrum.commands`, which names a tuple of `Command`s. They are looked
up for help, completion and a word that is no other command, so that no other start waits for it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from cerebrum_cli.cli import COMMANDS, Command

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "cerebrum.commands"
MAX_BYTES = 100_000  # of a file with entry points
Commands = dict[str, Command]  # by name, in the order of help
Warnings = list[tuple[str, str]]  # problems, each with a hint


def every_command() -> tuple[Commands, Warnings]:
    """The commands of this package and of others, and warnings of those that cannot be used."""
    commands = dict(COMMANDS)
    warnings: Warnings = []
    for entry_point in entry_points():
        package = entry_point.dist.name if entry_point.dist else entry_point.value
        try:
            added = commands_of(entry_point)
        except (Exception, SystemExit) as error:  # code of others, which may raise anything
            problem = f"the commands of {package} are left out: {type(error).__name__}: {error}"
            warnings.append((problem, "update or uninstall it"))
            continue
        for command in added:
            if command.name in commands:
                problem = f"{package}: there is another command {command.name}"
                warnings.append((problem, "rename the command, or uninstall the package"))
            else:
                commands[command.name] = command
    return commands, warnings


def commands_of(entry_point: EntryPoint) -> tuple[Command, ...]:
    commands = entry_point.load()
    if not (isinstance(commands, tuple) and all(isinstance(command, Command) for command in commands)):
        raise TypeError(f"{entry_point.value} is not a tuple of commands")
    return commands


def entry_points() -> Iterable[EntryPoint]:
    """The entry points of packages from outside. Mostly there are none: looking takes less than the import."""
    if not any(has_entry_points(directory or ".") for directory in sys.path):
        return ()
    from importlib import metadata

    return sorted(metadata.entry_points(group=ENTRY_POINTS))


def has_entry_points(directory: str) -> bool:
    """Whether a distribution in a directory of the path has entry points of the group."""
    with suppress(OSError):
        names = os.listdir(directory)  # noqa: PTH208  # as all of this: there may be hundreds of distributions
        return any(mentions_group(f"{directory}/{name}/entry_points.txt") for name in names if name.endswith("-info"))
    return False


def mentions_group(path: str) -> bool:
    if not os.access(path, os.R_OK):
        return False
    file = os.open(path, os.O_RDONLY)
    try:
        return f"[{ENTRY_POINTS}]".encode() in os.read(file, MAX_BYTES)
    finally:
        os.close(file)
