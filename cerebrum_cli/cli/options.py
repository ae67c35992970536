"""Options that several commands have: dataclasses whose fields are command-line options, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Self

import typer

from cerebrum_cli.cli.command import BaseCommand
from cerebrum_cli.core.declaration import (
    NAME,
    PATH,
    SOURCES,
    TEXTS,
    option,
    option_group,
    switch,
)
from cerebrum_cli.core.errors import GrammarError, ModelNotFound, UsageError
from cerebrum_cli.core.files import exists, read_text
from cerebrum_cli.core.grammar import Grammar, GrammarKind, is_json_schema, schema_file, schema_grammar, unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import Layer, Settings, SourcedLayer, without_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.ask import Votes
    from cerebrum_cli.core.saved_prompts import SavedPrompt
    from cerebrum_cli.core.tools import ToolFinder, Tools
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.mcp.mcp_servers import McpServers
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.servers.endpoint import Servers


GRAMMAR_KINDS: dict[str, GrammarKind] = {".lark": "lark", ".regex": "regex"}  # of files, by suffix
MAX_GRAMMAR_BYTES = 4_000_000  # of a file with a schema or a grammar
LAST = "last"  # code block of a reply
QUOTE_PATTERN = "quote a pattern: -f 'src/*.py'; or write -f before each file"


def json_option(kind: str = "object") -> Any:
    return switch(f"Print a JSON {kind}", "Output")


def yes_option() -> Any:
    return switch("Answer yes to every question", "Output", short="-y")


def offline_option() -> Any:
    return switch("Do not use the network", "Model")


def file_option() -> Any:
    help = "Prepend a file, folder, glob or URL (repeatable)"
    return option(help, "Input", SOURCES, default=(), short="-f", metavar="PATH|URL")


def check_option() -> Any:
    help = "Ask for a program, too, whose output is a vote"
    return option(help, "Sampling", metavar="python", choices=("python",))


@option_group
class PullOptions(BaseCommand):
    offline: bool = offline_option()
    yes: bool = yes_option()

    def find_model(self, app: App, requested: Settings, servers: Servers | None = None) -> InstalledModel:
        """The model of the servers, or one that is installed, which may be downloaded first. Raises ModelNotFound."""
        if servers:
            return app.find_model(requested, servers)
        try:
            model = app.library.resolve(requested.model)
        except ModelNotFound as error:
            from cerebrum_cli.cli.model_choice import pull_missing

            model = pull_missing(app, requested, error, yes=self.yes, offline=self.offline)
        app.library.registry.touch(model.usage_key)
        return model


@option_group
class AnswerOptions(PullOptions):
    endpoint: tuple[str, ...] = option(
        "Generate on this server (repeatable)", "Model", TEXTS, default=(), metavar="URL|NAME"
    )
    served_model_name: str | None = option("Model to request if the server has several")
    template_arg: tuple[str, ...] = option(
        "Variable for the embedded template, as KEY=VALUE (repeatable)", kind=TEXTS, default=()
    )
    verbose: bool = switch("Show llama.cpp's log on standard error [default: off]")

    def find_source(self, app: App, overrides: Layer, may_pull: bool = True) -> ModelSource:
        """The model that settings name, and where it runs; one that is not installed may be downloaded (`may_pull`).

        Raises UsageError, ConfigError, ModelNotFound, EndpointError, ModelFileError.
        """
        if self.verbose:
            from cerebrum_cli.engine.local import show_log

            show_log(lambda line: app.streams.draw(f"{line}\n"))
        variables = template_variables(self.template_arg)
        requested = app.settings(overrides)
        servers = self.find_servers(app, requested)
        model = self.find_model(app, requested, servers) if may_pull else app.find_model(requested, servers)
        source = app.source(model, servers, app.settings(overrides, model.recommended))
        return replace(source, template_variables=variables)

    def find_servers(self, app: App, requested: Settings) -> Servers | None:
        """Where the model runs; None for this machine. Raises UsageError, ConfigError."""
        if not self.endpoint:
            return None
        from cerebrum_cli.servers.endpoint import Servers

        return Servers(app.find_endpoints(self.endpoint, requested, self.served_model_name))


@option_group
class ConstrainedOptions(AnswerOptions):
    schema: str | None = option(
        "JSON Schema of the answer: file, JSON or 'name, age int'", "Output", NAME, metavar="SCHEMA"
    )
    grammar: Path | None = option("Grammar of the answer: .gbnf, .lark or .regex", "Output", PATH, metavar="FILE")

    def read_grammar(self, source: ModelSource) -> Grammar | None:
        """What `--schema` or `--grammar` gives; None without either. Raises UsageError, GrammarError."""
        schema, path = self.schema, self.grammar
        if schema is None and not path:
            return None
        if schema is not None and path:
            raise UsageError.conflict("--schema", "--grammar")
        with name_grammar_in_errors(schema, path):
            if path:
                grammar = Grammar(GRAMMAR_KINDS.get(path.suffix.lower(), "gbnf"), read_text(path, MAX_GRAMMAR_BYTES))
            else:
                grammar = schema_grammar(schema_text(schema or ""))
            source.check(grammar)
            return grammar


@option_group
class GenerationOptions(ConstrainedOptions):
    votes: str | None = option("Majority of K answers; auto[:A..B]: as few as needed", "Sampling", metavar="K|auto")
    check: str | None = check_option()

    def vote_bounds(self) -> Votes | None:
        """How many samples to take; None without `--votes`. Raises UsageError, also where no program can check them."""
        if self.votes is None:
            if self.check:
                raise UsageError("--check needs --votes", "add --votes K, the number of samples")
            return None
        from cerebrum_cli.core.ask import parse_votes

        votes = parse_votes(self.votes, self.check)
        if votes.checks:
            from cerebrum_cli.programs.monty import find_monty

            find_monty()  # raises an error where it does not work, before the model is loaded
        return votes


@option_group
class ToolOptions(BaseCommand):
    """Functions that the model may call."""

    tool: tuple[str, ...] = option(
        "Functions that the model may call (repeatable)", "Input", TEXTS, default=(), metavar="python|FILE|NAME"
    )
    mcp: tuple[str, ...] = option(
        "Add the functions of an MCP server (repeatable)", "Input", TEXTS, default=(), metavar="COMMAND|URL"
    )

    @property
    def tool_flag(self) -> str:
        """The option that gives the model functions; empty without one."""
        if self.tool:
            return "--tool"
        return "--mcp" if self.mcp else ""

    @property
    def tool_sources(self) -> Sequence[str]:
        return (*self.tool, *self.mcp)

    def tool_finder(self, app: App) -> ToolFinder:
        """What finds the functions of sources that are neither `python` nor a file."""

        @cache
        def servers() -> McpServers:
            from cerebrum_cli.mcp.mcp_servers import McpServers

            path = app.config_directory / "config.toml"
            opened = McpServers(app.config.mcp, path, self.mcp, app.streams.note)
            app.on_exit.callback(opened.close)
            return opened

        def find(source: str) -> Tools | None:
            if source not in self.mcp and (source == "python" or source.endswith(".py")):
                return None
            return servers().tools_of(source)

        return find


@option_group
class QuestionOptions(ToolOptions):
    saved_prompt: str | None = option("Apply a saved prompt", "Input", short="-p", metavar="NAME")
    param: tuple[str, ...] = option(
        "Value for {NAME} in the prompt (repeatable)",
        "Input",
        TEXTS,
        default=(),
        short="-P",
        metavar="NAME=VALUE",
    )
    file: tuple[Path | str, ...] = file_option()
    continue_: bool = switch("Continue the latest session", "Input", short="-c")
    session: str | None = option("Continue this session, or create it", "Input", metavar="NAME")

    @property
    def session_flag(self) -> str:
        """The option that chooses a session; empty without one. Raises UsageError for both."""
        if self.session is None:
            return "-c" if self.continue_ else ""
        if self.continue_:
            raise UsageError.conflict("-c", "--session")
        return "--session"

    def find_prompt(self, app: App) -> SavedPrompt | None:
        """The saved prompt with its values; None without one. Raises UsageError, ConfigError."""
        name = self.saved_prompt
        if name is None:
            if self.param:
                raise UsageError("-P needs a saved prompt", "name one with -p NAME")
            return None
        if len(name.split()) > 1 and name not in app.prompts.names():
            hint = f"-p takes the name of a saved prompt; the question is an argument: cerebrum ask {quote(name)}"
            raise UsageError(f"no saved prompt named {name!r}", hint)
        return app.prompts.find(name).with_values(self.param, f"-p {quote(name)} -P NAME=VALUE")

    def require_sessions(self, are_saved: bool) -> None:
        """Raise UsageError if a session is chosen where none are saved."""
        if self.session_flag and not are_saved:
            hint = f"use --set no_log=off, or omit {self.session_flag}"
            raise UsageError("no_log is on, so there is no session to continue", hint)


@option_group
class AskOptions(QuestionOptions, GenerationOptions):
    messages: Path | None = option("OpenAI messages list; `-` is standard input", "Input", PATH, metavar="FILE")
    raw: bool = switch("Complete prompts verbatim, without a format", "Input")
    final: bool = switch("Print only the final answer; exit code 5 without one", "Output")
    extract: bool = switch("Print only the first code block", "Output", short="-x")
    block: str | None = option("Print only the last code block, or the first in LANG", "Output", metavar="LANG|last")
    json: bool = json_option()
    stats: bool = switch("Print speed, context, sampling and seed", "Output")
    dry_run: bool = switch("Print the exact prompt without evaluating it", "Output")
    no_markdown: bool = switch("Plain text, even on a terminal", "Output")

    def with_saved(self, saved: SavedPrompt) -> Self:
        """A copy with a saved prompt applied; options on the command line win, and environment variables do not."""
        settings = without_keys(saved.settings, self.overrides.typed)
        command = replace(self, overrides=SourcedLayer(self.overrides, settings))
        if self.schema or self.extract_flag:
            return command
        if saved.schema and not self.grammar:
            return replace(command, schema=saved.schema)
        if not saved.extract or self.final or self.votes:
            return command
        return replace(command, extract=True, block=None if saved.extract is True else saved.extract)

    @property
    def extract_flag(self) -> str:
        """The option that prints a code block; empty without one."""
        if self.block is not None:
            return "--block"
        return "--extract" if self.extract else ""

    @property
    def streams_answer(self) -> bool:
        return not (self.final or self.json or self.extract_flag)

    def validate(self) -> None:
        if self.block == "":
            raise UsageError.invalid("--block", "", "a language, or last")
        code = self.extract_flag
        part = "--final" if self.final else code
        one_of_them = "omit one of them"
        session, tools = self.session_flag, self.tool_flag
        for is_conflict, first, second, hint in (
            (self.final and code, "--final", code, one_of_them),
            (self.votes and code, code, "--votes", f"{one_of_them}: votes count answers, not code"),
            (part and self.schema, part, "--schema", f"omit {part}: the whole answer is JSON"),
            (session and self.raw, session, "--raw", one_of_them),
            (session and self.messages, session, "--messages", one_of_them),
            (tools and self.votes, tools, "--votes", one_of_them),
        ):
            if is_conflict:
                raise UsageError.conflict(first, second, hint)


def template_variables(pairs: Sequence[str]) -> JsonDict:
    """Parse KEY=VALUE pairs; a value that is not JSON is text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError.invalid("template_arg", pair, "KEY=VALUE")
        if key == "messages":
            raise UsageError("template_arg messages would replace the conversation", "use --messages FILE")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options


def only_question(words: list[str]) -> str | None:
    """The question, a single argument. Raises UsageError for several, such as the words of an unquoted one."""
    if len(words) > 1:
        hint = f"quote the question: {quote(' '.join(words))}"
        if all(exists(Path(word)) for word in words[:-1]):  # what a shell made of a pattern
            hint = QUOTE_PATTERN
        elif len(words) == 2 and " " in words[1]:  # it was quoted
            hint = f"use -m for the model: -m {quote(words[0])} {quote(words[1])}"
        raise UsageError("more than one question given", hint)
    return words[0] if words else None


def require_agreement(app: App, question: str, name: str, yes: bool) -> None:
    """Ask before deleting, unless `-y` is given; exit 1 with nothing deleted if the answer is no."""
    streams = app.streams
    if not (yes or streams.confirm(question, default=False)):
        advice = "" if streams.in_is_terminal else "; confirm with -y"
        streams.draw(f"{name} not deleted{advice}\n")
        raise typer.Exit(1)


def schema_text(schema: str) -> str:
    """The value of `--schema` itself, or the text of its file. Raises UsageError, GrammarError."""
    if not schema.strip():
        raise UsageError.invalid("--schema", schema, "a JSON Schema, its path, or fields")
    path = schema_file(schema)
    if path is None:
        return schema
    if not exists(path) and schema.isidentifier():
        raise UsageError(f"there is no schema file {schema}", f"check the path; a field needs its type: '{schema} str'")
    text = read_text(path, MAX_GRAMMAR_BYTES)
    if not is_json_schema(text):
        raise unusable("it is not a JSON object", "it must be a JSON Schema object")
    return text


@contextmanager
def name_grammar_in_errors(schema: str | None, path: Path | None) -> Iterator[None]:
    """Name the file in errors, or the option."""
    try:
        yield
    except GrammarError as error:
        if schema:
            path = schema_file(schema)
        error.message = f"{path or '--schema'}: {error.message}"
        raise
