"""What a package adds to the command line: an optional package of this one, or one that is installed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command: its name, the module and the function or Typer app in it, and its summary.

    The module is imported when the command, its help or its completion is wanted. `hints` say what does the same as an
    option that other commands have.
    """

    name: str
    module: str
    attribute: str
    summary: str
    hints: Mapping[str, str] = {}


class Extension(NamedTuple):
    """What a package adds, which its module `extension` describes without importing more.

    `row_options` is a subclass of `cli.row_commands.RowOptions`, as "MODULE:NAME": further options of commands that
    answer rows, and where it answers them. `model_builder` is a `library.pull.ModelBuilder`, as "MODULE:NAME".
    """

    commands: tuple[Command, ...] = ()
    row_options: str = ""
    model_builder: str = ""
