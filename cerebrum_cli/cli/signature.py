"""Commands from functions: parameters for Typer, help under headings, values from flags, `--set` and variables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial, wraps
from importlib import import_module
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.cli.assignments import (
    HELP,
    SET,
    SET_OPTION,
    assigned_keys,
    assignments,
    parse_assignments,
    print_settings,
)
from cerebrum_cli.cli.completion_values import Values, completing, completion_of
from cerebrum_cli.cli.options import FIRST, AnswerOptions, QuietOptions
from cerebrum_cli.core.conversion import parse
from cerebrum_cli.core.declaration import HEADINGS, Option, flag, options_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import (
    OPTIONS,
    Layer,
    SourcedLayer,
    environment_layer,
    unknown_variables,
    variable_that_sets,
)

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

NAMES = {*OPTIONS, "api_key"}  # of all options of the commands that are imported, and of what only a variable sets
ON_COMMAND_LINE = "on_command_line"
EXTRACT = re.compile(r"--extract|-[cqy]*x")  # without a value; -c, -q and -y never have one


@dataclass(frozen=True, slots=True)
class SettingKeys:
    """Settings that a command takes: annotate a parameter with these and it receives them as a layer.

    `help` replaces the help of some of them.
    """

    keys: tuple[str, ...]
    help: Mapping[str, str] = field(default_factory=dict)


def composed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The callback of a command, from a function of the app, its arguments and its options.

    A parameter annotated with a dataclass of options, or with `SettingKeys`, stands for the options in it. Those
    without a flag are set by `--set`, and so are settings. `on_command_line` gets the names of the options there.
    """
    signature = inspect.signature(function, eval_str=True, locals={"App": object})
    groups: dict[str, Any] = {}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    settable: dict[str, Option] = {}
    for parameter in signature.parameters.values():
        if parameter.name in ("app", ON_COMMAND_LINE):
            continue
        group = group_of(parameter.annotation)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        default = parameter.default if isinstance(group, Option) else None
        for name, declared in options_in(parameter.name, group).items():
            NAMES.add(name)
            if declared.has_flag:
                parameters.append(typer_parameter(name, declared, default))
            if isinstance(group, SettingKeys) or not declared.has_flag:
                settable[name] = declared
    if settable:
        parameters.append(typer_parameter(SET, SET_OPTION, None, partial(assignments, settable)))

    @wraps(function)
    def call(context: typer.Context, **texts: Any) -> Any:
        if HELP in (texts.get(SET) or ()):
            print_settings(context, settable)
            return None
        assigned = parse_assignments(texts.pop(SET, None), settable)
        is_remote = "endpoint" in texts and bool(texts["endpoint"] or variable_that_sets("endpoint"))
        values: dict[str, Any] = {}
        for name, group in groups.items():
            options = options_in(name, group)
            layers = (given_value(key, options[key], texts.pop(key, None), assigned, is_remote) for key in options)
            layer = SourcedLayer(*layers)
            if isinstance(group, Option):
                values |= layer
            else:
                values[name] = layer if isinstance(group, SettingKeys) else group(**layer)
        app = app_of(context, next((value for value in values.values() if isinstance(value, QuietOptions)), None))
        values |= {name: text for name, text in texts.items() if text is not None}
        if ON_COMMAND_LINE in signature.parameters:
            values[ON_COMMAND_LINE] = options_on_command_line(context)
        with app.on_exit:
            return function(app, **values)

    call.__annotations__ = {}  # Typer would evaluate them; those of the signature are enough
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def group_of(annotation: Any) -> Any:
    """The dataclass of options, the settings or the option that a parameter stands for; None for an argument."""
    if is_dataclass(annotation):
        return annotation
    hint: Any
    hint, *items = get_args(annotation) or [None]
    for item in items:
        if isinstance(item, Option):
            kind, *_ = get_args(hint) or [hint]  # without None
            return item._replace(kind=kind.__name__)
        if isinstance(item, SettingKeys):
            return item
    return None


def options_in(name: str, group: Any) -> dict[str, Option]:
    """The options that a parameter of this name stands for."""
    if isinstance(group, Option):
        return {name: group}
    if isinstance(group, SettingKeys):
        return {key: OPTIONS[key]._replace(help=group.help.get(key, OPTIONS[key].help)) for key in group.keys}
    return options_of(group)


def typer_parameter(name: str, declared: Option, default: Any, values: Values | None = None) -> inspect.Parameter:
    """Typer's parameter of an option, as text, several texts or a switch, which `given_value` converts."""
    annotation: Any = str | None
    if declared.is_list:
        annotation = list[str] | None
    elif declared.kind == "bool":
        annotation = bool
        default = False
    values = values or completion_of(name, declared)
    option = typer.Option(
        *filter(None, (declared.short, flag(name))),
        help=f"{declared.help}.",
        metavar=declared.metavar,
        show_default=False,
        autocompletion=completing(values) if values else None,
        rich_help_panel=declared.heading,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


Json = Annotated[bool, Option("Print a JSON object", "Output")]
JsonArray = Annotated[bool, Option("Print a JSON array", "Output")]
Yes = Annotated[bool, Option("Delete without asking", "Output", short="-y")]


def positional(metavar: str, help: str, values: Values | None = None) -> Any:
    return typer.Argument(metavar=metavar, help=f"{help}.", autocompletion=completing(values) if values else None)


def given_value(name: str, declared: Option, text: Any, assigned: Mapping[str, Any], is_remote: bool) -> Layer:
    """The value of an option as a layer: that of its flag, else `assigned` with `--set`, else that of a variable.

    `text` is what follows the flag, or a list of texts, or True for a switch; None without the flag. Raises UsageError
    for an invalid value, with the name of the flag or variable, and for an option that is set twice. Local options are
    refused if a server is used, and their variables have no effect then.
    """
    if text is not None and name in assigned:
        raise UsageError.conflict(flag(name), f"--set {name}")
    if declared.local and is_remote:
        if text is None and name not in assigned:
            return {}
        option = flag(name) if text is not None else f"--set {name}"
        raise UsageError(f"{option} applies to local models, not to --endpoint", f"omit {option}")
    if text is True:
        return {name: True}
    if text is not None:
        texts = [text] if isinstance(text, str) else text
        return {name: parse(name, declared, texts, flag(name), has_quotes=False)}
    if name in assigned:
        return {name: assigned[name]}
    return environment_layer(name, options={name: declared})


class SectionedCommand(TyperCommand):
    """A command that gets its options as text, and lists them under headings in its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what follows each flag, and the arguments, into the parameters of the context; None without it.

        Typer would convert each of them, by importing pydantic in newer versions. Raises UsageError.
        """
        if ctx.resilient_parsing:  # for completion
            return super().parse_args(ctx, args)
        texts, extra, _ = self.make_parser(ctx).parse_args(args=self.with_code_block(args))
        if texts.get("help"):
            typer.echo(ctx.get_help())
            ctx.exit()
        hint = f"see {ctx.command_path} --help"
        if HELP not in texts.get(SET, ()):
            for parameter in self.params:
                if parameter.required and texts.get(name := str(parameter.name)) is None:
                    if parameter.param_type_name == "argument":
                        raise UsageError(f"missing argument '{parameter.metavar}'", hint)
                    if variable_that_sets(name) is None:
                        raise UsageError(f"missing option {' / '.join(map(repr, parameter.opts))}", hint)
            if extra:
                raise UsageError(f"unexpected argument: {' '.join(extra)}", hint)
        ctx.params = {parameter.name: texts.get(str(parameter.name)) for parameter in self.params}
        return []

    def with_code_block(self, words: list[str]) -> list[str]:
        """The words of a line, in which `--extract` and `-x` without a value get one, as Typer requires."""
        valued = {opt for option in self.params for opt in option.opts if option.metavar and option.name != "extract"}
        options = words[: words.index("--")] if "--" in words else words
        completed = list(words)
        for position, (previous, word) in enumerate(zip(["", *options], options, strict=False)):
            if EXTRACT.fullmatch(word) and previous not in valued:
                completed[position] = f"{word}={FIRST}" if word.startswith("--") else f"{word}{FIRST}"
        return completed

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        pieces = ["[OPTIONS]"]
        for argument in self.arguments:
            brackets = "{%s}" if argument.required else "[%s]"
            pieces.append(argument.metavar if argument.metavar.startswith("[") else brackets % argument.metavar)
        return pieces

    @property
    def arguments(self) -> list[Any]:
        return [parameter for parameter in self.params if parameter.param_type_name == "argument"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments first, then a section for each heading, then the options without one."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *HEADINGS, "Options")}
        for argument in self.arguments:
            text = f"{argument.help}  [required]" if argument.required else argument.help
            sections["Arguments"].append((argument.metavar, text))
        option: Any
        for option in self.get_params(ctx):
            if option.param_type_name == "option" and (record := option.get_help_record(ctx)):
                names, text = record
                names = names.replace(" [=", "[=")  # an optional value is attached
                sections[option.rich_help_panel or "Options"].append((names, text))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def subcommand(group: typer.Typer, **details: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a composed command to a group of commands."""
    return lambda function: group.command(cls=SectionedCommand, **details)(composed(function))


def app_of(context: typer.Context, options: QuietOptions | None) -> App:
    """The app a test has passed, or this machine's, as quiet or verbose as the options ask for."""
    from cerebrum_cli.cli.app import App, real_app

    app = context.obj if isinstance(context.obj, App) else real_app()
    unknown = unknown_variables(NAMES) and unknown_variables(option_names())
    for name, likely in unknown.items():
        hint = f"did you mean {likely}?" if likely else "run cerebrum COMMAND --help to list the options"
        app.streams.notice(NoticeEvent(f"unknown environment variable {name}", hint))
    app.streams = replace(app.streams, is_quiet=options is not None and options.quiet)
    if isinstance(options, AnswerOptions) and options.verbose:
        app.native_log(app.streams.info)
    return app


def option_names() -> set[str]:
    """Names of all options of all commands, of all settings, and of what only a variable can set."""
    for command in COMMANDS:
        import_module(f"cerebrum_cli.cli.{command.module}")
    return NAMES


def options_on_command_line(context: typer.Context) -> frozenset[str]:
    """Names of the options that are on the command line, as flags or after `--set`."""
    names = (name for name, text in context.params.items() if text is not None and name != SET)
    return assigned_keys(context.params.get(SET)).union(names)


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
