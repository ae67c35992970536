"""Commands of Typer whose options are declared by a function's signature, and listed under headings in the help.

Typer parses the words, but converts none: what follows a flag stays text until `--set` and variables are read, too.
Its own conversion needs pydantic, whose import takes longer than a whole start.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from cerebrum_cli.cli.completion_values import complete_option, complete_values, completion_of
from cerebrum_cli.cli.options import QuietOptions
from cerebrum_cli.cli.signature import Argument, CommandGroup, Declared, GivenOptions, Options
from cerebrum_cli.core.declaration import HEADINGS, TEXTS, Option, flag
from cerebrum_cli.core.errors import UsageError

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.terminal.streams import Streams

SET = "set"
HELP = "help"  # instead of KEY=VALUE
SET_OPTION = Option(
    f"Change a setting; `--{SET} {HELP}` lists them (repeatable)", "Model", TEXTS, metavar="KEY=VALUE", name=SET
)
SETTINGS_WIDTH = 200  # of a terminal that shows a setting with its default and range in one line
UNCONVERTED: Any = None  # instead of a type
NO_HELP = {"default_map": {HELP: False}}  # a value that Typer need not convert


def grouped(name: str, group: CommandGroup, **shown: Any) -> TyperGroup:
    """A command with subcommands."""
    commands: dict[str, Any] = {}
    for each, declared in group.items():
        help = cleandoc(declared.function.__doc__ or "")
        commands[each] = DeclaredCommand(each, declared, help=help, short_help=declared.short_help)
    return TyperGroup(
        name=name, commands=commands, no_args_is_help=True, rich_markup_mode=None, context_settings=NO_HELP, **shown
    )


class DeclaredCommand(TyperCommand):
    """A command that lists its options under headings, and runs its function with what its parameters declare."""

    allow_extra_args = True  # their error should come after that of a missing argument

    def __init__(self, name: str, declared: Declared, **shown: Any) -> None:
        self.declared = declared
        self.settable = declared.settable
        self.arguments = list(map(ArgumentParameter, declared.arguments.values()))
        parameters: list[Any] = [*self.arguments]
        for each in declared.options.values():
            if each.heading:
                parameters.append(FlagParameter(each))
        if self.settable:
            parameters.append(FlagParameter(SET_OPTION._replace(values=self.assignments)))
        super().__init__(name, params=parameters, context_settings=NO_HELP, rich_markup_mode=None, **shown)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_implied_values(args, self.declared.options.values()))

    def invoke(self, ctx: Any) -> Any:
        texts = {name: value for name, value in ctx.params.items() if value is not None}
        assigned = texts.pop(SET, ())
        if HELP in assigned:
            return print_settings(app_of(ctx).streams, self.settable)
        self.require_arguments(ctx)
        values = self.declared.values(GivenOptions.parse(texts, assigned, self.declared))
        app = app_of(ctx)
        for options in values.values():
            if isinstance(options, QuietOptions):
                options.apply_to(app)
        with app.on_exit:
            return self.declared.function(app, **values)

    def require_arguments(self, ctx: Any) -> None:
        """Raise UsageError for an argument that is missing, and for those left over."""
        hint = f"see {ctx.command_path} --help"
        for argument in self.arguments:
            if argument.required and ctx.params[argument.name] is None:
                raise UsageError(f"missing argument '{argument.metavar}'", hint)
        if ctx.args:
            raise UsageError(f"unexpected argument: {' '.join(ctx.args)}", hint)

    def assignments(self, app: App) -> Iterator[str]:
        """Completions of `--set`: each key, with its values if they can be listed."""
        for name, declared in self.settable.items():
            source = completion_of(declared)
            values: Iterable[str] = declared.words
            if source:
                values = source(app)
            for value in values or ("",):
                yield f"{name}={value}"

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        pieces = ["[OPTIONS]"]
        for argument in self.arguments:
            pieces.append(f"{{{argument.metavar}}}" if argument.required else str(argument.metavar))
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *HEADINGS, "Options")}
        parameter: Any
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):  # the reference hides some
                names, text = record
                names = names.replace(" [=", "[=")  # an optional value is attached
                sections[parameter.rich_help_panel or "Options"].append((names, text))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class FlagParameter(TyperOption):
    """The flag of an option; its value is text, several texts or True, and None without it."""

    def __init__(self, declared: Option) -> None:
        super().__init__(
            param_decls=[declared.name, *filter(None, (declared.short, flag(declared.name)))],
            type_descriptor=UNCONVERTED,
            is_flag=declared.kind.is_switch,
            multiple=declared.kind.is_list,
            metavar=declared.metavar,
            help=f"{declared.help}.",
            autocompletion=partial(complete_option, declared),
            rich_help_panel=declared.heading,
        )

    def process_value(self, ctx: Any, value: Any) -> Any:  # noqa: ARG002
        return value


class ArgumentParameter(TyperArgument):
    """An argument of the command line; its value is text or several texts, and None without it."""

    def __init__(self, argument: Argument) -> None:
        super().__init__(
            param_decls=[argument.name],
            type_descriptor=UNCONVERTED,
            required=argument.is_required,
            nargs=-1 if argument.is_list else 1,
            metavar=argument.metavar,
            help=f"{argument.help}.",
            autocompletion=partial(complete_values, argument.values),
            rich_help_panel="Arguments",
        )

    def get_help_record(self, ctx: Any) -> tuple[str, str]:  # noqa: ARG002
        return str(self.metavar), f"{self.help}  [required]" if self.required else str(self.help)

    def process_value(self, ctx: Any, value: Any) -> Any:  # noqa: ARG002
        return value if self.nargs == 1 else list(value or ()) or None


def with_implied_values(words: list[str], options: Collection[Option]) -> list[str]:
    """The words, with the value that a flag implies when it stands alone: Typer requires one."""
    switches = "".join(option.short[1:] for option in options if option.short and option.kind.is_switch)
    end = words.index("--") if "--" in words else len(words)
    words = list(words)
    for option in options:
        if not option.implied:
            continue
        pattern = flag(option.name)
        if option.short:
            pattern += f"|-[{switches}]*{option.short[1:]}"
        alone = re.compile(pattern)
        for index, word in enumerate(words[:end]):
            if alone.fullmatch(word):
                words[index] += f"={option.implied}" if word.startswith("--") else option.implied
    return words


def app_of(context: Any) -> App:
    """The app a test has passed, or this machine's."""
    from cerebrum_cli.cli.app import App

    return context.obj if isinstance(context.obj, App) else App.of_user()


def print_settings(streams: Streams, settable: Options) -> None:
    from cerebrum_cli.terminal.tables import print_table

    rows = []
    for name, declared in settable.items():
        meaning, _, default = declared.help.removesuffix("]").partition(" [default: ")
        rows.append((name, default or "none", declared.expected, meaning))
    if not streams.out_is_terminal or streams.columns >= SETTINGS_WIDTH:
        print_table(streams, ("key", "default", "range", "meaning"), rows)
        return
    indent = max(len(name) for name, *_ in rows) + 2
    for name, default, expected, meaning in rows:
        lines = (meaning, f"{expected}; default: {default}")
        text = f"\n{' ' * indent}".join(streams.wrapped(line, indent) for line in lines)
        streams.answer(f"{name:<{indent}}{text}\n")
