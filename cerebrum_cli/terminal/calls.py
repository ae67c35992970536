"""Function calls on a terminal: a line for each call and its result, and a question before a user's function runs."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import CallEvent, Event
from cerebrum_cli.core.text import one_line, strip_controls, truncate
from cerebrum_cli.core.tools import Tool, ToolCall, ToolFinder, Tools
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.streams import DIM, Streams

MAX_SHOWN = 78  # characters of a call, and of its result


@dataclass
class CallSink:
    """Prints calls while a reply runs them, and asks before those of tools that ask, unless the user `agrees`.

    `find` knows tools that are neither `python` nor in a file.
    """

    streams: Streams
    agrees: bool = False
    find: ToolFinder | None = None
    _asking: set[str] = field(default_factory=set)  # names of functions

    @cached_property
    def keyboard(self) -> Keyboard:
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

    def emit(self, event: Event) -> None:
        if not isinstance(event, CallEvent) or self.streams.is_quiet:
            return
        if event.is_done:
            self._print(f"-> {event.call.result}")
        elif event.call.name not in self._asking:  # the question shows the whole call
            self._print(str(event.call))

    def close(self) -> None:
        """Do nothing: each line is complete."""

    def _print(self, text: str) -> None:
        err = self.streams.on_stderr
        line = strip_controls(truncate(one_line(text), MAX_SHOWN))
        self.streams.draw(f"{err.styled(err.wrapped(line), DIM)}\n", is_styled=True)
