"""Draw docs/chat.svg: a real chat with the starter model at a real terminal, as it stands on the screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

CEREBRUM = str(Path(sys.executable).with_name("cerebrum"))
PICTURE = Path(__file__).with_name("chat.svg")
COLUMNS, ROWS = 96, 36
PATIENCE_S = 60.0
TALK = (
    ("Write a Python function that adds two numbers.", " t/s"),
    ("/undo", "Undone"),
    ("Name three colors of the rainbow, as a list.", " t/s"),
    ("/stats", "| load "),
    ("/fork colors", "Now in session"),
)


class Terminal:
    """A program at a terminal of its own, which answers what programs ask of one."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=env, dimensions=(ROWS, COLUMNS))
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.screen.write_process_input = self._pty.send
        self._stream = pyte.ByteStream(self.screen)

    def types(self, text: str) -> None:
        """Type a line and press Enter."""
        self._pty.send(text + "\r")

    def shows(self, text: str, more_than: int) -> None:
        """Wait until the screen shows a text more often than it did; SystemExit if it never does."""
        deadline = time.monotonic() + PATIENCE_S
        while self.count(text) <= more_than:
            if time.monotonic() > deadline:
                sys.exit(f"{text!r} never came:\n" + "\n".join(self.screen.display))
            self.rests(0.1)

    def rests(self, seconds: float) -> None:
        """Read until nothing has come for so long."""
        try:
            while True:
                self._stream.feed(self._pty.read_nonblocking(65536, seconds))
        except (pexpect.TIMEOUT, pexpect.EOF):
            return

    def count(self, text: str) -> int:
        """Return how many lines show a text."""
        return sum(text in line for line in self.screen.display)

    def close(self) -> None:
        """Hang up."""
        self._pty.close(force=True)


def main() -> None:
    """Talk, and draw what stands on the screen then."""
    shown = subprocess.run([CEREBRUM, "show", "starter", "--json"], capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "XDG_DATA_HOME": home, "XDG_CACHE_HOME": home, "TERM": "xterm-256color"}
        pull = [CEREBRUM, "pull", "--quiet", json.loads(shown.stdout)["path"], "--name", "starter"]
        subprocess.run(pull, env=env, check=True)
        terminal = Terminal([CEREBRUM, "chat", "-m", "starter", "-n", "120"], env)
        try:
            terminal.shows("context ", 0)
            for line, sign in TALK:
                before = 0 if sign == "tokens/s" else terminal.count(sign)
                terminal.types(line)
                terminal.shows(sign, before)
                terminal.rests(1.0)
        finally:
            terminal.close()
    PICTURE.write_text(drawn(terminal.screen), encoding="utf-8")


def drawn(screen: pyte.Screen) -> str:
    """Return what a screen shows as SVG."""
    console = Console(width=screen.columns, record=True, file=StringIO(), force_terminal=True, legacy_windows=False)
    console.print(*(row(screen, number) for number in range(screen.lines)), sep="\n", soft_wrap=True)
    return console.export_svg(title="cerebrum chat", unique_id="chat")


def row(screen: pyte.Screen, number: int) -> Text:
    """Return a line of the screen, in runs of one style; some programs drop the space that a run begins with."""
    chars = [painted(screen.buffer[number][column]) for column in range(screen.columns)]
    runs = groupby(chars, key=lambda char: (char[1], char[0] == " "))
    text = Text.assemble(*(("".join(char for char, _ in run), style) for (style, _), run in runs))
    text.rstrip()
    return text


def painted(char: pyte.screens.Char) -> tuple[str, Style]:
    """Return a character in its colours."""
    style = Style(
        color=colour(char.fg),
        bgcolor=colour(char.bg),
        bold=char.bold,
        italic=char.italics,
        underline=char.underscore,
        reverse=char.reverse,
    )
    return char.data, style


def colour(name: str) -> str | None:
    """Return a colour of the emulator as rich names it."""
    if name == "default":
        return None
    named = name.replace("bright", "bright_").replace("brown", "yellow")
    return f"#{name}" if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name) else named


if __name__ == "__main__":
    main()
