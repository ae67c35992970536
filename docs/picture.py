"""Draw docs/chat.svg, vote.svg and accuracy.png: a chat and a vote of the starter model, and an evaluation of nano.

The evaluation prints the table in evaluate.md: nano's held-out sums in two quantizations, 16 samples each.
"""

from __future__ import annotations

import json
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
COLUMNS = 96
TIMEOUT_S = 60.0
QUIET_S = 1.0  # the screen is complete after so long without output
PROMPT = "$ "  # of the shell that runs the vote

# Lines to type, and the text that appears on the screen when each is done. The starter model answers these correctly.
REPLY_DONE = "t/s"  # in the status line, below the prompt
NEXT_PROMPT = f"\n{PROMPT.rstrip()}"
CHAT = (
    ("What does HTML stand for?", REPLY_DONE),
    ("Write a Python function that reverses a string.", REPLY_DONE),
    ("/undo", "Undone: "),
    ("Write a Python function that tests whether a number is even.", REPLY_DONE),
    ("/stats", "finish reason"),
)
VOTE = (
    ('cerebrum ask "What is 100 divided by 4?" --votes 8 --seed 1', NEXT_PROMPT),
    ('cerebrum ask "What is 100 divided by 4?" --votes 8 --seed 1 --final', NEXT_PROMPT),
)


class Terminal:
    """A program in a terminal emulator."""

    def __init__(self, argv: list[str], env: dict[str, str], rows: int) -> None:
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=env, dimensions=(rows, COLUMNS))
        self.screen = pyte.Screen(COLUMNS, rows)
        self.screen.write_process_input = self._pty.send
        self._stream = pyte.ByteStream(self.screen)

    def run(self, line: str, expected: str) -> None:
        """Type a line, press Enter, and wait for a text that was not on the screen before."""
        before = 0 if expected == REPLY_DONE else self._count(expected)  # the status line hides while a reply runs
        self._pty.send(line + "\r")
        self.wait_for(expected, before)

    def wait_for(self, expected: str, before: int = 0) -> None:
        """Read until a text occurs more often than before and the output stops."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._count(expected) <= before:
            if time.monotonic() > deadline:
                sys.exit(f"{expected!r} did not appear:\n{self._text()}")
            self._read(0.1)
        self._read(QUIET_S)

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
    """Draw both pictures, with sessions, settings and prompt cache in a temporary home directory."""
    model_object = subprocess.run([CEREBRUM, "show", "starter", "--json"], capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as home:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CEREBRUM_")}
        directories = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), home)
        path = f"{CEREBRUM.parent}{os.pathsep}{os.environ['PATH']}"
        env = {**inherited, **directories, "PATH": path, "TERM": "xterm-256color", "PS1": PROMPT}
        pull = [CEREBRUM, "pull", "--quiet", json.loads(model_object.stdout)["path"], "--name", "starter"]
        subprocess.run(pull, env=env, check=True)
        draw("chat", [str(CEREBRUM), "chat", "-n", "120"], env, 29, "context ", CHAT)
        draw("vote", ["bash", "--norc", "--noprofile"], env, 8, PROMPT, VOTE)
        evaluate(Path(home), env)


def evaluate(home: Path, env: dict[str, str]) -> None:
    """Evaluate two quantizations of nano, compare them, and plot the second as docs/accuracy.png."""
    (home / "nano.yaml").write_text("merge_method: linear\nmodels: [{model: nano, parameters: {weight: 1}}]\n")
    for quantization in ("Q8_0", "Q4_0"):
        name = f"nano-{quantization}"
        run = partial(subprocess.run, cwd=home, env=env, check=True)
        run([CEREBRUM, "merge", "nano.yaml", "-o", f"{name}.gguf", "--type", quantization, "--name", name, "-q"])
        run([CEREBRUM, "eval", "sums", "-m", name, "--format", "cerebrum", "--samples", "16", "-q"])
    run([CEREBRUM, "runs", "compare", "sums-nano-Q8_0", "sums-nano-Q4_0"])
    run([CEREBRUM, "runs", "show", "sums-nano-Q4_0", "--plot", DOCS / "accuracy.png", "-q"])


def draw(
    name: str, argv: list[str], env: dict[str, str], rows: int, ready: str, dialog: tuple[tuple[str, str], ...]
) -> None:
    """Run a program, type the lines of a dialog, and write the screen as docs/NAME.svg."""
    terminal = Terminal(argv, env, rows)
    try:
        terminal.wait_for(ready.rstrip())
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
