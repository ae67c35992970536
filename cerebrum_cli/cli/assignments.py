"""`--set KEY=VALUE`: parse, list and complete the settings of a command, by the names that config.toml uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli.completion_values import completion_of
from cerebrum_cli.core.conversion import expected_value, parse
from cerebrum_cli.core.declaration import Option
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import SHORTHANDS
from cerebrum_cli.core.text import did_you_mean

if TYPE_CHECKING:
    import typer

    from cerebrum_cli.cli.app import App

SET = "set"
HELP = "help"  # instead of KEY=VALUE
SWITCH = ("on", "off")
SET_OPTION = Option(
    f"Change a setting; `--{SET} {HELP}` lists them (repeatable)",
    "Model",
    metavar="KEY=VALUE",
    kind="tuple[str, ...]",
)


def assigned_keys(texts: Iterable[str] | None) -> frozenset[str]:
    names = (text.partition("=")[0].replace("-", "_") for text in texts or ())
    return frozenset(key for name in names for key in SHORTHANDS.get(name, (name,)))


def parse_assignments(texts: Iterable[str] | None, settable: Mapping[str, Option]) -> dict[str, Any]:
    """Values by key; those of a repeated list are joined, else the last one counts. Raises UsageError."""
    collected: dict[str, list[str]] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        key = name.replace("-", "_")
        keys = [meant for meant in SHORTHANDS.get(key, (key,)) if meant in settable]
        if not keys:
            near = did_you_mean(key, (*SHORTHANDS, *settable))
            raise UsageError(f"this command has no setting {name!r}", f"{near}list all with --set help")
        if not equals:
            raise UsageError(f"--set {name} has no value", f"write --set {name}=VALUE")
        for key in keys:
            collected.setdefault(key, []).append(value)
    return {key: parse(key, settable[key], values, f"--set {key}") for key, values in collected.items()}


def rows(settable: Mapping[str, Option]) -> Iterator[tuple[str, str, str, str]]:
    """Key, default, range and meaning of each setting; a shorthand replaces its keys."""
    hidden = {key: name for name, keys in SHORTHANDS.items() for key in keys if key in settable}
    for key, declared in settable.items():
        meaning, _, default = declared.help.removesuffix("]").partition(" [default: ")
        shorthand = hidden.get(key)
        if shorthand is None:
            yield key, default or "none", expected_value(key, declared), meaning
        elif key == SHORTHANDS[shorthand][0]:
            both = " and ".join(SHORTHANDS[shorthand])
            yield shorthand, default, expected_value(key, declared), f"Type of the KV cache; {both} set one"


def assignments(settable: Mapping[str, Option], app: App) -> Iterator[str]:
    """Completions of `--set`: each key, with its values if they can be listed."""
    for name, declared in {key: settable[keys[0]] for key, keys in SHORTHANDS.items() if keys[0] in settable}.items():
        yield from (f"{name}={value}" for value in declared.choices)
    for name, declared in settable.items():
        values: Sequence[str] = declared.choices or (SWITCH if declared.kind == "bool" else ())
        if source := completion_of(name, declared):
            values = tuple(source(app))
        yield from (f"{name}={value}" for value in values or ("",))


def print_settings(context: typer.Context, settable: Mapping[str, Option]) -> None:
    from cerebrum_cli.terminal.streams import standard_streams
    from cerebrum_cli.terminal.tables import print_table

    streams = context.obj.streams if context.obj else standard_streams()
    headings = ("key", "default", "range", "meaning")
    print_table(streams, headings, list(rows(settable)), "range", ("range", "default"))
