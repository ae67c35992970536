"""Compose a command's Typer signature from option groups, and show its options under headings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import TyperPath

from cerebrum_cli.cli.completion import completing, completion_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.options import HEADINGS, Heading, Option, flag, options_of, variable
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.core.settings import OPTIONS, Settings, environment, validate

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
    """Replace each parameter annotated with an option group, or with `SettingKeys`, by the options it stands for."""
    signature = inspect.signature(function, eval_str=True)
    expanded: dict[str, Expansion] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if expansion := expansion_of(parameter.annotation):
            expanded[parameter.name] = expansion
            parameters += expansion.parameters()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def call(**arguments: Any) -> Any:
        context: typer.Context | None = arguments.get("context")
        if arguments.get("endpoint"):
            for expansion in expanded.values():
                expansion.drop_local(arguments, context)
        values = {name: expansion.take(arguments, context) for name, expansion in expanded.items()}
        return function(**arguments, **values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


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

    def parameters(self) -> list[inspect.Parameter]:
        """One keyword-only parameter for each option."""
        owner = Settings if isinstance(self._group, SettingKeys) else self._group
        hints = get_type_hints(owner)
        return [parameter_of(name, each, hints[name], owner is Settings) for name, each in self._declared.items()]

    def drop_local(self, arguments: dict[str, Any], context: typer.Context | None) -> None:
        """Reset options that a server has no use for. Raises UsageError for one on the command line."""
        for name, declared in self._declared.items():
            source = context.get_parameter_source(name) if context and declared.local else None
            if source is not None and source.name == "COMMANDLINE":
                problem = f"{flag(name)} applies to local models, not to --endpoint"
                raise UsageError(problem, "omit one of them")
            if source is not None and source.name == "ENVIRONMENT":
                arguments[name] = False if arguments[name] is True and name not in OPTIONS else None

    def take(self, arguments: dict[str, Any], context: typer.Context | None) -> Any:
        """Remove the options' values from the arguments of a call, and return the group's value.

        Raises UsageError for an invalid setting, which names the environment variable if that set it.
        """
        values = {name: arguments.pop(name) for name in self._declared}
        if isinstance(self._group, SettingKeys):
            given = {name: value for name, value in values.items() if value not in (None, [])}
            return {name: validate(name, value, environment_source(name, context)) for name, value in given.items()}
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


def parameter_of(name: str, declared: Option, hint: Any, is_setting: bool) -> inspect.Parameter:
    """Typer parameter of an option. Numbers and text without a value are None, lists are empty, switches off.

    A setting that is a switch is on by default, and its flag turns it off.
    """
    default: bool | list[Any] | None = None
    flags = flag(name)
    if get_origin(hint) is tuple:
        hint, default = list[str if get_args(hint)[0] is TokenBias else get_args(hint)[0]], []  # type: ignore[misc]
    elif hint is bool and not is_setting:
        default = False
    elif hint is bool or hint == bool | None:
        flags, hint = f"{' ' if hint is bool else flags}/{flag(f'no_{name}')}", bool | None
    else:
        hint = hint | None
    option = typer_option(
        name,
        declared,
        callback=whole if hint == list[str] and not declared.splits else None,
        flags=flags,
        click_type=GivenPath(path_type=Path) if Path in (hint, *get_args(hint)) else None,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def parameter(name: str, help: str, heading: Heading, **details: Any) -> Any:
    """Typer option of a single parameter, declared like those of a group."""
    return typer_option(name, Option(help, heading, **details))


def typer_option(
    name: str,
    declared: Option,
    callback: Callable[..., Any] | None = None,
    flags: str | None = None,
    click_type: GivenPath | None = None,
) -> Any:
    """Typer option that can also be set as CEREBRUM_ and its name."""
    return typer.Option(
        *filter(None, (declared.short, flags or flag(name))),
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


def whole(context: typer.Context, parameter: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Keep the environment's text of a repeatable option in one piece: Typer splits it at white space."""
    source = context.get_parameter_source(str(parameter.name))
    if source is None or source.name != "ENVIRONMENT":
        return value
    text = environment(str(parameter.envvar))
    return [text] if text else []


class SectionedCommand(TyperCommand):
    """A command whose help lists its options under their headings."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write arguments first, then a section for each heading, then the options without one."""
        sections: Mapping[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *HEADINGS, "Options")}
        for each in self.get_params(ctx):
            if record := each.get_help_record(ctx):
                heading = getattr(each, "rich_help_panel", None) or "Options"
                names, text = record
                names = names.removeprefix(" / ")  # of a switch that is on by default
                sections["Arguments" if each.param_type_name == "argument" else heading].append((names, text))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
