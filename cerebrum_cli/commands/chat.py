"""`cerebrum chat`: talk with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option
from cerebrum_cli.ground.errors import UsageError


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
) -> None:
    """Talk with a model; /help shows the commands and the keys.

    Everything is kept as it is said: -c goes on where the last chat ended, however it did.
    """
    given = options.given(locals())
    from cerebrum_cli.application.chat import Chat
    from cerebrum_cli.application.history import led
    from cerebrum_cli.application.opening import open_model
    from cerebrum_cli.application.question import decoded, template_options
    from cerebrum_cli.terminal.lines import Lines, PipedLines, Prompt
    from cerebrum_cli.terminal.repl import Repl

    runtime = options.runtime_of(context, verbose)
    if continue_ and session:
        raise UsageError("-c and --session are both given", "give one of them")
    history = runtime.history
    kept = history.latest() if continue_ else history.store.find(session) if session else None
    kept = history.answered(kept) if kept else None
    given = led(kept, given)
    found = options.find_model(runtime, given, yes, quiet, offline)
    settings = runtime.settings(given, found)
    opened = open_model(runtime.open_backend, found, settings, template_options=template_options(template_arg or ()))
    try:
        talk = Chat(history, opened, settings, kept, session)
        if kept and system is not None:
            talk.lead(system)
        piped = runtime.streams.piped
        lines: Lines
        if piped is None:
            lines = Prompt(runtime.data_directory / "history", lambda: repl.toolbar(), vi)
        else:
            lines = PipedLines(decoded(piped.read(), "standard input"), runtime.streams.answer)
        repl = Repl(talk, runtime.streams, lines, not no_markdown)
        repl.run()
    finally:
        opened.engine.close()
        history.store.close()
