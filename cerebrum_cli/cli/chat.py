"""Run an interactive chat: the run of `cerebrum chat`."""

from __future__ import annotations

from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.history import with_session_defaults
from cerebrum_cli.cli.generation import find_source
from cerebrum_cli.cli.models import find_model
from cerebrum_cli.cli.saved_prompts import apply_prompt
from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.inference.loading import CHAT, ReplySource, open_model
from cerebrum_cli.inference.prompt_sources import read_piped
from cerebrum_cli.models.model import as_path, is_file
from cerebrum_cli.models.reference import looks_like_path
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.repl.questions import PlainPrompt, ScriptInput
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.signals import Signals
from cerebrum_cli.terminal.repl.slash_commands import COMMANDS
from cerebrum_cli.terminal.repl.slash_table import PARTS, SETTABLE, SETTABLE_ON_SERVERS, SETTING_VALUES
from cerebrum_cli.terminal.streams import is_plain_terminal

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import ChatOptions
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.terminal.repl.questions import InputSource


def chat(app: App, words: list[str], given: Layer, options: ChatOptions, on_command_line: frozenset[str]) -> int:
    """Chat at a terminal, or answer questions from a pipe, and save the session as it goes; return the exit code.

    `words` are a model, unless `-m` names it, and the first question. Raises UsageError for more.
    """
    if "model" not in on_command_line and words:
        reference, *words = words
        given, on_command_line = {**given, "model": require_model_name(reference)}, on_command_line | {"model"}
    if len(words) > 1:
        raise UsageError("more than one question given", f"quote the first question: {quote(' '.join(words))}")
    if options.continue_ and options.session:
        raise UsageError("-c and --session cannot be used together", "give one of them")
    saved, prompted, options = apply_prompt(app, given, options, on_command_line)
    history = app.open_history(detaches=True)
    try:
        conversation = open_chat(app, history, given, prompted, options)
    except BaseException:
        history.close()  # which frees its session
        raise
    system = prompted.get("system")
    keyboard = Keyboard()
    with Signals(app.streams) as signals:
        try:
            if conversation.session and system is not None:
                conversation.set_system_prompt(system)
            repl = Repl(
                conversation,
                app.streams,
                signals,
                COMMANDS,
                keyboard,
                no_markdown=options.no_markdown,
                quiet=options.quiet,
                prompts=app.config.prompts,
                pending_prompt=saved if saved and saved.prompt else None,
            )
            repl.run(input_lines(app, repl, keyboard, app.settings(given).vi), *words)
            return repl.exit_code
        finally:
            with signals.exiting():
                if (notice := conversation.close()) and not options.quiet:
                    app.streams.notice(notice)


def open_chat(app: App, history: History, given: Layer, prompted: Layer, options: ChatOptions) -> Chat:
    """Start or continue a session, and start to load its model; the settings `prompted` include a saved prompt's."""
    name = options.session
    session = (
        history.acquire_latest() if options.continue_ else history.acquire_named(name) if name is not None else None
    )

    def resolve(layer: Layer) -> ReplySource:
        library, reference = app.library, layer.get("model")
        model = library.resolve_vocabulary(reference) if options.endpoint else library.resolve(reference)
        return chat_source(app, layer, options, model)

    def with_defaults(layer: Layer) -> Layer:
        return with_session_defaults(session, layer, is_remote=bool(options.endpoint))

    overrides = with_defaults(prompted)
    source = chat_source(app, overrides, options, find_model(app, overrides, options))
    conversation = Chat(history, resolve, overrides, open_model(source), source.settings, session, name)
    if options.saved_prompt is not None:
        own_system = {"system": session.system_prompt} if session else {}
        conversation.unprompted = with_defaults({**own_system, **given})
    return conversation


def chat_source(app: App, overrides: Layer, options: ChatOptions, model: Model) -> ReplySource:
    """The source of a chat's replies. Raises UsageError, ConfigError, ModelFileError."""
    source = find_source(app, overrides, options, model=model)
    return replace(source, use=replace(CHAT, template_options=source.use.template_options))


def require_model_name(text: str) -> str:
    """The text, if it can name a model. Raises ModelNotFound for what looks like a question."""
    if " " in text.strip() and not (looks_like_path(text) and is_file(as_path(text))):
        problem = f"unknown model {text!r}"
        raise ModelNotFound(problem, f"to ask this as the first question: cerebrum chat -m MODEL {quote(text)}")
    return text


def input_lines(app: App, repl: Repl, keyboard: Keyboard, vi: bool) -> InputSource:
    """Where the questions come from: a pipe, a plain prompt, or a prompt with history and completion."""
    streams, signals, piped = app.streams, repl.signals, app.streams.piped
    if piped is not None:
        with signals.running_command():
            return ScriptInput(read_piped(piped), streams.answer)
    if is_plain_terminal() or not (streams.in_is_terminal and streams.out_is_terminal):
        return PlainPrompt(streams, keyboard, signals, repl.quiet)
    from cerebrum_cli.terminal.repl.prompt import Candidates, InteractivePrompt, SlashCompleter

    names: Candidates = {
        "model": lambda: [model.reference for model in app.library.models()],
        "session": repl.chat.history.store.names,
        "setting": lambda: SETTABLE_ON_SERVERS if repl.chat.loaded.is_remote else SETTABLE,
        "part": lambda: PARTS,
        "think": lambda: SETTING_VALUES["think"],
        "prompt": lambda: repl.prompts,
    }

    def is_settled() -> bool:
        engine = repl.chat.loaded.engine
        return engine.is_loaded or engine.has_failed

    return InteractivePrompt(
        streams,
        keyboard,
        signals,
        repl.quiet,
        history=app.data_directory / "history",
        toolbar=repl.toolbar,
        is_settled=is_settled,
        completer=SlashCompleter(names, SETTING_VALUES),
        vi=vi,
    )
