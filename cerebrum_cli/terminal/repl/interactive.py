"""Run a chat: its questions come from a terminal, or line by line from a pipe."""

from __future__ import annotations

from collections.abc import Iterable

from cerebrum_cli.attachments.prompt_sources import read_piped
from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.core.conversation import Picture
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.terminal.interrupts import Signals, ignore
from cerebrum_cli.terminal.repl.questions import InputSource, PlainPrompt, ScriptInput
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.repl.typed_paths import named_files
from cerebrum_cli.terminal.sinks import ReplyDisplay
from cerebrum_cli.terminal.streams import is_plain_terminal


def run_chat(
    chat: Chat,
    display: ReplyDisplay,
    question: str | None,
    *,
    typed: str = "",
    offline: bool = False,
    saved: SavedPrompt | None = None,
    files: Iterable[tuple[str, str | Picture]] = (),
) -> int:
    """Ask the first `question`, run a chat until the user exits, and close it; return the exit code.

    `typed` is the part of the question that the user typed; only this may name files. `saved` and `files`, with names
    and contents, go before the first question. Raises Interrupted if Ctrl-C ends a script, or another signal the chat.
    """
    with Signals(display.streams) as signals:
        display.signals = signals
        try:
            repl = Repl(chat, display, signals, SLASH_COMMANDS, offline, saved, list(files))
            repl.run(input_source(repl), question, named_files(typed))
        finally:
            with signals.acting(signals.exit_on_second(ignore)):
                display.streams.note(chat.close())
    return repl.exit_code


def input_source(repl: Repl) -> InputSource:
    streams, signals = repl.streams, repl.signals
    if streams.piped is not None:
        with signals.acting(signals.raise_interrupted):
            return ScriptInput(read_piped(streams.piped), streams)
    if is_plain_terminal() or not (streams.in_is_terminal and streams.out_is_terminal):
        return PlainPrompt(streams, repl.display.keyboard, signals)
    from cerebrum_cli.terminal.repl.prompt import InteractivePrompt

    typed = None if repl.chat.settings.no_log else repl.chat.installation.history_path
    return InteractivePrompt(repl, typed)
