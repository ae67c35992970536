"""Draw docs/chat.svg, chat-file.svg, chat-later.svg, vote.svg and accuracy.png: chats and a vote of a model, and an
evaluation of nano.

Usage: python docs/picture.py FILE NAME, a model such as Qwen2.5-Coder-1.5B-Instruct in Q4_K_M, and its name in the
pictures. The evaluation is the one in evaluate.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

CEREBRUM = Path(sys.executable).with_name("cerebrum")
DOCS = Path(__file__).parent
COLUMNS = 91  # no line of the dialogs breaks within a word
TIMEOUT_S = 200.0
QUIET_S = 1.0  # the screen is complete after so long without a change
PROMPT = "$ "  # of the shell

# Lines to type, and the text that appears on the screen when each is done.
NEXT_PROMPT, NEXT_QUESTION = f"\n{PROMPT.rstrip()}", "\n>"
CHAT = (
    ("cerebrum chat --temperature 0 --session sums", NEXT_QUESTION),
    ("What is the sum of the first n integers? One sentence.", NEXT_QUESTION),
    ("/undo", NEXT_QUESTION),
    (
        "Write the sum of the first n integers as a formula, as a Python function, and as a table for n = 1, 2, 3, 4."
        " Be brief.",
        NEXT_QUESTION,
    ),
)
NOTES = """Tomatoes: sow in March, plant out after 15 May.
Beans: sow outside from 10 May.
Garlic: plant in October, harvest in July.
"""
CHAT_FILE = (
    ("cerebrum chat --temperature 0 --session garden", NEXT_QUESTION),
    ("When do I plant out the tomatoes in @garden.txt? One sentence.", NEXT_QUESTION),
    ("And the beans? One sentence.", NEXT_QUESTION),
)
CHAT_LATER = (
    ("cerebrum chat --temperature 0", "context "),
    ("/search beans", NEXT_QUESTION),
    ("/load garden", NEXT_QUESTION),
    ("How many days are between the two? One sentence.", NEXT_QUESTION),
)
# Greedily, the 1.5B answers 6.50.
QUESTION = "A parking garage charges $4 for the first hour and $2.50 for each further one. What do 5 hours cost?"
VOTE = (
    (f"cerebrum ask '{QUESTION}' --final", NEXT_PROMPT),
    (f"cerebrum ask '{QUESTION}' --votes 8 --seed 2", NEXT_PROMPT),
)
PICTURES = {"chat": (34, CHAT), "chat-file": (17, CHAT_FILE), "chat-later": (22, CHAT_LATER), "vote": (32, VOTE)}


class Terminal:
    """A program in a terminal emulator."""

    def __init__(self, argv: list[str], env: dict[str, str], rows: int) -> None:
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=env, cwd=env["HOME"], dimensions=(rows, COLUMNS))
        self.screen = pyte.Screen(COLUMNS, rows)
        self.screen.write_process_input = self._pty.send
        self._stream = pyte.ByteStream(self.screen)

    def run(self, line: str, expected: str) -> None:
        """Type a line, press Enter, and wait for a text that was not on the screen before."""
        before = self._count(expected)
        self._pty.send(line + "\r")
        self.wait_for(expected, before)

    def wait_for(self, expected: str, before: int = 0) -> None:
        """Read until a text occurs more often than before and the screen stays as it is."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._count(expected) <= before:
            if time.monotonic() > deadline:
                sys.exit(f"{expected!r} did not appear:\n{self._text()}")
            self._read(0.1)
        shown, since = "", time.monotonic()
        while time.monotonic() - since < QUIET_S:
            self._read(0.1)  # a chat redraws its status line all the time
            if self._text() != shown:
                shown, since = self._text(), time.monotonic()

    def close(self) -> None:
        """Close the terminal, which ends the program."""
        self._pty.close(force=True)

    def _read(self, seconds: float) -> None:
        """Feed output to the emulator until there is none for `seconds`."""
        try:
            while True:
                self._stream.feed(self._pty.read_nonblocking(65536, seconds))
        except (pexpect.TIMEOUT, pexpect.EOF):
            return

    def _count(self, text: str) -> int:
        return self._text().count(text)

    def _text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)


def main() -> None:
    """Draw the pictures, with sessions, settings and prompt cache in a temporary home directory."""
    file, name = sys.argv[1:]
    with tempfile.TemporaryDirectory() as home:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CEREBRUM_")}
        directories = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), home)
        path = f"{CEREBRUM.parent}{os.pathsep}{os.environ['PATH']}"
        env = {**inherited, **directories, "PATH": path, "TERM": "xterm-256color", "PS1": PROMPT}
        run = partial(subprocess.run, cwd=home, env=env, check=True)
        run([CEREBRUM, "eval", "sums", "-m", "nano", "--samples", "16", "-o", "votes.jsonl", "-q"])
        run([CEREBRUM, "runs", "show", "votes.jsonl", "--plot", DOCS / "accuracy.png"])
        run([CEREBRUM, "pull", "--quiet", Path(file).absolute(), "--name", name, "--default"])
        Path(home, "garden.txt").write_text(NOTES, encoding="utf-8")
        for picture, (rows, dialog) in PICTURES.items():
            draw(picture, env, rows, dialog)


def draw(name: str, env: dict[str, str], rows: int, dialog: tuple[tuple[str, str], ...]) -> None:
    """Type the lines of a dialog into a shell, and write the screen as docs/NAME.svg."""
    terminal = Terminal(["bash", "--norc", "--noprofile"], env, rows)
    try:
        terminal.wait_for(PROMPT.rstrip())
        for line, expected in dialog:
            terminal.run(line, expected)
    finally:
        terminal.close()
    (DOCS / f"{name}.svg").write_text(svg(terminal.screen, name), encoding="utf-8")


def svg(screen: pyte.Screen, name: str) -> str:
    """Screen as SVG."""
    console = Console(width=screen.columns, record=True, file=StringIO(), force_terminal=True, legacy_windows=False)
    console.print(*(row(screen, number) for number in range(screen.lines)), sep="\n", soft_wrap=True)
    return console.export_svg(title=f"cerebrum: {name}", unique_id=name)


def row(screen: pyte.Screen, number: int) -> Text:
    """Line of the screen in runs of one style; spaces are runs of their own, since some viewers drop leading ones."""
    chars = [styled(screen.buffer[number][column]) for column in range(screen.columns)]
    runs = groupby(chars, key=lambda char: (char[1], char[0] == " "))
    text = Text.assemble(*(("".join(char for char, _ in run), style) for (style, _), run in runs))
    text.rstrip()
    return text


def styled(char: pyte.screens.Char) -> tuple[str, Style]:
    """Character and its style."""
    style = Style(
        color=color(char.fg),
        bgcolor=color(char.bg),
        bold=char.bold,
        italic=char.italics,
        underline=char.underscore,
        reverse=char.reverse,
    )
    return char.data, style


def color(name: str) -> str | None:
    """Rich's name of an emulator color; None for the default."""
    if name == "default":
        return None
    named = name.replace("bright", "bright_").replace("brown", "yellow")
    return f"#{name}" if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name) else named


if __name__ == "__main__":
    main()
