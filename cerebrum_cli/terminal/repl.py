"""The chat at a prompt: read a question, play the reply, obey a slash command, until somebody leaves."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from cerebrum_cli.application.chat import Chat
from cerebrum_cli.application.question import compose
from cerebrum_cli.application.reply import Reply, ReplyGatherer, shortfall
from cerebrum_cli.ground.errors import CerebrumError, Interrupted, PromptTooLong
from cerebrum_cli.ground.events import Event, NoticeEvent
from cerebrum_cli.terminal.keyboard import unechoed
from cerebrum_cli.terminal.lines import Lines, as_asked, shortened
from cerebrum_cli.terminal.obey import COMMANDS
from cerebrum_cli.terminal.progress import StatusLine
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, ThoughtSink, answer_sink, play, show_answer
from cerebrum_cli.terminal.slash import parse_slash
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import gauge_text

NEARLY_FULL = 0.75


@dataclass(slots=True)
class Repl:
    """A chat, and the terminal it is led in; `left` ends it, `files` stand before the next question."""

    chat: Chat
    streams: Streams
    no_markdown: bool = False
    quiet: bool = False
    last: ReplyGatherer | None = None
    files: list[tuple[str, str]] = field(default_factory=list)
    left: bool = False
    _lines: Lines | None = field(default=None, init=False)

    @property
    def lines(self) -> Lines:
        """Where the questions come from."""
        assert self._lines is not None, "run() comes first"
        return self._lines

    def run(self, lines: Lines) -> None:
        """Go on until somebody leaves. Interrupted where a signal other than Ctrl-C ends it."""
        self._lines = lines
        with unechoed():
            if self.streams.in_is_terminal and not self.quiet:
                self._greet()
            while not self.left and (text := self._read()) is not None:
                if text.strip():
                    self._take(text)

    def _read(self) -> str | None:
        """Return the next question, None where somebody leaves: by Ctrl-D, or by Ctrl-C twice at an empty prompt."""
        try:
            try:
                return self.lines.read()
            except KeyboardInterrupt:
                self.streams.talk("Ctrl-C again leaves, and so does Ctrl-D")
                return self.lines.read()
        except (EOFError, KeyboardInterrupt):
            return None

    def toolbar(self) -> str:
        """Return what stands below the prompt: session, model, format, context used, last speed."""
        chat, said = self.chat, []
        if chat.session:
            said.append(chat.session.name)
        said += [chat.opened.model.reference, chat.opened.format_name]
        if gauge := chat.gauge:
            nearly = " nearly full" if gauge[0] > NEARLY_FULL * gauge[1] else ""
            said.append(gauge_text(*gauge) + nearly)
        elif not chat.opened.engine.is_loaded:
            said.append("loading")
        if self.last and self.last.reply and (speed := self.last.reply.finish.timings.tokens_per_second):
            said.append(f"{speed:.0f} tokens/s")
        if self.files:
            said.append(f"with {', '.join(name for name, _ in self.files)}")
        return " | ".join(said)

    def play(self, events: Generator[Event, None, None]) -> None:
        """Play a reply out; Ctrl-C ends it and keeps what was said."""
        self.last = gatherer = ReplyGatherer()
        try:
            self._follow(events, ThoughtSink(self.streams), gatherer, answer_sink(self.streams, not self.no_markdown))
        finally:
            reply = gatherer.reply
            if reply and not self.quiet and (notice := unfinished(reply, self.streams.in_is_terminal)):
                self.streams.notice(notice)
            if self.streams.out_is_terminal:
                self.streams.answer("\n")

    def wait(self, events: Iterable[Event]) -> None:
        """Wait for a model, and show how far it is."""
        self._follow(event for event in events)

    def _greet(self) -> None:
        """Say who is here, and where the conversation is."""
        chat = self.chat
        opened = chat.opened
        self.streams.talk(f"{opened.model.reference}, format {opened.format_name}; /help shows the commands and keys\n")
        path = chat.path[-2:]
        if chat.session is None or not path:
            return
        self.streams.talk(f"{chat.session.name} goes on; this was said last:\n")
        for stored in path:
            if stored.message.role == "user":
                self.streams.answer(as_asked(shortened(stored.message.content)) + "\n")
            else:
                show_answer(self.streams, stored.message.content, not self.no_markdown)
        self.streams.answer("\n")

    def _follow(self, events: Generator[Event, None, None], *sinks: Sink) -> None:
        quiet: tuple[Sink, ...] = ()
        if not self.quiet:  # first, so that the line is gone before others write
            quiet = StatusLine(self.streams, self.chat.opened.model.name), NoticeSink(self.streams)
        play(events, lambda: self.chat.opened.responder.cancel(), (*quiet, *sinks))

    def _ask(self, text: str) -> None:
        """Ask with the files that wait, which wait on where the question does not fit."""
        files, self.files = self.files, []
        try:
            self.play(self.chat.say(compose(text, files, None)))
        except PromptTooLong as error:
            self.files = files
            raise CerebrumError(error.what, f"{error.do}; /undo takes a turn back, /clear begins anew") from error

    def _take(self, text: str) -> None:
        """Obey a line; what is wrong with it is said, and the chat goes on."""
        try:
            line = parse_slash(text)
            if line:
                COMMANDS[line.name](self, line)
            else:
                self._ask(text)
        except Interrupted as error:
            if error.exit_code != 128 + signal.SIGINT:
                raise
            if self.last and not self.last.reply:
                self.streams.talk("interrupted before anything was said; /retry asks again")
        except CerebrumError as error:
            self.streams.error(error)


def unfinished(reply: Reply, somebody_is_there: bool) -> NoticeEvent | None:
    """Return what is to be known of a reply that did not end by itself; a script knows its own --max-tokens."""
    reason = reply.finish.reason
    if reason == "cancelled":
        return NoticeEvent("the reply was interrupted", "/continue goes on with it")
    if reason == "length" and reply.text and somebody_is_there:
        return NoticeEvent(f"the reply was cut at {reply.finish.completion_tokens} tokens", "/continue goes on with it")
    return shortfall(reply)
