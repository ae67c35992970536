"""`cerebrum --help`, as Typer would print it: the import of Typer takes twice as long as all else in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from cerebrum_cli.cli import DESCRIPTION, EPILOG, Command

OPTIONS = (
    ("--version", "Print the version."),
    ("--show-completion", "Show completion for the current shell, to copy it or customize the installation."),
    ("-h, --help", "Show this message and exit."),
)
WIDTHS = (50, 78)  # of the text, at least and at most


def overview(commands: Iterable[Command], columns: int) -> str:
    """The help for a terminal with this many columns."""
    least, most = WIDTHS
    width = max(min(columns - 2, most), least)
    lines = [
        "Usage: cerebrum [OPTIONS] COMMAND [ARGS]...",
        "",
        *indented(DESCRIPTION, width),
        "",
        *section("Options", OPTIONS, width),
        "",
        *section("Commands", [(command.name, command.summary) for command in commands], width),
        "",
        *indented(EPILOG, width),
    ]
    return "\n".join(lines) + "\n"


def indented(text: str, width: int) -> list[str]:
    return wrap(text, width, initial_indent="  ", subsequent_indent="  ")


def section(heading: str, rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """A heading, and rows with their names in a column."""
    yield f"{heading}:"
    indent = max(len(name) for name, _ in rows) + 4
    for name, help in rows:
        yield from wrap(help, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
