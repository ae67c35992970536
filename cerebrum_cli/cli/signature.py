"""Commands from functions: parameters for Typer, help under headings, values from flags, `--set` and variables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial, wraps
from importlib import import_module
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.cli.completion_values import Values, completing, completion_of
from cerebrum_cli.cli.options import FIRST, AnswerOptions, QuietOptions
from cerebrum_cli.core.declaration import HEADINGS, Option, flag, options_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import (
    OPTIONS,
    SHORTHAND_HELP,
    SHORTHANDS,
    Layer,
    SourcedLayer,
    environment_layer,
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

Json = Annotated[bool, Option("Print a JSON object", "Output")]
JsonArray = Annotated[bool, Option("Print a JSON array", "Output")]
Yes = Annotated[bool, Option("Delete without asking", "Output", short="-y")]


def settings_options(keys: Iterable[str], **help: str) -> dict[str, Option]:
    """Annotation of a parameter that gets a layer of these settings; `help` replaces the help of some of them."""
    return {key: OPTIONS[key]._replace(help=help.get(key, OPTIONS[key].help)) for key in keys}


def positional(metavar: str, help: str, values: Values | None = None) -> Any:
    return typer.Argument(metavar=metavar, help=f"{help}.", autocompletion=completing(values) if values else None)


def composed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The callback of a command, from a function of the app, its arguments and its options.

    A parameter annotated with a dataclass of options, or with `settings_options`, stands for the options in it. Those
    without a flag are set by `--set`, and so are settings. `on_command_line` gets the names of the options there.
    """
    signature = inspect.signature(function, eval_str=True, locals={"App": object})
    groups: dict[str, dict[str, Option]] = {}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    settable: dict[str, Option] = {}
    for name, parameter in signature.parameters.items():
        if options := options_in(parameter):
            groups[name] = options
            default = parameter.default if name in options else None
            parameters += [typer_parameter(declared, default) for declared in options.values() if declared.heading]
            settable |= {key: declared for key, declared in options.items() if key in OPTIONS or not declared.heading}
        elif name not in ("app", ON_COMMAND_LINE):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    NAMES.update(*groups.values())
    if settable:
        parameters.append(typer_parameter(SET_OPTION, None, partial(assignments, settable)))

    @wraps(function)
    def call(context: typer.Context, **texts: Any) -> Any:
        assigned_texts = texts.pop(SET, None) or ()
        if HELP in assigned_texts:
            return print_settings(app_of(context, None).streams, settable)
        names = {name for name, text in texts.items() if text is not None}
        assigned = parse_assignments(assigned_texts, settable)
        is_remote = "endpoint" in texts and bool(texts["endpoint"] or variable_that_sets("endpoint"))
        values: dict[str, Any] = {}
        for name, options in groups.items():
            layers = (given_value(options[key], texts.pop(key, None), assigned, is_remote) for key in options)
            layer, kind = SourcedLayer(*layers), signature.parameters[name].annotation
            if name in options:
                values |= layer
            else:
                values[name] = kind(**layer) if isinstance(kind, type) else layer
        app = app_of(context, next((value for value in values.values() if isinstance(value, QuietOptions)), None))
        values |= {name: text for name, text in texts.items() if text is not None}
        if ON_COMMAND_LINE in signature.parameters:
            values[ON_COMMAND_LINE] = frozenset(assigned).union(names)
        with app.on_exit:
            return function(app, **values)

    call.__annotations__ = {}  # Typer would evaluate them; those of the signature are enough
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def options_in(parameter: inspect.Parameter) -> dict[str, Option]:
    if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
        return options_of(parameter.annotation)
    hint, declared = (*get_args(parameter.annotation), None, None)[:2]
    if isinstance(declared, Option):
        kind, *_ = get_args(hint) or [hint]  # without None
        return {parameter.name: declared._replace(name=parameter.name, kind=kind.__name__)}
    return declared if isinstance(declared, dict) else {}


def typer_parameter(declared: Option, default: Any, values: Values | None = None) -> inspect.Parameter:
    """Typer's parameter of an option, as text, several texts or a switch, which `given_value` converts."""
    annotation: Any = str | None
    if declared.is_list:
        annotation = list[str] | None
    elif declared.kind == "bool":
        annotation, default = bool, False
    values = values or completion_of(declared)
    details = typer.Option(
        *filter(None, (declared.short, flag(declared.name))),
        help=f"{declared.help}.",
        metavar=declared.metavar,
        show_default=False,
        autocompletion=completing(values) if values else None,
        rich_help_panel=declared.heading,
    )
    annotation = Annotated[annotation, details]
    return inspect.Parameter(declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def given_value(declared: Option, text: Any, assigned: Mapping[str, Any], is_remote: bool) -> Layer:
    """The value of an option as a layer: that of its flag, else `assigned` with `--set`, else that of a variable.

    `text` is what follows the flag, or a list of texts, or True for a switch; None without the flag. Raises UsageError
    for an invalid value, with the name of the flag or variable, and for an option that is set twice. Local options are
    refused if a server is used, and their variables have no effect then.
    """
    name = declared.name
    source = f"--set {name}" if text is None else flag(name)
    is_given = text is not None or name in assigned
    if text is not None and name in assigned:
        raise UsageError.conflict(source, f"--set {name}")
    if declared.local and is_remote and is_given:
        raise UsageError(f"{source} applies to local models, not to --endpoint", f"omit {source}")
    if text is None:
        if name in assigned:
            return {name: assigned[name]}
        return {} if declared.local and is_remote else environment_layer(name, options={name: declared})
    if text is not True:
        text = declared.parse([text] if isinstance(text, str) else text, source, has_quotes=False)
    return {name: text}


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
    return {key: settable[key].parse(values, f"--set {key}") for key, values in collected.items()}


def with_shorthands(settable: Mapping[str, Option]) -> dict[str, Option]:
    shorthands = {name: settable[keys[0]] for name, keys in SHORTHANDS.items() if keys[0] in settable}
    return {name: declared._replace(help=SHORTHAND_HELP) for name, declared in shorthands.items()} | dict(settable)


def assignments(settable: Mapping[str, Option], app: App) -> Iterator[str]:
    """Completions of `--set`: each key, with its values if they can be listed."""
    for name, declared in with_shorthands(settable).items():
        values: Sequence[str] = declared.choices or (("on", "off") if declared.kind == "bool" else ())
        if source := completion_of(declared):
            values = tuple(source(app))
        yield from (f"{name}={value}" for value in values or ("",))


def print_settings(streams: Streams, settable: Mapping[str, Option]) -> None:
    from cerebrum_cli.terminal.tables import print_table

    rows = []
    for name, declared in with_shorthands(settable).items():
        meaning, _, default = declared.help.removesuffix("]").partition(" [default: ")
        rows.append((name, default or "none", declared.expected, meaning))
    print_table(streams, ("key", "default", "range", "meaning"), rows, "range", ("range", "default"))


class SectionedCommand(TyperCommand):
    """A command that gets its options as text, and lists them under headings in its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what follows each flag, and the arguments, into the parameters of the context; None without it.

        Typer would convert each of them, by importing pydantic in newer versions. Raises UsageError.
        """
        if ctx.resilient_parsing:  # for completion
            return super().parse_args(ctx, args)
        valued = {opt for option in self.params for opt in option.opts if option.metavar and option.name != "extract"}
        words = args[: args.index("--")] if "--" in args else args
        for position, (previous, word) in enumerate(zip(["", *words], words, strict=False)):
            if EXTRACT.fullmatch(word) and previous not in valued:  # Typer requires a value
                args[position] = f"{word}={FIRST}" if word.startswith("--") else f"{word}{FIRST}"
        texts, extra, _ = self.make_parser(ctx).parse_args(args=args)
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
    return lambda function: group.command(cls=SectionedCommand, **details)(composed(function))


def app_of(context: typer.Context, options: QuietOptions | None) -> App:
    """The app a test has passed, or this machine's, as quiet or verbose as the options ask for."""
    from cerebrum_cli.cli.app import App

    app = context.obj if isinstance(context.obj, App) else App.of_user()
    unknown = unknown_variables(NAMES) and unknown_variables(option_names())
    for name, hint in unknown.items():
        app.streams.notice(NoticeEvent(f"unknown environment variable {name}", hint))
    app.streams = replace(app.streams, is_quiet=options is not None and options.quiet)
    if isinstance(options, AnswerOptions) and options.verbose:
        from cerebrum_cli.engine.llama.bindings import log

        log.forward = app.streams.info
    return app


def option_names() -> set[str]:
    for command in COMMANDS:
        import_module(f"cerebrum_cli.cli.{command.module}")
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
