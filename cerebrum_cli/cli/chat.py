"""`cerebrum chat`: chat interactively."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.options import AnswerOptions, QuestionOptions, only_question
from cerebrum_cli.core.declaration import option_group, switch
from cerebrum_cli.core.settings import DIALOGUE_KEYS, REPLY_KEYS, Layer, SourcedLayer, without_keys

if TYPE_CHECKING:
    from cerebrum_cli.chat.chat import Chat
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.replies.source import ModelSource

REFERENCE = re.compile(r"[\w.:/~?=&%@-]+", re.ASCII)  # the characters of references to models


@option_group
class ChatCommand(QuestionOptions, AnswerOptions):
    """Type /help for commands and keys.

    Piped text follows QUESTION; without one, each of its lines is a question or a slash command.

    Examples:
      cerebrum chat
      cerebrum chat -m cerebrum-7b --session physics
      cerebrum chat -c
      git diff | cerebrum chat "Review this"
    """

    settings = settings_options((*REPLY_KEYS, *DIALOGUE_KEYS))
    words: list[str] = argument(
        "[MODEL] [QUESTION]",
        "Model, first question, or both; with -m, only a question",
        is_list=True,
        is_required=False,
    )
    no_markdown: bool = switch("Plain text, even on a terminal", "Output")

    def run(self, app: App) -> None:
        from cerebrum_cli.attachments.prompt_sources import read_files
        from cerebrum_cli.terminal.repl.interactive import run_chat
        from cerebrum_cli.terminal.sinks import ReplyDisplay

        saved = self.find_prompt(app)
        words, overrides = self.words, self.overrides
        if len(words) > 2:
            only_question(words)
        if "model" not in overrides.typed and words and not is_question(words[0]):
            reference, *words = words
            overrides = SourcedLayer(overrides, {"model": reference})
        applied: Layer = {}
        if saved:
            saved.require_for_chat()
            applied = without_keys(saved.settings, overrides.typed)
        files = read_files(self.file, app.streams.note, self.offline)
        question = read_question(app, words)
        display = ReplyDisplay(app.streams, self.yes)
        display.find = self.tool_finder(app)
        tools = display.tools_of(self.tool_sources)
        conversation = open_chat(app, overrides, applied, self)
        conversation.tools = tools
        exit_code = run_chat(
            conversation,
            display,
            question,
            typed=" ".join(words),
            offline=self.offline,
            saved=saved if saved and saved.prompt else None,
            files=files,
        )
        if exit_code:
            raise typer.Exit(exit_code)


def read_question(app: App, words: list[str]) -> str | None:
    """The first question, with the text that is piped in behind it; further ones then come from the terminal."""
    from cerebrum_cli.attachments.prompt_sources import compose_prompt, read_piped

    question = only_question(words)
    if question is None or app.streams.piped is None:
        return question
    question = compose_prompt(question, (), read_piped(app.streams.piped))
    app.streams = app.streams.with_terminal_input()
    return question


def is_question(argument: str) -> bool:
    """Whether an argument is a question rather than a model's name."""
    from cerebrum_cli.core.files import as_path, is_file, looks_like_path

    if "://" in argument or (looks_like_path(argument) and is_file(as_path(argument))):
        return False
    return not REFERENCE.fullmatch(argument) or argument.endswith("?")


def open_chat(app: App, overrides: Layer, saved: Layer, options: ChatCommand) -> Chat:
    """Start or continue a session, and start to load its model; `saved` are a saved prompt's settings."""
    from cerebrum_cli.chat.chat import Chat
    from cerebrum_cli.chat.message_tree import MessageTree
    from cerebrum_cli.replies.interface import open_source

    def resolve(layer: Layer) -> ModelSource:
        return chat_source(options.find_source(app, layer, may_pull=False))

    if options.no_markdown:
        overrides = SourcedLayer(overrides, {"markdown": False})
    prompted = SourcedLayer(overrides, saved)
    is_saved = not app.settings(prompted).no_log
    options.require_sessions(is_saved)
    history = app.open_history(is_saved)
    session = None
    if options.session_flag:
        session = history.acquire_named(options.session)
    else:
        history.store.names()  # opens the database, whose errors should precede the first question
    layer: Layer = prompted
    if session:
        if saved:
            overrides = SourcedLayer({"system": session.system_prompt}, overrides)
        overrides = session.add_defaults(overrides, bool(options.endpoint))
        layer = session.add_defaults(prompted, bool(options.endpoint))
    source = chat_source(options.find_source(app, layer))
    conversation = Chat(
        tree=MessageTree(history, session, options.session),
        resolve=resolve,
        overrides=overrides,
        loaded=open_source(source),
        settings=source.settings,
        saved=saved,
    )
    if session and "system" in prompted:
        conversation.set_system_prompt(prompted["system"])
    return conversation


def chat_source(source: ModelSource) -> ModelSource:
    if source.settings.no_log:
        source = replace(source, settings=replace(source.settings, cache_gb=0.0))
    return source.for_chat()
