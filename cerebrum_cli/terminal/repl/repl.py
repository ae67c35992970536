"""The chat loop: read a question, render the reply or run a slash command, until the user exits."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from cerebrum_cli.attachments.prompt_sources import compose_prompt, pictures_of, read_files
from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.core.conversation import Picture
from cerebrum_cli.core.errors import CerebrumError, FormatError, Interrupted, OutputError, PromptTooLong
from cerebrum_cli.core.events import Events, NoticeEvent
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.text import format_names, strip_controls, truncate
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.terminal.interrupts import Signals
from cerebrum_cli.terminal.repl.questions import InputLine, InputSource, echo, shorten_question
from cerebrum_cli.terminal.repl.reply_notices import FORMAT_HINT, reply_notice, too_long_hint
from cerebrum_cli.terminal.repl.slash_lines import BARE_EXITS, SlashCommand, parse_slash
from cerebrum_cli.terminal.repl.typed_paths import named_files
from cerebrum_cli.terminal.sinks import ReplyDisplay, show_answer
from cerebrum_cli.terminal.streams import Streams

LIST_SESSIONS = "list sessions with /sessions"
SEPARATOR = " | "
BELL, BELL_AFTER_S = "\a", 10.0
MIN_MODEL = 12  # columns of its name in the toolbar


@dataclass(slots=True)
class Repl:
    """A chat at a terminal.

    `commands` are the slash commands. `is_done` ends the loop; `pending_files`, names with
    texts or pictures, go before the next question, which is the input of `pending_prompt`.
    """

    chat: Chat
    display: ReplyDisplay
    signals: Signals
    commands: Sequence[SlashCommand]
    offline: bool  # which web pages cannot be read
    pending_prompt: SavedPrompt | None = None
    pending_files: list[tuple[str, str | Picture]] = field(default_factory=list)
    is_done: bool = False
    exit_code: int = 0  # of a script: that of the last failed question, if no question was answered
    input: InputSource = field(init=False)
    _has_replied: bool = False

    @property
    def streams(self) -> Streams:
        return self.display.streams

    def run(self, source: InputSource, first: str | None = None, paths: Sequence[Path] = ()) -> None:
        """Ask the `first` question, with the files that it names, and run until the user exits.

        Raises Interrupted if Ctrl-C ends a script, or another signal the chat.
        """
        self.input = source
        with self.display.keyboard.without_echo(types_ahead=True) if source.redraws else nullcontext():
            if not self.chat.tree.is_saved:
                self.streams.note(NoticeEvent("this chat is not saved: no_log is on", "/export FILE saves a copy"))
            if self.streams.in_is_terminal and not self.streams.is_quiet:
                with self._reporting_errors():
                    self._print_greeting()
            if first is not None:
                self.show_question(first)
                with self._reporting_errors():
                    self.ask(first, paths)
            while not self.is_done and (line := self._read()) is not None:
                if line.text.strip():
                    with self._reporting_errors():
                        self._run_line(line)

    def _read(self) -> InputLine | None:
        """Read the next question; None after Ctrl-D, or Ctrl-C twice at an empty prompt."""
        for is_last in (False, True):
            try:
                return self.input.read()
            except KeyboardInterrupt:
                if not is_last:
                    self.streams.draw("Press Ctrl-C again or Ctrl-D to exit\n")
            except EOFError:
                return None
            except CerebrumError as error:
                self._show_error(error)
                return InputLine("")
        return None

    def toolbar(self) -> str:
        """As many of its segments as fit in one row."""
        from rich.cells import cell_len

        columns = self.streams.columns
        segments = [strip_controls(segment) for segment in self._segments(columns) if segment]
        while cell_len(SEPARATOR.join(segments)) > columns:
            segments.pop()
        return SEPARATOR.join(segments)

    def _segments(self, columns: int) -> Iterator[str]:
        """Segments of the toolbar, the most important first; the first three fit 80 columns."""
        chat = self.chat
        yield truncate(chat.loaded.model.label, max(MIN_MODEL, columns // 3))
        yield self._context_text()
        if chat.generated and (speed := chat.generated.finish.timings.tokens_per_second):
            yield f"{speed:.0f} t/s"
        pending = [name for name, _ in self.pending_files]
        if self.pending_prompt:
            pending.append(self.pending_prompt.name)
        if pending:
            yield f"with {format_names(pending)}"
        if not chat.tree.is_saved:
            yield "not saved"
        if chat.tree.session:
            yield f"session {chat.tree.session.name}"

    def _context_text(self) -> str:
        engine = self.chat.loaded.engine
        if not engine.is_loaded:
            return "not loaded" if engine.has_failed else "loading"
        usage = self.chat.context_usage
        return context_text(*usage) if usage else ""

    def render(self, events: Events) -> None:
        """Render a reply; Ctrl-C stops it and keeps its text. Raises Interrupted if there is none."""
        reply = Reply(events)
        settings = self.chat.settings
        start = time.monotonic()
        try:
            self.display.show_reply(
                reply.events(),
                self.chat.loaded,
                shows_reasoning=settings.show_thinking,
                markdown=settings.markdown,
            )
        except Interrupted as error:
            if not self._continues_after(error):
                raise
            if not reply.has_text:
                raise Interrupted(signal.SIGINT, "before the reply began; /retry asks again") from error
            if not reply.is_finished:  # it waited for a function
                self.streams.note(NoticeEvent("reply interrupted", "/retry asks again"))
                self._end_turn()
        finally:
            is_whole = reply.is_finished and reply.finish.reason != "cancelled"
            if is_whole or (reply.is_finished and reply.has_text):
                self.display.note_end(reply, reply_notice(reply, self.chat))
                rings = settings.bell and is_whole and self.streams.out_is_terminal
                if rings and time.monotonic() - start > BELL_AFTER_S:
                    self.streams.answer(BELL, is_styled=True)
                self._end_turn()

    def switch_session(self, name: str | None) -> None:
        """Switch to a session, or to a new one; what would go before the next question is dropped."""
        session = self.chat.tree.history.get(name, f"{LIST_SESSIONS}; /model switches the model") if name else None
        self.streams.note(self.chat.switch_session(session))
        self.pending_prompt = None
        self.detach_files()

    def detach_files(self) -> None:
        if self.pending_files:
            self.streams.draw(f"detached {format_names([name for name, _ in self.pending_files])}\n")
        self.pending_files = []

    def _blank_line(self) -> None:
        """Separate what follows, on a terminal only."""
        if self.streams.out_is_terminal:
            self.streams.answer("\n")

    def _end_turn(self) -> None:
        self._has_replied = True
        self.exit_code = 0
        self._blank_line()

    def _print_greeting(self) -> None:
        chat, streams = self.chat, self.streams
        streams.note(f"{model_text(chat.loaded)}; /help lists commands and keys")
        streams.draw("\n")
        messages = chat.tree.messages
        if chat.tree.session is None and chat.tree.name:
            streams.draw(f"New session {chat.tree.name!r}\n\n")
        if chat.tree.session is None or not messages:
            return
        dropped = len(messages) - len(chat.conversation.messages)
        if dropped:
            streams.draw(f"The {dropped} oldest messages no longer fit the context.\n")
        streams.draw(f"Continuing {chat.tree.session.name!r}. Last exchange:\n\n")
        self.show_last_exchange()

    def show_last_exchange(self) -> None:
        shown = self.streams if self.streams.out_is_terminal else self.streams.on_stderr  # it answers no question here
        for stored in self.chat.tree.messages[-2:]:
            if stored.message.role == "user":
                self.show_question(stored.message.content)
            else:
                self._blank_line()
                show_answer(shown, stored.message.content, self.chat.settings.markdown)
        last = self.chat.tree.last_reply
        if last and last.early_end:
            hint = "/continue resumes it" if last.message.tokens else "/retry asks again"
            self.streams.note(NoticeEvent(f"the last reply was cut off ({last.early_end})", hint))
        self._blank_line()

    def show_question(self, question: str) -> None:
        echo(self.streams, shorten_question(question))

    def show_result(self, text: str) -> None:
        for line in text.split("\n"):
            self.streams.draw(f"{self.streams.on_stderr.wrapped(line)}\n")

    def wait_for(self, events: Events) -> None:
        """Consume events, with their progress in a line; Ctrl-C stops the work."""
        self.display.wait(events, self.chat.loaded.model.name, self.chat.cancel)

    def ask(self, text: str, paths: Sequence[Path] = ()) -> None:
        """Ask a question, after any attached files, inside the pending saved prompt. `paths` are files it names."""
        try:
            named = read_files(paths, self.streams.note, self.offline)
            if named:
                self.streams.note(f"attached {format_names([name for name, _ in named])}")
            self._send(text, named)
        except CerebrumError as error:
            if not (self._has_replied or self.streams.in_is_terminal):
                self.exit_code = error.exit_code
            raise

    def _send(self, text: str, named: Sequence[tuple[str, str | Picture]]) -> None:
        """Send a question; what waited for it waits again if the prompt is too long."""
        pending, saved = self.pending_files, self.pending_prompt
        self.pending_files, self.pending_prompt = [], None
        files = [*pending, *named]
        with self.signals.acting(self.signals.postpone):
            try:
                question = compose_prompt(text, files, None, saved)
                self.render(self.chat.send(question, pictures=pictures_of(files)))
            except PromptTooLong as error:
                self.pending_files, self.pending_prompt = pending, saved
                hint = too_long_hint(error, self.chat, files_wait=bool(pending), names_files=bool(named))
                raise PromptTooLong(error.message, hint) from error

    def _run_line(self, line: InputLine) -> None:
        command = None if line.is_literal else parse_slash(line.text, self.commands)
        if command:
            self._run_command(*command)
        elif line.text.strip() in BARE_EXITS and self.input.confirm("Exit the chat?"):
            self.is_done = True
        else:
            self.ask(line.text, named_files(line.typed))

    def _run_command(self, slash: SlashCommand, argument: str) -> None:
        try:
            if result := slash.run(self, argument):
                self.show_result(result)
        except Interrupted as error:
            if error.hint or not self._continues_after(error):
                raise
            raise Interrupted(signal.SIGINT, f"/{slash.name} did not finish") from error

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            with self.signals.acting(self.signals.raise_interrupted):
                yield
        except CerebrumError as error:
            self._show_error(error)

    def _show_error(self, error: CerebrumError) -> None:
        if isinstance(error, FormatError):  # its hint names options
            error.hint = FORMAT_HINT
        if not isinstance(error, (Interrupted, OutputError)):
            self.streams.error(error)
        elif not self._continues_after(error):
            raise error
        else:
            self.streams.draw(f"interrupted: {error.hint or 'nothing was sent'}\n")

    def _continues_after(self, error: CerebrumError) -> bool:
        """Whether it was Ctrl-C at a terminal, after which the chat continues."""
        return (
            error.exit_code == 128 + signal.SIGINT and self.streams.in_is_terminal and self.signals.exit_signal is None
        )


def model_text(loaded: Model) -> str:
    """A model with its size and quantization, as far as its file states them; a server may have another file."""
    model = loaded.model
    if loaded.is_remote:
        return model.label
    name = model.label.removesuffix(f":{model.quantization}")
    return " · ".join(filter(None, (name, model.text_of("general.size_label"), model.quantization)))


def context_text(used: int, size: int) -> str:
    """How full a context is; the markup around a reply that fills it would take more than is there."""
    if used >= size:
        return f"context {size}/{size}, full"
    return f"context {used}/{size} ({used / size:.0%})"
