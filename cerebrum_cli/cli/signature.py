"""A command's signature, composed from option groups; its help under headings; what it takes from Typer's context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer._click.parser import _OptionParser, _ParsingState
from typer.core import TyperCommand
from typer.models import TyperPath

from cerebrum_cli.cli.assignments import SET, assigned_keys, parse_assignments, set_parameter
from cerebrum_cli.cli.completion import Values, completing, completion_of
from cerebrum_cli.cli.options import BARE_VALUES, AnswerOptions, QuietOptions, option_names
from cerebrum_cli.core.declaration import HEADINGS, Heading, Option, flag, options_of, variable
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import (
    COMMAND_LINE,
    OPTIONS,
    Layer,
    Settings,
    SourcedLayer,
    environment_value,
    unknown_variables,
    validate,
    variable_that_sets,
)

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

    from cerebrum_cli.cli.app import App


class GivenPath(TyperPath):
    """An option's path. An empty one, which Path takes for the working directory, is refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not value:
            source = environment_source(param.name, ctx) or flag(param.name)
            raise UsageError.invalid(source, value, "a path")
        return super().convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class SettingKeys:
    """Settings that a command takes: annotate a parameter with these and it receives them as a layer.

    `help` replaces the help of some of them.
    """

    keys: tuple[str, ...]
    help: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Option]:
        return {key: OPTIONS[key]._replace(help=self.help.get(key, OPTIONS[key].help)) for key in self.keys}


Group = type | SettingKeys
"""Annotation that stands for several options in a signature: a dataclass of options, or settings."""


def composed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter annotated with an option group, or with `SettingKeys`, by the options it stands for.

    Those without a flag are set by `--set`, and so are settings.
    """
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Group] = {}
    parameters: list[inspect.Parameter] = []
    settable: dict[str, Option] = {}
    for parameter in signature.parameters.values():
        group = group_of(parameter.annotation)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name], are_settings = group, isinstance(group, SettingKeys)
        hints = get_type_hints(Settings if are_settings else group)
        for name, each in options_in(group).items():
            if each.has_flag:
                parameters.append(parameter_of(name, each, hints[name]))
            if are_settings or not each.has_flag:
                settable[name] = each
    if settable:
        parameters.append(set_parameter(settable))

    @wraps(function)
    def call(**arguments: Any) -> Any:
        assigned, is_remote = parse_assignments(arguments.pop(SET, ()), settable), bool(arguments.get("endpoint"))
        given = Arguments(arguments, assigned, arguments.get("context"), is_remote)
        values = {name: given.take_group(group) for name, group in groups.items()}
        return function(**arguments, **values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def group_of(annotation: Any) -> Group | None:
    if get_origin(annotation) is Annotated:
        return next((each for each in get_args(annotation) if isinstance(each, SettingKeys)), None)
    return annotation if is_dataclass(annotation) and isinstance(annotation, type) else None


def options_in(group: Group) -> dict[str, Option]:
    return group.options if isinstance(group, SettingKeys) else options_of(group)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Values of a command line and the environment: arguments by parameter, and assignments of `--set`."""

    arguments: dict[str, Any]
    assigned: Mapping[str, Any]
    context: typer.Context | None
    is_remote: bool

    def take_group(self, group: Group) -> Any:
        """Remove the options of a group from the arguments, and return its value: a layer, or an instance.

        Raises UsageError for an invalid setting, which names the environment variable if that set it.
        """
        taken = ((name, self._take(name, declared)) for name, declared in options_in(group).items())
        values = {name: value for name, value in taken if value is not None}
        if isinstance(group, SettingKeys):
            return SourcedLayer(*(self._layer(key, value) for key, value in values.items()))
        return group(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def _layer(self, key: str, value: Any) -> Layer:
        """The layer of one setting, from the command line or the environment."""
        source = None
        if key not in self.assigned:
            source = environment_source(key, self.context) if OPTIONS[key].has_flag else variable_that_sets(key)
        return SourcedLayer({key: validate(key, value, source)}, origin=source or COMMAND_LINE)

    def _take(self, name: str, declared: Option) -> Any:
        """Value of an option; None if it is not set, or applies to local models and a server is used.

        Raises UsageError if such an option is on the command line, and for one that is set twice.
        """
        value = self.arguments.pop(name, None)
        source = self.context.get_parameter_source(name) if self.context and declared.has_flag else None
        has_flag = source is not None and source.name == "COMMANDLINE"
        if has_flag and name in self.assigned:
            raise UsageError.conflict(flag(name), f"--set {name}")
        if declared.local and self.is_remote:
            if has_flag or name in self.assigned:
                named = flag(name) if has_flag else f"--set {name}"
                raise UsageError(f"{named} applies to local models, not to --endpoint", f"omit {named}")
            return None
        if name in self.assigned:
            return self.assigned[name]
        if not declared.has_flag:
            return environment_value(name, declared)
        is_absent_switch = value is False and source is not None and source.name == "DEFAULT"
        return None if value == [] or is_absent_switch else value


def environment_source(name: str, context: typer.Context | None) -> str | None:
    source = context.get_parameter_source(name) if context else None
    return variable(name) if source is not None and source.name == "ENVIRONMENT" else None


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
    return typer_option(name, Option(help, heading, **details))


def positional(metavar: str, help: str, values: Values | None = None) -> Any:
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


Json = Annotated[bool, parameter("json", "Print a JSON object", "Output")]
JsonArray = Annotated[bool, parameter("json", "Print a JSON array", "Output")]


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


def subcommand(group: typer.Typer, **details: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a composed command to a group of commands."""
    return lambda function: group.command(cls=SectionedCommand, **details)(composed(function))


def app_of(context: typer.Context, options: QuietOptions | None = None) -> App:
    """The app a test has passed, or this machine's, as quiet or verbose as the options ask for."""
    from cerebrum_cli.cli.app import App, real_app

    app = context.obj if isinstance(context.obj, App) else real_app()
    for name, likely in unknown_variables(option_names()).items():
        hint = f"did you mean {likely}?" if likely else "run cerebrum COMMAND --help to list the options"
        app.streams.notice(NoticeEvent(f"unknown environment variable {name}", hint))
    app.streams = replace(app.streams, is_quiet=options is not None and options.quiet)
    if isinstance(options, AnswerOptions) and options.verbose:
        app.native_log(app.streams.info)
    return app


def options_on_command_line(context: typer.Context) -> frozenset[str]:
    """Names of the options that are on the command line, as flags or after `--set`."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name != SET}
    flags = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return assigned_keys(context.params.get(SET)).union(flags)


def only_question(words: list[str] | None) -> str | None:
    """The question, a single argument. Raises UsageError for several, such as the words of an unquoted one."""
    if words and len(words) > 1:
        raise UsageError("more than one question given", f"quote the question: {quote(' '.join(words))}")
    return words[0] if words else None


def require_agreement(app: App, question: str, name: str, yes: bool) -> None:
    """Ask before deleting, unless `-y` is given; exit 1 with nothing deleted if the answer is no."""
    streams = app.streams
    if not (yes or streams.confirm(question, default=False)):
        streams.info(f"{name} not deleted" + ("" if streams.in_is_terminal else "; confirm with -y"))
        raise typer.Exit(1)
