"""The chat at a prompt: read a question, play the reply, obey a slash command, until somebody leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cerebrum_cli.answers.extract import final_answer
from cerebrum_cli.application.archive import summaries
from cerebrum_cli.application.chat import Chat
from cerebrum_cli.application.question import compose, read_text
from cerebrum_cli.application.reply import ReplyGatherer, shortfall
from cerebrum_cli.ground.errors import CerebrumError, Interrupted, UsageError
from cerebrum_cli.ground.events import Event, NoticeEvent
from cerebrum_cli.ground.settings import checked
from cerebrum_cli.terminal.lines import Lines
from cerebrum_cli.terminal.progress import StatusLine
from cerebrum_cli.terminal.sinks import NoticeSink, answer_sink, play
from cerebrum_cli.terminal.slash import Line, help_text, parse_slash
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_sessions, stats_line


@dataclass(slots=True)
class Repl:
    """A chat, and the terminal it is led in."""

    chat: Chat
    streams: Streams
    lines: Lines
    markdown: bool
    last: ReplyGatherer | None = None
    files: list[tuple[str, str]] = field(default_factory=list)
    _left: bool = field(default=False, init=False)

    def run(self) -> None:
        """Go on until somebody leaves. Interrupted where a signal other than Ctrl-C ends it."""
        tired = False  # whether Ctrl-C was pressed at an empty prompt just before
        while not self._left:
            try:
                text = self.lines.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if tired:
                    return
                tired = True
                self.streams.talk("Ctrl-C again leaves, and so does Ctrl-D")
                continue
            tired = False
            if text.strip():
                self._take(text)

    def toolbar(self) -> str:
        """Return what stands below the prompt: model, format, context used, last speed."""
        opened = self.chat.opened
        said = [opened.model.reference, opened.format_name]
        if self.last and self.last.reply:
            finish = self.last.reply.finish
            used = finish.prompt_tokens + finish.completion_tokens
            said.append(f"context {used}/{finish.context_size} ({used / finish.context_size:.0%})")
            said.append(f"{finish.timings.tokens_per_second:.0f} tokens/s")
        return " | ".join(said)

    def _take(self, text: str) -> None:
        """Obey a line; what is wrong with it is said, and the chat goes on."""
        try:
            line = parse_slash(text)
            if line:
                COMMANDS[line.name](self, line)
            else:
                files, self.files = self.files, []
                self._play(self.chat.say(compose(text, files, None)))
        except Interrupted as error:
            if error.exit_code != 128 + signal.SIGINT:
                raise
        except CerebrumError as error:
            self.streams.error(error)

    def _play(self, events: Generator[Event, None, None]) -> None:
        """Play a reply out; Ctrl-C ends it and keeps what was said."""
        self.last = gatherer = ReplyGatherer()
        sinks = (
            StatusLine(self.streams, self.chat.opened.model.name),
            gatherer,
            NoticeSink(self.streams),
            answer_sink(self.streams, self.markdown),
        )
        try:
            play(events, self.chat.opened.responder.cancel, sinks)
        finally:
            reply = gatherer.reply
            if reply and reply.finish.reason == "cancelled":
                self.streams.notice(NoticeEvent("the reply was interrupted", "/continue goes on with it"))
            elif reply and (notice := shortfall(reply)):
                self.streams.notice(notice)
            if gatherer.reasoning:
                self.streams.talk("(there was a thought before this: /think shows it)")

    def _help(self, _: Line) -> None:
        self.streams.answer(help_text())

    def _exit(self, _: Line) -> None:
        self._left = True

    def _clear(self, _: Line) -> None:
        self.chat.session, self.chat.name, self.last = None, None, None
        self.streams.talk("a new conversation begins")

    def _system(self, line: Line) -> None:
        if line.argument:
            self.chat.lead(line.argument)
        shown = self.chat.conversation.system_prompt
        self.streams.talk(f"system prompt: {shown}" if shown else "the format's own system prompt")

    def _undo(self, _: Line) -> None:
        question = self.chat.undo()
        if question is None:
            raise UsageError("there is nothing to take back", "ask something first")
        self.streams.talk(f"taken back: {question}")

    def _retry(self, line: Line) -> None:
        settings = self.chat.settings
        if line.argument:
            try:
                temperature = checked("temperature", float(line.argument))
            except ValueError as error:
                raise UsageError(f"/retry {line.argument!r}", "give a temperature, as in /retry 0.7") from error
            settings = replace(settings, temperature=temperature)
        self._play(self.chat.retry(settings))

    def _continue(self, _: Line) -> None:
        self._play(self.chat.go_on())

    def _fork(self, line: Line) -> None:
        session = self.chat.fork(line.argument or None)
        self.streams.talk(f"this is {session.name} now")

    def _sessions(self, _: Line) -> None:
        print_sessions(self.streams, summaries(self.chat.history.store))

    def _load(self, line: Line) -> None:
        session = self.chat.history.answered(self.chat.history.named(line.argument))
        self.chat.session = session
        self.streams.talk(f"this is {session.name} now")

    def _file(self, line: Line) -> None:
        path = Path(line.argument).expanduser()
        self.files.append((str(path), read_text(path)))
        self.streams.talk(f"{path} stands before the next question")

    def _prompt(self, _: Line) -> None:
        preview = self.chat.opened.responder.preview(self.chat.conversation)
        self.streams.answer(preview.prompt + "\n")

    def _final(self, _: Line) -> None:
        reply = self.chat.last_reply
        answer = final_answer(reply.message.content) if reply else None
        if answer is None:
            raise UsageError("the last reply states no final answer", "ask for one")
        self.streams.answer(answer + "\n")

    def _think(self, _: Line) -> None:
        reply = self.chat.last_reply
        if reply is None or not reply.said.reasoning:
            raise UsageError("there was no thought before the last reply", "some models mark none")
        self.streams.answer(reply.said.reasoning + "\n")

    def _tokens(self, _: Line) -> None:
        preview = self.chat.opened.responder.preview(self.chat.conversation)
        self.streams.talk(f"{len(preview.token_ids)} tokens")

    def _stats(self, _: Line) -> None:
        if self.last is None or self.last.reply is None:
            raise UsageError("nothing has been said yet", "ask something first")
        opened = self.chat.opened
        self.streams.talk(stats_line(self.last.reply.finish, opened.model.name, opened.format_name))


COMMANDS: dict[str, Callable[[Repl, Line], None]] = {
    "help": Repl._help,
    "exit": Repl._exit,
    "clear": Repl._clear,
    "system": Repl._system,
    "undo": Repl._undo,
    "retry": Repl._retry,
    "continue": Repl._continue,
    "fork": Repl._fork,
    "sessions": Repl._sessions,
    "load": Repl._load,
    "file": Repl._file,
    "prompt": Repl._prompt,
    "final": Repl._final,
    "think": Repl._think,
    "tokens": Repl._tokens,
    "stats": Repl._stats,
}
