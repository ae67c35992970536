"""The commands of all packages: those of the core, of optional packages, and of packages installed beside this one.

An optional package is a folder beside this one with a module `extension`, and can be deleted. A package from outside
has an entry point of the group `cerebrum.commands`, which names its `Extension`. They are looked up for help,
completion and a word that is no other command, so that no other start waits for it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli import COMMANDS, Command, Extension
from cerebrum_cli.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "cerebrum.commands"
MAX_BYTES = 100_000  # of a file with entry points
Commands = dict[str, Command]  # by name, in the order of help
Warnings = list[tuple[str, str]]  # problems, each with a hint


@cache
def optional_packages() -> tuple[Extension, ...]:
    """The extensions of the optional packages that are installed."""
    with os.scandir(Path(__file__).parents[1]) as entries:
        found = sorted(entry.name for entry in entries if os.access(f"{entry.path}/extension.py", os.F_OK))
    return tuple(import_module(f"cerebrum_cli.{package}.extension").EXTENSION for package in found)


def provided(name: str, flag: str = "", package: str = "") -> Any:
    """What the first optional package that has it provides under a name of `Extension`; None if there is none.

    Raises UsageError for a `flag` that needs it.
    """
    for extension in optional_packages():
        if reference := getattr(extension, name):
            return loaded(reference)
    if flag:
        raise UsageError(f"{flag} needs the package `{package}`", "install cerebrum-cli again")
    return None


def loaded(reference: str) -> Any:
    """What "MODULE:NAME" refers to."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def own_commands() -> Commands:
    """The commands of this package."""
    commands = [*COMMANDS, *(command for extension in optional_packages() for command in extension.commands)]
    return {command.name: command for command in commands}


def every_command() -> tuple[Commands, Warnings]:
    """The commands of this package and of others, and warnings of those that cannot be used."""
    commands = own_commands()
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
    extension = entry_point.load()
    if not isinstance(extension, Extension):
        raise TypeError(f"{entry_point.value} is not an Extension")
    return extension.commands


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
