"""Calls of functions on a terminal: a line for each and for its result, and the question before a user's function."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import wraps
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import CallEvent, Event
from cerebrum_cli.core.text import one_line
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.streams import DIM, Streams, columns, strip_controls
from cerebrum_cli.terminal.tables import PIPE_WIDTH

if TYPE_CHECKING:
    from cerebrum_cli.programs.functions import Tool

REFUSED = "the user refused this call"
YES, ALWAYS = ("y", "yes"), ("a", "always")


@dataclass
class CallSink:
    """Prints calls while a reply runs them, and asks before calls of functions that ask, unless the user `agrees`."""

    streams: Streams
    agrees: bool = False
    keyboard: Keyboard = field(default_factory=Keyboard)
    _asking: set[str] = field(default_factory=set)  # names of functions

    def allowed(self, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        """Tools of which those that ask do so when they run. Raises UsageError if nobody can be asked."""
        if self.agrees:
            return tools
        asking = {tool.spec.name for tool in tools if tool.asks}
        if asking and not self.streams.can_ask:
            problem = f"no terminal to ask before calls of {min(asking)}"
            raise UsageError(problem, "-y runs functions of a file without asking")
        self._asking |= asking
        return tuple(self._with_question(tool) if tool.asks else tool for tool in tools)

    def _with_question(self, tool: Tool) -> Tool:
        @wraps(tool.function)
        def function(**arguments: object) -> object:
            if not self._may_run(tool.spec.name):
                return REFUSED
            return tool.function(**arguments)

        return replace(tool, function=function)

    def _may_run(self, name: str) -> bool:
        if name not in self._asking:
            return True
        with self.keyboard.released():
            self.keyboard.discard_typed()  # before there was a question
            reply = self.streams.ask(f"Run {name}? [y/N/always]")
        if reply in ALWAYS:
            self._asking.remove(name)
        return reply in (*YES, *ALWAYS)

    def emit(self, event: Event) -> None:
        if not isinstance(event, CallEvent):
            return
        call = event.call
        if event.is_done:
            self._print(f"-> {call.result.strip()}".partition("\n")[0])
        elif call.name in self._asking:  # the question is about all of it
            self.streams.write_line("", str(call), DIM)
        else:
            self._print(str(call))

    def close(self) -> None:
        """Do nothing: each line is complete."""

    def _print(self, text: str) -> None:
        """Print a dim line, cut to the width of the terminal."""
        from rich.cells import cell_len, set_cell_size

        if self.streams.is_quiet:
            return
        width = PIPE_WIDTH
        if self.streams.err_is_terminal:
            width = columns(self.streams.err) - 1
        text = one_line(strip_controls(text))
        if cell_len(text) > width:
            text = f"{set_cell_size(text, width - 1).rstrip()}…"
        self.streams.draw(f"{self.streams.on_stderr.styled(text, DIM)}\n")
