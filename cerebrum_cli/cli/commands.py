"""The commands of all packages: those of the core, of optional packages, and of packages installed beside this one.

An optional package is a folder beside this one with a module `extension`, and can be deleted. A package from outside
has an entry point of the group `cerebrum.commands`, which names its `Extension`. They are looked up for help,
completion and a word that is no other command, so that no other start waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.extensions import Command, Extension

ENTRY_POINTS = "cerebrum.commands"
Commands = dict[str, Command]  # by name, in the order of help


@cache
def optional_packages() -> tuple[Extension, ...]:
    """The optional packages that are there."""
    found = sorted(Path(__file__).parents[1].glob("*/extension.py"))
    return tuple(import_module(f"cerebrum_cli.{path.parent.name}.extension").EXTENSION for path in found)


def loaded(reference: str) -> Any:
    """What "MODULE:NAME" refers to."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def own_commands() -> Commands:
    """The commands of this package."""
    commands = [*COMMANDS, *(command for extension in optional_packages() for command in extension.commands)]
    return {command.name: command for command in commands}


def outside_commands(taken: Commands) -> tuple[Commands, list[NoticeEvent]]:
    """Commands from outside whose names are not taken, and a warning for each package that cannot be used."""
    commands: Commands = {}
    warnings = []
    for name, extension in outside_extensions():
        if not isinstance(extension, Extension):
            warnings.append(NoticeEvent(f"the commands of {name} are left out: {extension}", "update or uninstall it"))
            continue
        for command in extension.commands:
            if command.name in taken or command.name in commands:
                problem = f"{name}: there is another command {command.name}"
                warnings.append(NoticeEvent(problem, "rename the command, or uninstall the package"))
            else:
                commands[command.name] = command
    return commands, warnings


def outside_extensions() -> Iterator[tuple[str, Extension | str]]:
    """Each package with an entry point, and its extension, or why there is none."""
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINTS):
        name = entry_point.dist.name if entry_point.dist else entry_point.value
        try:
            extension = entry_point.load()
        except Exception as error:  # code of others, which may raise anything
            yield name, f"{type(error).__name__}: {error}"
            continue
        is_extension = isinstance(extension, Extension)
        yield name, extension if is_extension else f"{entry_point.value} is not an Extension"
