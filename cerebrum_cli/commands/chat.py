"""`cerebrum chat`: talk with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.core.errors import UsageError

if TYPE_CHECKING:
    from cerebrum_cli.runtime import Runtime
    from cerebrum_cli.terminal.repl.completion import Names
    from cerebrum_cli.terminal.repl.keyboard import Keyboard
    from cerebrum_cli.terminal.repl.repl import Repl
    from cerebrum_cli.terminal.repl.terminal_io import Lines


def chat(
    context: typer.Context,
    model: options.Model = None,
    system: options.System = None,
    continue_: options.Continue = False,
    session: Annotated[
        str | None, option("--session", help="Go on with this session, or begin it.", metavar="NAME")
    ] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    format: options.Format = None,
    template_arg: options.TemplateArg = None,
    no_markdown: options.NoMarkdown = False,
    vi: Annotated[bool, option("--vi", help="Edit as in vi.")] = False,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    yes: options.Yes = False,
    overflow: Annotated[
        str | None,
        option(
            "--overflow",
            help="What becomes of a chat that outgrows the context [default: drop-oldest].",
            metavar="drop-oldest|stop",
        ),
    ] = None,
    no_cache: options.NoCache = False,
    no_profile: options.NoProfile = False,
) -> None:
    """Talk with a model; /help shows the commands and the keys.

    Everything is kept as it is said: -c goes on where the last chat ended, however it did.
    """
    given = options.given(locals(), no_cache)
    from cerebrum_cli.application.chat.chat import Chat
    from cerebrum_cli.application.chat.history import with_session_defaults
    from cerebrum_cli.application.inference.loading import ModelLoader
    from cerebrum_cli.application.inference.question import template_options
    from cerebrum_cli.terminal.repl.keyboard import Keyboard
    from cerebrum_cli.terminal.repl.repl import Repl
    from cerebrum_cli.terminal.repl.signals import Signals

    runtime = options.runtime_of(context, verbose)
    if continue_ and session:
        raise UsageError("-c and --session are both given", "give one of them")
    history = runtime.history
    kept = history.acquire_latest() if continue_ else history.acquire_named(session) if session is not None else None
    given = with_session_defaults(kept, given)
    model_found = options.find_model(runtime, given, yes, quiet, offline)
    arguments = template_options(template_arg or ())
    opener = ModelLoader(
        runtime.library.resolve,
        runtime.settings,
        runtime.open_backend,
        runtime.prompt_cache,
        arguments,
        lambda model, settings: options.answering(runtime, model, settings, no_profile),
    )
    settings = runtime.settings(given, model_found)
    talk = Chat(history, opener, given, opener.open(model_found, settings), settings, kept, session)
    keyboard = Keyboard()
    with Signals(runtime.streams, keyboard) as signals:
        try:
            if kept and system is not None:
                talk.set_system_prompt(system)
            repl = Repl(talk, runtime.streams, signals, no_markdown=no_markdown, quiet=quiet)
            repl.run(lines_of(runtime, repl, keyboard, vi))
        finally:
            with signals.leaving():
                if (notice := talk.close()) and not quiet:
                    runtime.streams.notice(notice)


def lines_of(runtime: Runtime, repl: Repl, keyboard: Keyboard, vi: bool) -> Lines:
    """Return where the questions come from: a prompt, or what is piped in."""
    from cerebrum_cli.application.inference.question import decode_text
    from cerebrum_cli.terminal.repl.terminal_io import PipedLines, PlainPrompt, Prompt, TerminalIO
    from cerebrum_cli.terminal.streams import plain_terminal

    streams, signals, piped = runtime.streams, repl.signals, runtime.streams.piped
    if piped is not None:
        with signals.at_work():
            return PipedLines(decode_text(piped.read(), "standard input"), streams.answer)
    seat = TerminalIO(streams, keyboard, signals, repl.quiet)
    if plain_terminal() or not (streams.in_is_terminal and streams.out_is_terminal):
        return PlainPrompt(seat)
    from cerebrum_cli.terminal.repl.completion import SlashCompleter
    from cerebrum_cli.terminal.repl.slash_table import PARTS, SETTABLE, VALUES

    store = repl.chat.history.store
    names: Names = {
        "model": lambda: [model.reference for model in runtime.library.models()],
        "session": store.names,
        "setting": lambda: SETTABLE,
        "part": lambda: PARTS,
    }
    history, completer = runtime.data_directory / "history", SlashCompleter(names, VALUES)

    def is_ready() -> bool:
        return repl.chat.loaded.engine.is_loaded

    return Prompt(seat, history, repl.toolbar, is_ready, completer, vi)
