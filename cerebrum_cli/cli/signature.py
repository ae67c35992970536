"""Commands from functions: parameters for Typer, help under headings, values from flags, `--set` and variables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from functools import partial, wraps
from importlib import import_module
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin

import typer
from typer.core import TyperCommand

from cerebrum_cli.cli.completion_values import Values, completing, completion_of
from cerebrum_cli.cli.options import FIRST, QuietOptions
from cerebrum_cli.core.declaration import HEADINGS, Option, flag, options_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import (
    COMMAND_LINE,
    OPTIONS,
    SHORTHAND_HELP,
    SHORTHANDS,
    SourcedLayer,
    environment_value,
    unknown_variables,
    variable_that_sets,
)
from cerebrum_cli.core.text import did_you_mean

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.terminal.streams import Streams

NAMES = {*OPTIONS, "api_key"}  # of all options of the commands that are imported, and of what only a variable sets
SET = "set"
HELP = "help"  # instead of KEY=VALUE
SET_OPTION = Option(
    f"Change a setting; `--{SET} {HELP}` lists them (repeatable)",
    "Model",
    metavar="KEY=VALUE",
    name=SET,
    kind="tuple[str, ...]",
)
ON_COMMAND_LINE = "on_command_line"
EXTRACT = re.compile(r"--extract|-[cqy]*x")  # without a value; -c, -q and -y never have one

Options = Mapping[str, Option]  # by name
Function = Callable[..., Any]
Arguments = Mapping[str, Any]  # by parameter or key
Json = Annotated[bool, Option("Print a JSON object", "Output")]
JsonArray = Annotated[bool, Option("Print a JSON array", "Output")]
Yes = Annotated[bool, Option("Delete without asking", "Output", short="-y")]


def settings_options(keys: Iterable[str], **help: str) -> dict[str, Option]:
    """Annotation of a parameter that gets a layer of these settings; `help` replaces the help of some of them."""
    return {key: OPTIONS[key]._replace(help=help.get(key, OPTIONS[key].help)) for key in keys}


def positional(metavar: str, help: str, values: Values | None = None) -> Any:
    return typer.Argument(metavar=metavar, help=f"{help}.", autocompletion=completing(values) if values else None)


def composed(function: Function) -> Function:
    """The callback of a command, from a function of the app, its arguments and its options.

    A parameter annotated with a dataclass of options, or with `settings_options`, stands for the options in it. Those
    without a flag are set by `--set`, and so are settings. `on_command_line` gets the names of the options there.
    """
    signature = inspect.signature(function, eval_str=True, locals={"App": object})
    declared = DeclaredCommand.of(signature.parameters)

    @wraps(function)
    def call(context: typer.Context, **texts: Any) -> Any:
        assigned = texts.pop(SET, None) or ()
        if HELP in assigned:
            return print_settings(app_of(context).streams, declared.settable)
        require_arguments(context)
        given = GivenOptions.parse(texts, assigned, declared.settable)
        values = declared.values(given)
        app = app_of(context, values.values())
        with app.on_exit:
            return function(app, **values)

    call.__annotations__ = {}  # Typer would evaluate them; those of the signature are enough
    call.__signature__ = signature.replace(parameters=declared.typer_parameters())  # type: ignore[attr-defined]
    return call


class DeclaredCommand(NamedTuple):
    """The parameters of a command's function, and the options that some of them stand for, by the parameter's name."""

    parameters: Mapping[str, inspect.Parameter]
    groups: Mapping[str, Options]

    @classmethod
    def of(cls, parameters: Mapping[str, inspect.Parameter]) -> DeclaredCommand:
        groups = {}
        for name, parameter in parameters.items():
            if options := options_in(parameter):
                groups[name] = options
        NAMES.update(*groups.values())
        return cls(parameters, groups)

    @property
    def settable(self) -> Options:
        """The options that `--set` takes: settings, and those without a flag."""
        settable = {}
        for options in self.groups.values():
            for name, declared in options.items():
                if name in OPTIONS or not declared.heading:
                    settable[name] = declared
        return settable

    def typer_parameters(self) -> list[inspect.Parameter]:
        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for name, parameter in self.parameters.items():
            if name in self.groups:
                options = self.groups[name].values()
                parameters += [typer_parameter(declared) for declared in options if declared.heading]
            elif name not in ("app", ON_COMMAND_LINE):
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if self.settable:
            parameters.append(typer_parameter(SET_OPTION, partial(assignments, self.settable)))
        return parameters

    def values(self, given: GivenOptions) -> Arguments:
        """The arguments of the function; those that nobody sets have its defaults. Raises UsageError."""
        values = {}
        for name, parameter in self.parameters.items():
            if name not in self.groups:
                if name in given.flags:
                    values[name] = given.flags[name]
                continue
            layer = given.layer(self.groups[name])
            kind = parameter.annotation
            if name in self.groups[name]:
                values.update(layer)
            elif isinstance(kind, type):
                values[name] = kind(**layer)
            else:
                values[name] = layer
        if ON_COMMAND_LINE in self.parameters:
            values[ON_COMMAND_LINE] = frozenset([*given.flags, *given.assigned])
        return values


def options_in(parameter: inspect.Parameter) -> Options:
    """The options that a parameter stands for, by name; empty for an argument of the command line."""
    annotation = parameter.annotation
    if is_dataclass(annotation) and isinstance(annotation, type):
        return options_of(annotation)
    if get_origin(annotation) is not Annotated:
        return {}
    hint, declared = get_args(annotation)
    if isinstance(declared, Option):
        kind, *_ = get_args(hint) or [hint]  # without None
        return {parameter.name: declared._replace(name=parameter.name, kind=kind.__name__)}
    return declared if isinstance(declared, dict) else {}


def typer_parameter(declared: Option, values: Values | None = None) -> inspect.Parameter:
    """Typer's parameter of an option, as text, several texts or a switch."""
    kind: Any = str | None
    if declared.is_list:
        kind = list[str] | None
    elif declared.kind == "bool":
        kind = bool
    values = values or completion_of(declared)
    names = [name for name in (declared.short, flag(declared.name)) if name]
    details = typer.Option(
        *names,
        help=f"{declared.help}.",
        metavar=declared.metavar,
        show_default=False,
        autocompletion=completing(values) if values else None,
        rich_help_panel=declared.heading,
    )
    default = False if kind is bool else None
    annotation = Annotated[kind, details]
    return inspect.Parameter(declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def require_arguments(context: typer.Context) -> None:
    """Raise UsageError for an argument that is missing, and for those left over."""
    hint = f"see {context.command_path} --help"
    for parameter in context.command.params:
        is_missing = parameter.required and context.params[parameter.name] is None
        if is_missing and parameter.param_type_name == "argument":
            raise UsageError(f"missing argument '{parameter.metavar}'", hint)
    if context.args:
        raise UsageError(f"unexpected argument: {' '.join(context.args)}", hint)


class GivenOptions(NamedTuple):
    """What a command line sets: what follows each flag, True for a switch, and the values of `--set`.

    Local options are refused if a server is used, and their variables have no effect then.
    """

    flags: Arguments
    assigned: Arguments
    is_remote: bool

    @classmethod
    def parse(cls, texts: Arguments, assigned: Iterable[str], settable: Options) -> GivenOptions:
        """Read what Typer found, with None for a flag that is not there. Raises UsageError."""
        flags = {name: text for name, text in texts.items() if text is not None}
        has_server = "endpoint" in flags or variable_that_sets("endpoint") is not None
        return cls(flags, parse_assignments(assigned, settable), "endpoint" in texts and has_server)

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
        keys = [meant for meant in SHORTHANDS.get(key, (key,)) if meant in settable]
        if not keys:
            near = did_you_mean(key, (*SHORTHANDS, *settable))
            raise UsageError(f"this command has no setting {name!r}", f"{near}list all with --set help")
        if not equals:
            raise UsageError(f"--set {name} has no value", f"write --set {name}=VALUE")
        for key in keys:
            collected.setdefault(key, []).append(value)
    return {key: settable[key].parse(values, f"--set {key}") for key, values in collected.items()}


def with_shorthands(settable: Options) -> Options:
    shorthands = {}
    for name, keys in SHORTHANDS.items():
        if keys[0] in settable:
            shorthands[name] = settable[keys[0]]._replace(help=SHORTHAND_HELP)
    return {**shorthands, **settable}


def assignments(settable: Options, app: App) -> Iterator[str]:
    """Completions of `--set`: each key, with its values if they can be listed."""
    for name, declared in with_shorthands(settable).items():
        source = completion_of(declared)
        values: Iterable[str] = declared.words
        if source:
            values = source(app)
        for value in values or ("",):
            yield f"{name}={value}"


def print_settings(streams: Streams, settable: Options) -> None:
    from cerebrum_cli.terminal.tables import print_table

    rows = []
    for name, declared in with_shorthands(settable).items():
        meaning, _, default = declared.help.removesuffix("]").partition(" [default: ")
        rows.append((name, default or "none", declared.expected, meaning))
    print_table(streams, ("key", "default", "range", "meaning"), rows, "range", ("range", "default"))


class SectionedCommand(TyperCommand):
    """A command that gets its options as text, and lists them under headings in its help.

    Typer would convert them with pydantic, whose import takes longer than a whole start, and print headings with rich.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what follows each flag, and the arguments, into the parameters of the context; None without it."""
        if ctx.resilient_parsing:  # for completion
            return super().parse_args(ctx, args)
        texts, ctx.args, _ = self.make_parser(ctx).parse_args(args=self.with_extract_values(args))
        if texts.get("help"):
            typer.echo(ctx.get_help())
            ctx.exit()
        for parameter in self.params:
            ctx.params[parameter.name] = texts.get(parameter.name)
        return []

    def with_extract_values(self, args: list[str]) -> list[str]:
        """The words, with the value that Typer requires after each `--extract` and `-x` without one."""
        end = args.index("--") if "--" in args else len(args)
        words = list(args)
        for index, word in enumerate(args[:end]):
            if EXTRACT.fullmatch(word):
                words[index] += f"={FIRST}" if word.startswith("--") else FIRST
        return words

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        pieces = ["[OPTIONS]"]
        for argument in self.arguments:
            if argument.required:
                pieces.append(f"{{{argument.metavar}}}")
            else:
                pieces.append(argument.metavar)
        return pieces

    @property
    def arguments(self) -> list[Any]:
        return [parameter for parameter in self.params if parameter.param_type_name == "argument"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *HEADINGS, "Options")}
        for argument in self.arguments:
            text = f"{argument.help}  [required]" if argument.required else argument.help
            sections["Arguments"].append((argument.metavar, text))
        option: Any
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if option.param_type_name == "option" and record:
                names, text = record
                names = names.replace(" [=", "[=")  # an optional value is attached
                sections[option.rich_help_panel or "Options"].append((names, text))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def subcommand(group: typer.Typer, **details: Any) -> Callable[[Function], Function]:
    return lambda function: group.command(cls=SectionedCommand, **details)(composed(function))


def app_of(context: typer.Context, values: Iterable[object] = ()) -> App:
    """The app a test has passed, or this machine's, as quiet or verbose as the options among the values ask for."""
    from cerebrum_cli.cli.app import App

    app = context.obj if isinstance(context.obj, App) else App.of_user()
    unknown = unknown_variables(NAMES) and unknown_variables(option_names())
    for name, hint in unknown.items():
        app.streams.notice(NoticeEvent(f"unknown environment variable {name}", hint))
    for options in values:
        if not isinstance(options, QuietOptions):
            continue
        app.streams = replace(app.streams, is_quiet=options.quiet)
        if options.verbose:
            from cerebrum_cli.engine.local import show_log

            show_log(app.streams.info)
    return app


def option_names() -> set[str]:
    from cerebrum_cli.cli.commands import own_commands

    for command in own_commands().values():
        import_module(command.module)
    return NAMES


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
