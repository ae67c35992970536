"""Commands as dataclasses, whose fields are arguments and options, and the Typer commands that are made of them.

Typer parses the words, but converts none: what follows a flag stays text until `--set` and variables are read, too.
Its own conversion needs pydantic, whose import takes longer than a whole start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, fields, replace
from functools import partial
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from cerebrum_cli.core.declaration import HEADINGS, TEXTS, Option, flag, option_group, options_of, switch, variable
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.settings import COMMAND_LINE, OPTIONS, Layer, SourcedLayer
from cerebrum_cli.core.text import did_you_mean

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.terminal.streams import Streams

ENDPOINT = "endpoint"  # the one option that has a variable; it names several servers with spaces between them
SET = "set"
HELP = "help"  # instead of KEY=VALUE
SET_OPTION = Option(
    f"Change a setting (repeatable); --{SET} {HELP} lists all", "Model", TEXTS, metavar="KEY=VALUE", name=SET
)
SETTINGS_WIDTH = 200  # of a terminal that shows a setting with its default and range in one line
UNCONVERTED: Any = None  # instead of a type
NO_HELP = {"default_map": {HELP: False}}  # a value that Typer need not convert
Options = Mapping[str, Option]  # by name


class Argument(NamedTuple):
    """An argument of the command line: its name in help, its help, and what completes it.

    One that `takes_options` is a list of all words but the command's own options and their values.
    """

    metavar: str
    help: str
    values: Values | None
    is_list: bool
    is_required: bool
    takes_options: bool


def argument(
    metavar: str,
    help: str,
    values: Values | None = None,
    is_list: bool = False,
    is_required: bool = True,
    takes_options: bool = False,
) -> Any:
    """Declare a field as an argument; if it is not required, it is None or empty without one."""
    metadata = {"argument": Argument(metavar, help, values, is_list, is_required, takes_options)}
    if is_required:
        return field(metadata=metadata)
    return field(default_factory=list, metadata=metadata) if is_list else field(default=None, metadata=metadata)


def settings_options(keys: Iterable[str], **help: str) -> Options:
    """The options of these settings; `help` replaces the help of some of them."""
    return {key: OPTIONS[key]._replace(help=help.get(key, OPTIONS[key].help)) for key in keys}


@option_group
class BaseCommand:
    """A command of the command line: its docstring is its help.

    `settings` are those that it takes; `overrides`, their values from the command line and from variables.
    """

    settings: ClassVar[Options] = {}
    overrides: SourcedLayer = field(default_factory=SourcedLayer)
    quiet: bool = switch("No notices or progress on standard error", "Output", short="-q")

    def run(self, app: App) -> None:
        raise NotImplementedError


CommandGroup = Mapping[str, type[BaseCommand]]  # the commands of a group, by name


def given_value(declared: Option, text: Any, set_values: Mapping[str, Any], is_remote: bool) -> Any:
    """The value of an option on the command line, whose flag is followed by a text. Raises UsageError."""
    name = declared.name
    source = f"--set {name}" if text is None else flag(name)
    if text is not None and name in set_values:
        raise UsageError.conflict(source, f"--set {name}")
    if declared.local and is_remote:
        raise UsageError(f"{source} applies to local models, not to --endpoint", f"omit {source}")
    if text is None:
        return set_values[name]
    if text is True:
        return True
    return declared.parse([text] if isinstance(text, str) else text, source, has_quotes=False)


def grouped(name: str, group: CommandGroup, **shown: Any) -> TyperGroup:
    """A command with subcommands."""
    commands: dict[str, Any] = {}
    for each, kind in group.items():
        help = cleandoc(kind.__doc__ or "")
        commands[each] = ParsedCommand(each, kind, help=help, short_help=help.partition("\n\n")[0])
    return TyperGroup(
        name=name, commands=commands, no_args_is_help=True, rich_markup_mode=None, context_settings=NO_HELP, **shown
    )


class ParsedCommand(TyperCommand):
    """A command that lists its options under headings, and runs a BaseCommand.

    `settable` are the options that `--set` takes: settings, and options without a flag.
    """

    allow_extra_args = True  # their error should come after that of a missing argument

    def __init__(self, name: str, kind: type[BaseCommand], **shown: Any) -> None:
        self.kind = kind
        self.options: Options = {**kind.settings, **options_of(kind)}
        self.settable = {name: each for name, each in self.options.items() if name in kind.settings or not each.heading}
        declared = {member.name: member.metadata.get("argument") for member in fields(kind)}
        self.arguments = [Positional(name, each) for name, each in declared.items() if each]
        parameters: list[Any] = [*self.arguments]
        parameters += [Flag(each) for each in self.options.values() if each.heading]
        if self.settable:
            parameters.append(Flag(SET_OPTION._replace(values=self.assignments)))
        takes_options = any(each.takes_options for each in declared.values() if each)
        context = {**NO_HELP, "ignore_unknown_options": takes_options}
        super().__init__(name, params=parameters, context_settings=context, rich_markup_mode=None, **shown)

    def invoke(self, ctx: Any) -> None:
        app = app_of(ctx)
        texts = {name: value for name, value in ctx.params.items() if value is not None}
        assigned = texts.pop(SET, ())
        if HELP in assigned:
            print_settings(app.streams, self.settable)
            return
        self.require_arguments(ctx)
        command = self.build(texts, assigned)
        app.streams = replace(app.streams, is_quiet=command.quiet)
        with app.on_exit:
            command.run(app)

    def build(self, texts: Mapping[str, Any], assigned: Iterable[str]) -> BaseCommand:
        """The command of arguments and what follows flags, True for a switch, and of values of `--set`.

        Of settings, and of servers, what is not on the command line has the value of its variable. Raises UsageError.
        """
        set_values = self.parse_assignments(assigned)
        is_remote = ENDPOINT in self.options and (ENDPOINT in texts or variable_that_sets(ENDPOINT) is not None)
        values = {each.name: texts[each.name] for each in self.arguments if each.name in texts}
        overrides = SourcedLayer()
        for name, declared in self.options.items():
            value, origin = None, COMMAND_LINE
            if name in texts or name in set_values:
                value = given_value(declared, texts.get(name), set_values, is_remote)
            elif not (declared.local and is_remote):
                value, origin = environment_value(declared)
            if name in self.kind.settings:
                overrides.put(name, value, origin)
            elif value is not None:
                values[name] = value
        return self.kind(**values, overrides=overrides)

    def parse_assignments(self, texts: Iterable[str]) -> Mapping[str, Any]:
        """Values by key; those of a repeated list are joined, else the last one counts. Raises UsageError."""
        collected: dict[str, list[str]] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            key = name.replace("-", "_")
            if key not in self.settable:
                near = did_you_mean(key, tuple(self.settable))
                raise UsageError(f"this command has no setting {name!r}", f"{near}list all with --set help")
            if not equals:
                raise UsageError(f"--set {name} has no value", f"write --set {name}=VALUE")
            collected.setdefault(key, []).append(value)
        return {key: self.settable[key].parse(values, f"--set {key}") for key, values in collected.items()}

    def assignments(self, app: App) -> Iterator[str]:
        """Completions of `--set`: each key, with its values if they can be listed."""
        for name, declared in self.settable.items():
            source = completion_of(declared)
            for value in source(app) if source else declared.words or ("",):
                yield f"{name}={value}"

    def require_arguments(self, ctx: Any) -> None:
        """Raise UsageError for an argument that is missing, and for those left over."""
        hint = f"see {ctx.command_path} --help"
        for argument in self.arguments:
            if argument.required and ctx.params[argument.name] is None:
                raise UsageError(f"missing argument '{argument.metavar}'", hint)
        if ctx.args:
            raise UsageError(f"unexpected argument: {' '.join(ctx.args)}", hint)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["[OPTIONS]", *(str(argument.metavar) for argument in self.arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in HEADINGS}
        parameter: Any
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):  # the reference hides some
                sections[parameter.rich_help_panel or HEADINGS[-1]].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def app_of(context: Any) -> App:
    """The app a test has passed, or this machine's."""
    from cerebrum_cli.cli.app import App

    return context.obj if isinstance(context.obj, App) else App.of_user()


class Flag(TyperOption):
    """The flag of an option; its value is text, several texts or True, and None without it."""

    def __init__(self, declared: Option) -> None:
        self.alias = declared.alias
        super().__init__(
            param_decls=[declared.name, *filter(None, (declared.short, declared.alias, flag(declared.name)))],
            type_descriptor=UNCONVERTED,
            is_flag=declared.kind.is_switch,
            multiple=declared.kind.is_list,
            metavar=declared.metavar,
            help=declared.help if declared.help.endswith("]") else f"{declared.help}.",
            autocompletion=partial(complete_option, declared),
            rich_help_panel=declared.heading,
        )

    def get_help_record(self, ctx: Any) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0].replace(f"{self.alias}, ", ""), record[1])

    def process_value(self, ctx: Any, value: Any) -> Any:  # noqa: ARG002
        return value


class Positional(TyperArgument):
    """An argument of the command line; its value is text or several texts, and None without it."""

    def __init__(self, name: str, declared: Argument) -> None:
        super().__init__(
            param_decls=[name],
            type_descriptor=UNCONVERTED,
            required=declared.is_required,
            nargs=-1 if declared.is_list else 1,
            metavar=declared.metavar,
            help=f"{declared.help}.",
            autocompletion=partial(complete_values, declared.values),
            rich_help_panel="Input",
        )

    def get_help_record(self, ctx: Any) -> tuple[str, str]:  # noqa: ARG002
        return str(self.metavar), f"{self.help}  [required]" if self.required else str(self.help)

    def process_value(self, ctx: Any, value: Any) -> Any:  # noqa: ARG002
        return value if self.nargs == 1 else list(value or ()) or None


def setting_rows(settable: Options) -> list[tuple[str, str, str, str]]:
    """Key, default, range and meaning of each setting."""
    rows = []
    for name, declared in settable.items():
        meaning, _, default = declared.help.removesuffix("]").partition(" [default: ")
        rows.append((name, default or "none", declared.expected, meaning))
    return rows


def print_settings(streams: Streams, settable: Options) -> None:
    from cerebrum_cli.terminal.tables import print_table

    rows = setting_rows(settable)
    if not streams.out_is_terminal or streams.columns >= SETTINGS_WIDTH:
        print_table(streams, ("key", "default", "range", "meaning"), rows)
        return
    indent = max(len(name) for name, *_ in rows) + 2
    for name, default, expected, meaning in rows:
        lines = (meaning, f"{expected}; default: {default}")
        text = f"\n{' ' * indent}".join(streams.wrapped(line, indent) for line in lines)
        streams.answer(f"{name:<{indent}}{text}\n")


Candidates = Iterable[str]
Values: TypeAlias = Callable[["App"], Candidates]  # read when Tab is pressed


def installed_models(app: App) -> Candidates:
    return (model.reference for model in app.library.models())


def known_models(app: App) -> Candidates:
    return (spec.name for spec in app.library.catalogue.specs)


def sessions(app: App) -> Candidates:
    return app.read_history().store.names()


def saved_prompts(app: App) -> Candidates:
    return app.prompts.names()


def formats(_: App) -> Candidates:
    from cerebrum_cli.formats.choice import FORMAT_NAMES

    return FORMAT_NAMES


COMPLETIONS: Mapping[str, Values] = {  # values of an option, by its name
    "model": installed_models,
    "format": formats,
    "session": sessions,
    "saved_prompt": saved_prompts,
}


def completion_of(declared: Option) -> Values | None:
    """Where the values of an option come from; None if any text may follow, or none."""
    if declared.choices:
        return lambda _: declared.choices
    return declared.values or COMPLETIONS.get(declared.name)


def complete_option(declared: Option, _: Any, __: list[str], incomplete: str) -> list[str]:
    return complete_values(completion_of(declared), _, __, incomplete)


def complete_values(values: Values | None, _: Any, __: list[str], incomplete: str) -> list[str]:
    """The values that continue an incomplete one; none if they cannot be found."""
    from cerebrum_cli.cli.app import App

    if values is None:
        return []
    try:
        return [value for value in values(App.of_user()) if value.startswith(incomplete)]
    except (CerebrumError, OSError):
        return []


def environment_layer(*keys: str) -> Layer:
    """The settings of these keys that CEREBRUM_* variables set. Raises UsageError."""
    layer = SourcedLayer()
    for key in keys:
        layer.put(key, *environment_value(OPTIONS[key]))
    return layer


def environment_value(declared: Option) -> tuple[Any, str]:
    """The value that a variable gives an option, and the name of the variable; None without one. Raises UsageError."""
    source = variable_that_sets(declared.name)
    if source is None:
        return None, ""
    text = environment(source) or ""
    texts = text.split() if declared.name == ENDPOINT else [text]
    return declared.parse(texts, source, has_quotes=not declared.heading), source


def variable_that_sets(name: str) -> str | None:
    """The environment variable that sets a setting or the servers; None if it is not set."""
    source = variable(name)
    if name not in OPTIONS and name != ENDPOINT:
        return None
    return None if environment(source) is None else source
