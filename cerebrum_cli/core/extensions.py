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
    """The commands of a package, which its module `extension` describes without importing more."""

    commands: tuple[Command, ...] = ()
