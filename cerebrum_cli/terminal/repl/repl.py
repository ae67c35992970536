"""The chat at a prompt: read a question, play the reply, obey a slash command, until somebody leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial

from cerebrum_cli.application.chat.chat import Chat
from cerebrum_cli.application.inference.question import compose_prompt
from cerebrum_cli.application.inference.reply import Reply, ReplyCollector, truncation_notice
from cerebrum_cli.application.inference.voting import MajorityVote
from cerebrum_cli.core.errors import CerebrumError, Interrupted, PromptTooLong
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.terminal.progress import StatusLine, VoteLine
from cerebrum_cli.terminal.repl.signals import Signals
from cerebrum_cli.terminal.repl.slash_commands import COMMANDS
from cerebrum_cli.terminal.repl.slash_table import parse_slash
from cerebrum_cli.terminal.repl.terminal_io import Lines, as_asked, shortened
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, ThoughtSink, answer_sink, render, show_answer
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import gauge_text, tally_text

NEARLY_FULL = 0.75
BETWEEN = " | "
LIGHTEST = ("speed", "format", "session", "model", "files")  # of the toolbar, in the order they are left out


@dataclass(slots=True)
class Repl:
    """A chat, and the terminal it is led in; `left` ends it, `files` stand before the next question."""

    chat: Chat
    streams: Streams
    signals: Signals
    no_markdown: bool = False
    quiet: bool = False
    last: ReplyCollector | None = None
    files: list[tuple[str, str]] = field(default_factory=list)
    left: bool = False
    _lines: Lines | None = field(default=None, init=False)

    @property
    def lines(self) -> Lines:
        """Where the questions come from."""
        assert self._lines is not None, "run() comes first"
        return self._lines

    def run(self, lines: Lines) -> None:
        """Go on until somebody leaves, or a signal asks to. Interrupted where Ctrl-C ends a script, or a signal it."""
        self._lines = lines
        with lines.between():
            if self.streams.in_is_terminal and not self.quiet:
                self._guarded(self._greet)
            while not self.left and (text := self._read()) is not None:
                if text.strip():
                    self._guarded(partial(self._take, text))

    def _read(self) -> str | None:
        """Return the next question, None where somebody leaves: by Ctrl-D, or by Ctrl-C twice at an empty prompt."""
        for is_last in (False, True):
            try:
                return self.lines.read()
            except KeyboardInterrupt:
                if not is_last:
                    self.streams.info("Ctrl-C again leaves, and so does Ctrl-D")
            except EOFError:
                return None
            except CerebrumError as error:
                self._tell(error)
                return ""
        return None

    def toolbar(self, width: int) -> str:
        """Return what stands below the prompt, as far as so many columns hold it.

        That is session, model, format, context used, last speed and the files that wait.
        """
        chat, context = self.chat, ""
        if gauge := chat.context_usage:
            nearly = " nearly full" if gauge[0] > NEARLY_FULL * gauge[1] else ""
            context = gauge_text(*gauge) + nearly
        elif not chat.loaded.engine.is_loaded:
            context = "not loaded" if chat.loaded.engine.has_failed else "loading"
        speed = self.last.reply.finish.timings.tokens_per_second if self.last and self.last.reply else None
        said = {
            "session": chat.session.name if chat.session else "",
            "model": chat.loaded.model.reference,
            "format": chat.loaded.format_name,
            "context": context,
            "speed": f"{speed:.0f} tokens/s" if speed else "",
            "files": f"with {', '.join(name for name, _ in self.files)}" if self.files else "",
        }
        return fitting({name: text for name, text in said.items() if text}, width)

    def play(self, events: Generator[Event, None, None]) -> None:
        """Play a reply out; Ctrl-C ends it and keeps what was said. Interrupted where that is nothing."""
        self.last = gatherer = ReplyCollector()
        try:
            self._follow(events, ThoughtSink(self.streams), gatherer, answer_sink(self.streams, not self.no_markdown))
        except Interrupted as error:
            if not self._goes_on_after(error):
                raise
            if not gatherer.reply:
                raise Interrupted(signal.SIGINT, "before anything was said; /retry asks again") from error
        finally:
            reply = gatherer.reply
            if reply and not self.quiet and (notice := unfinished(reply, self.streams.in_is_terminal)):
                self.streams.notice(notice)
            if self.streams.out_is_terminal:
                self.streams.answer("\n")

    def decide(self, question: str, settings: Settings, poll: MajorityVote) -> None:
        """Ask a question, or with none the last one again, and have a vote taken over the answers."""
        if not question:
            self._vote(self.chat.retry(settings, poll), poll)
            return
        self._with_files(question, lambda text: self._vote(self.chat.send(text, settings, poll), poll))

    def _vote(self, events: Generator[Event, None, None], poll: MajorityVote) -> None:
        """Play a vote out, and show the chain that won; Ctrl-C shows what leads. Interrupted where that is nothing."""
        self.last = None
        try:
            self._follow(events, line=VoteLine(self.streams, self.chat.loaded.model.name))
        except Interrupted as error:
            if not self._goes_on_after(error) or poll.reply is None:
                raise
        finally:
            self.last = poll.best_sample
            if poll.reply:
                show_answer(self.streams, poll.reply.text, not self.no_markdown)
                if not self.quiet:
                    self.streams.info(tally_text(poll.tally_event))
            if self.streams.out_is_terminal:
                self.streams.answer("\n")

    def wait(self, events: Iterable[Event]) -> None:
        """Wait for a model, and show how far it is."""
        self._follow(event for event in events)

    def _greet(self) -> None:
        """Say who is here, and where the conversation is."""
        chat = self.chat
        opened = chat.loaded
        self.streams.info(f"{opened.model.reference}, format {opened.format_name}; /help shows the commands and keys\n")
        path = chat.messages[-2:]
        if chat.session is None or not path:
            return
        unread = (
            f", of which the model no longer reads the {chat.dropped_count} oldest messages"
            if chat.dropped_count
            else ""
        )
        self.streams.info(f"{chat.session.name} goes on{unread}; this was said last:\n")
        for stored in path:
            if stored.message.role == "user":
                self.streams.answer(as_asked(shortened(stored.message.content)) + "\n")
            else:
                show_answer(self.streams, stored.message.content, not self.no_markdown)
        self.streams.answer("\n")

    def _follow(self, events: Generator[Event, None, None], *sinks: Sink, line: StatusLine | None = None) -> None:
        quiet: tuple[Sink, ...] = ()
        if not self.quiet:  # first, so that the line is gone before others write
            quiet = line or StatusLine(self.streams, self.chat.loaded.model.name), NoticeSink(self.streams)
        render(events, lambda: self.chat.loaded.responder.cancel(), (*quiet, *sinks), self.signals.playing)

    def _with_files(self, text: str, ask: Callable[[str], None]) -> None:
        """Ask with the files that wait, which wait on where the question does not fit."""
        files, self.files = self.files, []
        try:
            ask(compose_prompt(text, files, None))
        except PromptTooLong as error:
            self.files = files
            raise CerebrumError(error.message, f"{error.hint}; /undo takes a turn back, /clear begins anew") from error

    def _take(self, text: str) -> None:
        """Obey a line."""
        line = parse_slash(text)
        if line is None:
            self._with_files(text, lambda question: self.play(self.chat.send(question)))
            return
        try:
            COMMANDS[line.name](self, line)
        except Interrupted as error:
            if error.hint or not self._goes_on_after(error):
                raise
            raise Interrupted(signal.SIGINT, f"/{line.name} came to no end") from error

    def _guarded(self, do: Callable[[], None]) -> None:
        """Do something; what is wrong with it is said, and the chat goes on."""
        try:
            with self.signals.at_work():
                do()
        except CerebrumError as error:
            self._tell(error)

    def _tell(self, error: CerebrumError) -> None:
        """Say what is wrong; Interrupted where it is one that the chat does not go on after."""
        if not isinstance(error, Interrupted):
            self.streams.error(error)
        elif not self._goes_on_after(error):
            raise error
        elif error.hint:
            self.streams.info(f"interrupted: {error.hint}")

    def _goes_on_after(self, error: Interrupted) -> bool:
        """Return whether it was Ctrl-C, by somebody who can go on."""
        return error.exit_code == 128 + signal.SIGINT and self.streams.in_is_terminal and self.signals.asked is None


def fitting(said: dict[str, str], width: int) -> str:
    """Return the texts in one line; what weighs least is left out until so many columns hold it."""
    for name in LIGHTEST:
        if sum(map(len, said.values())) + len(BETWEEN) * (len(said) - 1) <= width:
            break
        if len(said) > 1:
            said.pop(name, None)
    return BETWEEN.join(said.values())


def unfinished(reply: Reply, somebody_is_there: bool) -> NoticeEvent | None:
    """Return what is to be known of a reply that did not end by itself; a script knows its own --max-tokens."""
    reason = reply.finish.reason
    if reason == "cancelled":
        return NoticeEvent("the reply was interrupted", "/continue goes on with it")
    if reason == "length" and reply.text and somebody_is_there:
        return NoticeEvent(f"the reply was cut at {reply.finish.completion_tokens} tokens", "/continue goes on with it")
    return truncation_notice(reply)
