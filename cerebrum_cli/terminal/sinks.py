"""Send the events of a reply to sinks: its text, its reasoning, and the functions that it calls."""

from __future__ import annotations

import sys
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import (
    CallEvent,
    ContinueEvent,
    Event,
    Events,
    FinishEvent,
    NoticeEvent,
    PromptEvent,
    SequenceId,
    TokenEvent,
    answer_text,
)
from cerebrum_cli.core.text import one_line, strip_complete, strip_controls, truncate
from cerebrum_cli.core.tools import Tool, ToolCall, ToolFinder, Tools
from cerebrum_cli.terminal.interrupts import EndReasoning, Signals, nothing_to_end
from cerebrum_cli.terminal.status_line import StatusLine
from cerebrum_cli.terminal.streams import PIPE_WIDTH, Streams
from cerebrum_cli.terminal.styles import styled_console

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.replies.reply import Reply
    from cerebrum_cli.terminal.keyboard import Keyboard
    from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

MISREAD = NoticeEvent("all text above is the model's reasoning, whose beginning it did not mark")
MAX_SHOWN = 78  # characters of a call, and of its result
WEIGHTS = {True: "weights repacked where possible", False: "weights as in the file (not repacked)"}


class Sink(Protocol):
    def emit(self, event: Event) -> None:
        """Consume one event."""

    def close(self) -> None:
        """Finish after the last event, or after an error."""


class AnswerSink:
    """The text of an answer; on a terminal without its control sequences, and rendered if it is to be `markdown`."""

    def __init__(self, streams: Streams, markdown: bool) -> None:
        self._streams = streams
        self._renders = markdown and streams.can_style
        self._held = ""  # a control sequence that is not complete
        self._stream: MarkdownStream | None = None
        self._shown = ""  # answer that the reply continues
        self._last = ""  # last text written

    def emit(self, event: Event) -> None:
        if isinstance(event, (CallEvent, NoticeEvent)):
            self._pause()
        if isinstance(event, ContinueEvent):
            self._shown = strip_controls(event.text)
        if isinstance(event, TokenEvent) and event.is_correction and event.channel == "thinking":
            self.close()
            self._stream, self._shown, self._last = None, "", ""
            self._streams.note(MISREAD)
        text = answer_text(event)
        if self._streams.out_is_terminal:
            text, self._held = strip_complete(self._held + text)
        if not text:
            return
        self._last = text
        if self._renders:
            self._render(text)
        else:
            self._streams.answer(text)

    @property
    def is_in_line(self) -> bool:
        """Whether the cursor is behind text, where nothing else may be drawn."""
        is_plain = self._streams.out_is_terminal and not self._renders
        return is_plain and bool(self._last) and not self._last.endswith("\n")

    def close(self) -> None:
        if self._held:
            text = strip_controls(self._held)
            self._held = ""
            self.emit(TokenEvent(SequenceId(0), text))
        if self._stream:
            with self._streams.writing_answer():
                self._stream.close()
        elif self._last and not self._last.endswith("\n"):
            self._streams.answer("\n")

    def _pause(self) -> None:
        """Leave the cursor at the start of a line: another text follows, on the same terminal."""
        if self._stream:
            with self._streams.writing_answer():
                self._stream.pause()
        elif self._streams.out_is_terminal and self._last and not self._last.endswith("\n"):
            self.emit(TokenEvent(SequenceId(0), "\n"))

    def _render(self, text: str) -> None:
        if self._stream is None:
            from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

            is_terminal = self._streams.out_is_terminal
            width = None if is_terminal else PIPE_WIDTH
            console = styled_console(self._streams.out, width=width, force_terminal=is_terminal)
            self._stream = MarkdownStream(console)
            self._stream.skip(self._shown)
        with self._streams.writing_answer():
            self._stream.feed(text)


@dataclass(slots=True)
class ReasoningSink:
    """The reasoning of a reply, which Ctrl-C can end if it `can_end`.

    Afterwards a line sums it up, if it `summarizes`. `shows` prints the reasoning as it comes, in gray.
    """

    model: Model
    streams: Streams
    can_end: bool
    shows: bool
    summarizes: bool
    _started: float | None = None
    _tokens: int = 0
    _is_ended: bool = False  # by Ctrl-C

    @property
    def hint(self) -> str:
        return "Ctrl-C: answer now" if self._lets_end else ""

    def end_reasoning(self) -> bool:
        """Ask the model to answer now. Returns whether it reasons, and has not been asked before."""
        if self._started is None or not self._lets_end:
            return False
        self._is_ended = True
        self.model.answer_now.request()
        return True

    @property
    def is_in_line(self) -> bool:
        """Whether the cursor is behind text, where nothing else may be drawn."""
        return self.shows and self._started is not None

    @property
    def _lets_end(self) -> bool:
        return self.can_end and not self._is_ended and self.model.answer_now.is_watched

    def emit(self, event: Event) -> None:
        if isinstance(event, CallEvent):
            self.close()
        if not isinstance(event, TokenEvent):
            return
        if event.is_correction and event.channel == "answer":
            self.summarizes = False  # it follows as the answer
        if event.channel == "thinking":
            self._tokens += len(event.tokens) or 1  # some servers send only text
        if not event.text:
            return
        if event.channel == "thinking":
            self._add(event.text)
        elif self._started is not None:
            self.close()
            if self._is_ended:
                self.streams.note(NoticeEvent("reasoning ended; Ctrl-C again stops the answer"))

    def _add(self, text: str) -> None:
        if self._started is None:
            self._started = time.monotonic()
        if self.shows:
            self.streams.draw(self.streams.on_stderr.styled(strip_controls(text), "gray"), is_styled=True)

    def close(self) -> None:
        if self._started is None:
            return
        seconds, tokens = time.monotonic() - self._started, self._tokens
        self._started, self._tokens = None, 0
        if self.shows:
            self.streams.draw("\n")
        if self.summarizes:
            summary = f"reasoned for {seconds:.1f} s, {tokens} tokens"
            self.streams.note(summary if self.shows else f"{summary}; /think shows it")


@dataclass
class ReplyDisplay:
    """Shows what a model does: its stages in a line, its reasoning, its answer, and the functions that it calls.

    Functions of a file run without a question if the user `agrees`; `find` knows those that are neither `python` nor in
    a file. A line that `is_hidden` shows only notices. `signals` are those of a chat, where a blank line separates a
    reply, and a line sums up its reasoning.
    """

    streams: Streams
    agrees: bool = False
    is_hidden: bool = False
    signals: Signals | None = None
    find: ToolFinder | None = None
    _asking: set[str] = field(default_factory=set)  # names of functions

    @cached_property
    def keyboard(self) -> Keyboard:
        from cerebrum_cli.terminal.keyboard import Keyboard

        return Keyboard()

    def tools_of(self, sources: Iterable[Tool | str]) -> Tools:
        """Tools that ask the user, if they must, before they run. Raises UsageError, also without a terminal."""
        if not sources:
            return ()
        from cerebrum_cli.programs.functions import tools_of

        if self.agrees:
            return tools_of(sources, self.streams.note, find=self.find)
        tools = tools_of(sources, self.streams.note, self._confirm, self.find)
        asking = [tool.spec.name for tool in tools if tool.asks]
        for name in asking:
            if not self.streams.can_ask:
                problem = f"no terminal to confirm calls of {name}"
                raise UsageError(problem, "add -y to run functions without asking")
        self._asking.update(asking)
        return tools

    def _confirm(self, call: ToolCall) -> bool:
        with self.keyboard.released():
            termios.tcflush(sys.stdin, termios.TCIFLUSH)  # drop what was typed before the question
            return self.streams.confirm(f"Run {call}?", default=False)

    def show_reply(
        self,
        events: Events,
        model: Model,
        *,
        shows_reasoning: bool,
        markdown: bool,
        prints_answer: bool = True,
    ) -> None:
        """Show a reply of a model. Ctrl-C ends the reasoning first.

        Without `prints_answer`, its tokens are counted.
        """
        is_chat = self.signals is not None
        can_end = self.streams.in_is_terminal if is_chat else self.streams.out_is_terminal
        reasoning = ReasoningSink(model, self.streams, can_end, shows_reasoning, is_chat or shows_reasoning)
        answer = AnswerSink(self.streams, markdown)
        line = self._line(
            model.model.name,
            hint=lambda: reasoning.hint,
            counts_answer=not prints_answer,
            hides_reasoning=shows_reasoning,
            separates=is_chat,
            is_blocked=lambda: answer.is_in_line or reasoning.is_in_line,
        )
        sinks: list[Sink] = [line, reasoning]
        if prints_answer:
            sinks.append(answer)
        sinks.append(self)
        render(events, model.cancel, sinks, self.signals, reasoning.end_reasoning)

    def show_vote(self, events: Events, model: Model, bounds: tuple[int, int]) -> None:
        """Show the tally of a vote with these numbers of samples at least and at most."""
        render(events, model.cancel, (self._line(model.model.name, vote=bounds),), self.signals)

    def wait(self, events: Events, model_name: str, cancel: Callable[[], None]) -> None:
        """Consume events, with their progress in a line; Ctrl-C stops the work by `cancel`."""
        render(events, cancel, (self._line(model_name),), self.signals)

    def note_end(self, reply: Reply, notice: NoticeEvent | None) -> None:
        """Print a notice of how a reply ended; with --quiet only if the reply is blank."""
        streams = replace(self.streams, is_quiet=False) if reply.is_blank else self.streams
        streams.note(notice)

    def emit(self, event: Event) -> None:
        """Print a call while a reply runs it, unless a question has shown it."""
        if not isinstance(event, CallEvent) or self.streams.is_quiet:
            return
        if event.is_done:
            self._print(f"-> {event.call.result}")
        elif event.call.name not in self._asking:  # the question shows the whole call
            self._print(str(event.call))

    def close(self) -> None:
        """Do nothing: each line of a call is complete."""

    def _print(self, text: str) -> None:
        err = self.streams.on_stderr
        line = strip_controls(truncate(one_line(text), MAX_SHOWN))
        self.streams.draw(f"{err.styled(err.wrapped(line), 'gray')}\n", is_styled=True)

    def _line(self, model_name: str, **shown: Any) -> StatusLine:
        """The first of the sinks: it erases itself before others write."""
        return StatusLine(self.streams, model_name, is_hidden=self.is_hidden, **shown)


def show_answer(streams: Streams, text: str, markdown: bool) -> None:
    sink = AnswerSink(streams, markdown)
    sink.emit(TokenEvent(SequenceId(0), text))
    sink.close()


def stats_line(finish: FinishEvent, model: str, format_name: str, repacks: bool | None, sampling: str) -> str:
    """Line printed by `--stats`; `repacks` is None where a server holds the weights."""
    timings = finish.timings
    parts = [model, f"format {format_name}"]
    if repacks is None:
        parts.append("on a server")
    else:
        parts += f"load {timings.load_s:.2f} s", WEIGHTS[repacks]
    cached = ""
    if finish.cached_tokens:
        cached = f" ({finish.cached_tokens} cached)"
    parts.append(
        f"prompt {finish.prompt_tokens or 'of unknown'} tokens{cached}{_rate(timings.prompt_tokens_per_second)}"
    )
    generated = f"generated {finish.completion_tokens} tokens{_rate(timings.tokens_per_second)}"
    if timings.draft_n:
        generated += f", {timings.draft_n_accepted} of {timings.draft_n} draft tokens accepted"
    parts += generated, f"first token {timings.ttft_s:.2f} s", f"context {finish.context_size or 'unknown'}"
    parts += sampling, f"seed {finish.seed}", f"finish reason {finish.reason}"
    return " | ".join(parts)


def _rate(tokens_per_second: float) -> str:
    if tokens_per_second:
        return f", {tokens_per_second:.1f} t/s"
    return ""


def find_code(text: str, language: str | None = None, last: bool = False) -> str | None:
    """Text of the first or last code block that is not blank, in a language if one is given."""
    from cerebrum_cli.terminal.markdown.blocks import code_blocks, is_same_language

    texts = []
    for block in code_blocks(text):
        if block.text.strip() and (not language or is_same_language(block.language, language)):
            texts.append(block.text)
    if not texts:
        return None
    return texts[-1] if last else texts[0]


def render(
    events: Events,
    cancel: Callable[[], None],
    sinks: Iterable[Sink],
    chat_signals: Signals | None = None,
    end_reasoning: EndReasoning = nothing_to_end,
) -> None:
    """Send all events to all sinks. A signal cancels the reply; after its last events Interrupted is raised.

    A sequence exists, and can be canceled, from the first PromptEvent on; before that a signal raises immediately.
    """
    sinks = tuple(sinks)
    context = nullcontext(chat_signals) if chat_signals else Signals()
    with context as signals, signals.generating(cancel, end_reasoning):
        try:
            for event in events:
                signals.can_cancel = signals.can_cancel or isinstance(event, (PromptEvent, TokenEvent))
                if isinstance(event, CallEvent):
                    signals.can_cancel = event.is_done  # a function that runs is interrupted
                is_notice = isinstance(event, NoticeEvent)  # the first sink prints it, the others make room for it
                for sink in reversed(sinks) if is_notice else sinks:
                    sink.emit(event)
        finally:
            events.close()
            for sink in sinks:
                sink.close()
