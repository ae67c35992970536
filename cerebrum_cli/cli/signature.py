"""Compose a command's Typer signature from option groups, and show its options under headings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer._click.parser import _OptionParser, _ParsingState
from typer.core import TyperCommand
from typer.models import TyperPath

from cerebrum_cli.cli.assignments import HELP, SET, assignments, parse_assignments, print_settings
from cerebrum_cli.cli.completion import Values, completing, completion_of
from cerebrum_cli.cli.options import BARE_VALUES
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.options import HEADINGS, Heading, Option, flag, options_of, variable
from cerebrum_cli.core.settings import OPTIONS, Settings, environment_value, validate

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter


class GivenPath(TyperPath):
    """An option's path. An empty one, which Path takes for the working directory, is refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not value:
            source = environment_source(param.name, ctx) or flag(param.name)
            raise UsageError(f"{source} is {value!r}", "give a path, or omit it")
        return super().convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class SettingKeys:
    """Settings that a command takes: annotate a parameter with these and it receives the ones given, as a layer.

    `help` replaces the help of some of them.
    """

    keys: tuple[str, ...]
    help: Mapping[str, str] = field(default_factory=dict)


def composed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter annotated with an option group, or with `SettingKeys`, by the options it stands for.

    Those without a flag are set by `--set`.
    """
    signature = inspect.signature(function, eval_str=True)
    expanded: dict[str, Expansion] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if expansion := expansion_of(parameter.annotation):
            expanded[parameter.name] = expansion
            parameters += expansion.parameters()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    settable = {name: each for expansion in expanded.values() for name, each in expansion.settable.items()}
    if settable:
        parameters.append(set_parameter(settable))

    @wraps(function)
    def call(**arguments: Any) -> Any:
        context: typer.Context | None = arguments.get("context")
        is_remote = bool(arguments.get("endpoint"))
        given = Given(arguments, parse_assignments(arguments.pop(SET, ()), settable), context, is_remote)
        values = {name: expansion.take(given) for name, expansion in expanded.items()}
        return function(**arguments, **values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line and the environment give: arguments by parameter, and assignments of `--set`."""

    arguments: dict[str, Any]
    assigned: Mapping[str, Any]
    context: typer.Context | None
    is_remote: bool

    def take(self, name: str, declared: Option) -> Any:
        """Value of an option, and its source for messages; None without one, and for a local one of a server.

        Raises UsageError for a local one on the command line of a server, and for one that is given twice.
        """
        value = self.arguments.pop(name, None)
        source = self.context.get_parameter_source(name) if self.context and declared.has_flag else None
        has_flag = source is not None and source.name == "COMMANDLINE"
        if has_flag and name in self.assigned:
            raise UsageError(f"{flag(name)} and --set {name} are both given", "omit one of them")
        if declared.local and self.is_remote:
            if has_flag or name in self.assigned:
                named = flag(name) if has_flag else f"--set {name}"
                raise UsageError(f"{named} applies to local models, not to --endpoint", "omit one of them")
            return None
        if name in self.assigned:
            return self.assigned[name]
        if not declared.has_flag:
            return environment_value(name, declared)
        return None if value == [] else value


class Expansion:
    """Options behind one parameter of a command; `group` is a dataclass, or the settings it takes."""

    def __init__(self, group: type | SettingKeys) -> None:
        self._group = group
        if isinstance(group, SettingKeys):
            self._declared = {
                key: OPTIONS[key]._replace(help=group.help.get(key, OPTIONS[key].help)) for key in group.keys
            }
        else:
            self._declared = options_of(group)

    @property
    def settable(self) -> Mapping[str, Option]:
        """What `--set` changes: settings, and other options without a flag."""
        are_settings = isinstance(self._group, SettingKeys)
        return {name: each for name, each in self._declared.items() if are_settings or not each.has_flag}

    def parameters(self) -> list[inspect.Parameter]:
        """One keyword-only parameter for each option with a flag."""
        hints = get_type_hints(Settings if isinstance(self._group, SettingKeys) else self._group)
        return [parameter_of(name, each, hints[name]) for name, each in self._declared.items() if each.has_flag]

    def take(self, given: Given) -> Any:
        """Remove the options' values from the arguments of a call, and return the group's value.

        Raises UsageError for an invalid setting, which names the environment variable if that set it.
        """
        taken = ((name, given.take(name, declared)) for name, declared in self._declared.items())
        values = {name: value for name, value in taken if value is not None}
        if isinstance(self._group, SettingKeys):
            return {key: validate(key, value, environment_source(key, given.context)) for key, value in values.items()}
        return self._group(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )


def environment_source(name: str, context: typer.Context | None) -> str | None:
    """Name of the environment variable that set an option; None if it was the command line."""
    source = context.get_parameter_source(name) if context else None
    return variable(name) if source is not None and source.name == "ENVIRONMENT" else None


def expansion_of(annotation: Any) -> Expansion | None:
    """What a parameter's annotation stands for; None for a parameter of its own."""
    if get_origin(annotation) is Annotated:
        keys = next((each for each in get_args(annotation) if isinstance(each, SettingKeys)), None)
        return Expansion(keys) if keys else None
    is_group = isinstance(annotation, type) and hasattr(annotation, "__dataclass_fields__") and options_of(annotation)
    return Expansion(annotation) if is_group else None


def parameter_of(name: str, declared: Option, hint: Any) -> inspect.Parameter:
    """Typer parameter of an option. Numbers and text without a value are None, lists are empty, switches off."""
    default: bool | list[Any] | None = None
    if get_origin(hint) is tuple:
        hint, default = list[get_args(hint)[0]], []  # type: ignore[misc]
    elif hint is bool:
        default = False
    else:
        hint = hint | None
    option = typer_option(
        name,
        declared,
        callback=whole if hint == list[str] and not declared.splits else None,
        click_type=GivenPath(path_type=Path) if Path in (hint, *get_args(hint)) else None,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def parameter(name: str, help: str, heading: Heading, **details: Any) -> Any:
    """Typer option of a single parameter, declared like those of a group."""
    return typer_option(name, Option(help, heading, **details))


def positional(metavar: str, help: str, values: Values | None = None) -> Any:
    """Typer argument of a single parameter; `values` are what Tab offers."""
    return typer.Argument(metavar=metavar, help=f"{help}.", autocompletion=completing(values) if values else None)


def typer_option(
    name: str,
    declared: Option,
    callback: Callable[..., Any] | None = None,
    click_type: GivenPath | None = None,
) -> Any:
    """Typer option that can also be set as CEREBRUM_ and its name."""
    return typer.Option(
        *filter(None, (declared.short, flag(name))),
        help=f"{declared.help}.",
        metavar=declared.metavar,
        callback=callback,
        click_type=click_type,
        autocompletion=completing(values) if (values := completion_of(name, declared)) else None,
        envvar=variable(name),
        show_envvar=False,
        show_default=False,
        rich_help_panel=declared.heading,
    )


def set_parameter(settable: Mapping[str, Option]) -> inspect.Parameter:
    """Typer parameter `--set`."""

    def show_table(context: typer.Context, texts: list[str] | None) -> list[str] | None:
        if HELP not in (texts or ()) or context.resilient_parsing:
            return texts
        print_settings(context.obj, settable)
        raise typer.Exit

    option = typer.Option(
        f"--{SET}",
        help=f"Change a setting; `--{SET} {HELP}` lists them (repeatable).",
        metavar="KEY=VALUE",
        callback=show_table,
        is_eager=True,
        show_default=False,
        autocompletion=completing(partial(assignments, settable)),
        rich_help_panel="Model",
    )
    annotation = Annotated[list[str] | None, option]
    return inspect.Parameter(SET, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def whole(context: typer.Context, parameter: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Keep the environment's text of a repeatable option in one piece: Typer splits it at white space."""
    source = context.get_parameter_source(str(parameter.name))
    if source is None or source.name != "ENVIRONMENT":
        return value
    text = environment(str(parameter.envvar))
    return [text] if text else []


class Parser(_OptionParser):
    """A parser for which the value of some options is optional: it must be attached, as in `--extract=python`."""

    unread = 0

    def _process_opts(self, arg: str, state: _ParsingState) -> None:
        self.unread = len(state.rargs)
        super()._process_opts(arg, state)

    def _get_value_from_state(self, option_name: str, option: Any, state: _ParsingState) -> Any:
        is_attached = len(state.rargs) > self.unread
        if option.obj.name in BARE_VALUES and not is_attached:
            return BARE_VALUES[option.obj.name]
        return super()._get_value_from_state(option_name, option, state)


class SectionedCommand(TyperCommand):
    """A command whose help lists its options under their headings."""

    def make_parser(self, ctx: Context) -> Parser:
        parser = Parser(ctx)
        for each in self.get_params(ctx):
            each.add_to_parser(parser, ctx)
        return parser

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write arguments first, then a section for each heading, then the options without one."""
        sections: Mapping[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *HEADINGS, "Options")}
        for each in self.get_params(ctx):
            if record := each.get_help_record(ctx):
                heading = getattr(each, "rich_help_panel", None) or "Options"
                names, text = record
                names = names.replace(" [=", "[=")  # an optional value is attached
                sections["Arguments" if each.param_type_name == "argument" else heading].append((names, text))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
