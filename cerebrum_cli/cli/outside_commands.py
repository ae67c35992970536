"""The commands of packages that are installed beside this one.

Such a package has an entry point of the group `cerebrum.commands`, which names a tuple of `Command`s. They are looked
up for help, completion and a word that is no other command, so that no other start waits for it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from operator import attrgetter

from cerebrum_cli.cli import COMMANDS, Command
from cerebrum_cli.core.text import describe_error

ENTRY_POINTS = "cerebrum.commands"
MAX_BYTES = 100_000  # of a file with entry points
Commands = dict[str, Command]  # by name, in the order of help
Warnings = list[tuple[str, str]]  # problems, each with a hint


def every_command() -> tuple[Commands, Warnings]:
    """The commands of this package and of others, and warnings of those that cannot be used."""
    commands = dict(COMMANDS)
    warnings: Warnings = []
    for package, references in sorted(packages().items()):
        try:
            added = [command for reference in references for command in commands_of(reference)]
        except BaseException as error:  # code of others may raise anything; Ctrl-C ends the process during an import
            problem = f"the commands of {package} are left out: {describe_error(error)}"
            warnings.append((problem, "update or uninstall it"))
            continue
        for command in added:
            if command.name in commands:
                problem = f"{package}: there is another command {command.name}"
                warnings.append((problem, "rename the command, or uninstall the package"))
            else:
                commands[command.name] = command
    return commands, warnings


def commands_of(reference: str) -> tuple[Command, ...]:
    """The commands that "MODULE:NAME" refers to."""
    module, _, name = reference.partition(":")
    commands = attrgetter(name)(import_module(module))
    if not (type(commands) is tuple and all(map(is_command, commands))):
        raise TypeError(f"{reference} is not a tuple of commands")
    return commands


def is_command(value: object) -> bool:
    if not isinstance(value, Command):
        return False
    return all(isinstance(text, str) and text.isprintable() and text for text in value) and " " not in value.name


def packages() -> dict[str, list[str]]:
    """What the entry points of packages refer to, by the names of the packages; the first on the path counts.

    They are read here: `importlib.metadata` takes longer, and fails for all packages if one is damaged.
    """
    found: dict[str, list[str]] = {}
    for directory in sys.path:
        with suppress(OSError):
            for name in os.listdir(directory or "."):  # noqa: PTH208  # as all of this: there may be hundreds
                references = references_in(f"{directory}/{name}/entry_points.txt") if name.endswith("-info") else []
                if references:
                    found.setdefault(name.partition("-")[0], references)
    return found


def references_in(path: str) -> list[str]:
    """What the entry points of the group in a file refer to; none if it cannot be read."""
    data = b""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is not waited for
        try:
            data = os.read(file, MAX_BYTES)
        finally:
            os.close(file)
    _, _, group = data.decode(errors="replace").partition(f"[{ENTRY_POINTS}]")
    lines = group.partition("\n[")[0].splitlines()
    return [line.partition("=")[2].strip() for line in lines if "=" in line]
