"""Run a chat: its questions come from a terminal, or line by line from a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cerebrum_cli.attachments.prompt_sources import AttachmentReader, read_piped
from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.core.saved_prompts import PromptDirectory, SavedPrompt
from cerebrum_cli.terminal.interrupts import Signals, ignore
from cerebrum_cli.terminal.repl.questions import InputSource, PlainPrompt, ScriptInput
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.sinks import ReplyDisplay
from cerebrum_cli.terminal.streams import is_plain_terminal


def run_chat(
    chat: Chat,
    display: ReplyDisplay,
    question: str | None,
    *,
    prompts: PromptDirectory,
    reader: AttachmentReader,
    history: Path,
    models: Callable[[], Iterable[str]],
    min_votes: int | None = None,
    saved: SavedPrompt | None = None,
    files: Iterable[tuple[str, str]] = (),
) -> int:
    """Ask the first `question`, run a chat until the user exits, and close it; return the exit code.

    `saved` and `files`, their names and texts, go before the first question. `history` is the file of typed questions;
    `models` are completed. Raises Interrupted if Ctrl-C ends a script, or another signal the chat.
    """
    with Signals(display.streams) as signals:
        display.signals = signals
        try:
            repl = Repl(chat, display, signals, SLASH_COMMANDS, prompts, reader, min_votes, saved, list(files))
            repl.run(input_source(repl, history, models), question)
        finally:
            with signals.acting(signals.exit_on_second(ignore)):
                display.streams.report(chat.close())
    return repl.exit_code


def input_source(repl: Repl, history: Path, models: Callable[[], Iterable[str]]) -> InputSource:
    streams, signals = repl.streams, repl.signals
    if streams.piped is not None:
        with signals.acting(signals.raise_interrupted):
            return ScriptInput(read_piped(streams.piped), streams)
    if is_plain_terminal() or not (streams.in_is_terminal and streams.out_is_terminal):
        return PlainPrompt(streams, repl.display.calls.keyboard, signals)
    from cerebrum_cli.terminal.repl.prompt import InteractivePrompt, SlashCompleter, candidates_of

    saves = not repl.chat.settings.no_log
    return InteractivePrompt(repl, history if saves else None, SlashCompleter(candidates_of(repl, models)))
