"""What the signature of a command's function declares, and its values: from flags, `--set` and variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin

from cerebrum_cli.cli.variables import environment_value, variable_that_sets
from cerebrum_cli.core.declaration import Option, flag, options_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import (
    COMMAND_LINE,
    OPTIONS,
    SourcedLayer,
)
from cerebrum_cli.core.text import did_you_mean

if TYPE_CHECKING:
    from cerebrum_cli.cli.completion_values import Values

ON_COMMAND_LINE = "on_command_line"

Options = Mapping[str, Option]  # by name
Function = Callable[..., Any]
Arguments = Mapping[str, Any]  # by parameter or key


class Argument(NamedTuple):
    """An argument of the command line: its name in help, its help, and what completes it.

    The rest is what the signature declares.
    """

    metavar: str
    help: str
    values: Values | None = None
    name: str = ""
    is_list: bool = False
    is_required: bool = True


def settings_options(keys: Iterable[str], **help: str) -> dict[str, Option]:
    """Annotation of a parameter that gets a layer of these settings; `help` replaces the help of some of them."""
    return {key: OPTIONS[key]._replace(help=help.get(key, OPTIONS[key].help)) for key in keys}


class Declared(NamedTuple):
    """A command's function, its arguments, and the options that each other parameter stands for, by parameter.

    `options` are all of them. `--set` takes those that are `settable`: settings, and options without a flag.
    """

    function: Function
    parameters: Mapping[str, inspect.Parameter]
    arguments: Mapping[str, Argument]
    groups: Mapping[str, Options]
    options: Options
    settable: Options
    short_help: str | None = None

    def values(self, given: GivenOptions) -> Arguments:
        """The function's arguments; those that nobody sets have its defaults. Raises UsageError."""
        values = {name: given.flags[name] for name in self.arguments if name in given.flags}
        for name, options in self.groups.items():
            layer = given.layer(options)
            kind = self.parameters[name].annotation
            if name in options:
                values.update(layer)
            elif isinstance(kind, type):
                values[name] = kind(**layer)
            else:
                values[name] = layer
        if ON_COMMAND_LINE in self.parameters:
            values[ON_COMMAND_LINE] = frozenset([*given.flags, *given.assigned])
        return values


CommandGroup = dict[str, Declared]  # the commands of a group, by name


def composed(function: Function) -> Declared:
    """A command, from a function of the app, its arguments and its options.

    A parameter annotated with a dataclass of options, or with `settings_options`, stands for the options in it. Those
    without a flag are set by `--set`, and so are settings. `on_command_line` gets the names of the options there.
    """
    parameters = inspect.signature(function, eval_str=True, locals={"App": object}).parameters
    arguments = {}
    groups = {}
    options: dict[str, Option] = {}
    for name, parameter in parameters.items():
        if argument := argument_in(parameter):
            arguments[name] = argument
        elif group := options_in(parameter):
            groups[name] = group
            options |= group
    settable = {}
    for name, declared in options.items():
        if name in OPTIONS or not declared.heading:
            settable[name] = declared
    return Declared(function, parameters, arguments, groups, options, settable)


def subcommand(
    group: CommandGroup, name: str | None = None, short_help: str | None = None
) -> Callable[[Function], Function]:
    """Add a function to a group of commands, under its own name and with the first line of its docstring by default."""

    def add(function: Function) -> Function:
        group[name or function.__name__] = composed(function)._replace(short_help=short_help)
        return function

    return add


def argument_in(parameter: inspect.Parameter) -> Argument | None:
    if get_origin(parameter.annotation) is Annotated:
        hint, declared = get_args(parameter.annotation)
        if isinstance(declared, Argument):
            is_list = any(get_origin(kind) is list for kind in (hint, *get_args(hint)))  # also in `list[str] | None`
            is_required = parameter.default is parameter.empty
            return declared._replace(name=parameter.name, is_list=is_list, is_required=is_required)
    return None


def options_in(parameter: inspect.Parameter) -> Options:
    """The options that a parameter stands for, by name; empty for an argument of the command line."""
    annotation = parameter.annotation
    if is_dataclass(annotation) and isinstance(annotation, type):
        return options_of(annotation)
    if get_origin(annotation) is not Annotated:
        return {}
    _, declared = get_args(annotation)
    if isinstance(declared, Option):
        return {parameter.name: declared._replace(name=parameter.name)}
    return declared if isinstance(declared, dict) else {}


class GivenOptions(NamedTuple):
    """What a command line sets: what follows each flag, True for a switch, and the values of `--set`.

    Local options are refused if a server is used, and their variables have no effect then.
    """

    flags: Arguments
    assigned: Arguments
    is_remote: bool

    @classmethod
    def parse(cls, flags: Arguments, assigned: Iterable[str], declared: Declared) -> GivenOptions:
        """Read what follows the flags that are there. Raises UsageError."""
        has_server = "endpoint" in flags or variable_that_sets("endpoint") is not None
        assignments = parse_assignments(assigned, declared.settable)
        return cls(flags, assignments, "endpoint" in declared.options and has_server)

    def layer(self, options: Options) -> SourcedLayer:
        """The values of options: of the flag, else of `--set`, else of a variable.

        Raises UsageError for an invalid value, with the name of the flag or variable, and for an option set twice.
        """
        layer = SourcedLayer()
        for name, declared in options.items():
            if name in self.flags or name in self.assigned:
                layer.put(name, self.value(declared), COMMAND_LINE)
            elif not (declared.local and self.is_remote):
                layer.put(name, *environment_value(declared))
        return layer

    def value(self, declared: Option) -> Any:
        name = declared.name
        source = flag(name) if name in self.flags else f"--set {name}"
        if name in self.flags and name in self.assigned:
            raise UsageError.conflict(source, f"--set {name}")
        if declared.local and self.is_remote:
            raise UsageError(f"{source} applies to local models, not to --endpoint", f"omit {source}")
        if name in self.assigned:
            return self.assigned[name]
        text = self.flags[name]
        if text is True:
            return True
        texts = [text] if isinstance(text, str) else text
        return declared.parse(texts, source, has_quotes=False)


def parse_assignments(texts: Iterable[str], settable: Options) -> Arguments:
    """Values by key; those of a repeated list are joined, else the last one counts. Raises UsageError."""
    collected: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        key = name.replace("-", "_")
        if key not in settable:
            near = did_you_mean(key, tuple(settable))
            raise UsageError(f"this command has no setting {name!r}", f"{near}list all with --set help")
        if not equals:
            raise UsageError(f"--set {name} has no value", f"write --set {name}=VALUE")
        collected.setdefault(key, []).append(value)
    return {key: settable[key].parse(values, f"--set {key}") for key, values in collected.items()}
