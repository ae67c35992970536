"""Streamed Markdown in a window that is resized, in tmux, a real terminal that rewraps its contents."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command_line import ROOT
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")]

# Streams the contents of numbered files as they appear, and redraws for each.
PROGRAM = """
import sys, time, tty
from pathlib import Path
from rich.console import Console
from cerebrum_cli.terminal.markdown import renderer as markdown
markdown.MIN_REDRAW_INTERVAL_S = markdown.MAX_REDRAW_INTERVAL_S = 0.0
directory = Path(sys.argv[1])
print("\\n" * 60)  # start at the bottom: tmux scrolls when it rewraps, even if rows below are empty
stream = markdown.MarkdownStream(Console(file=sys.stdout))

def drawn():
    sys.stdout.write("\\x1b[6n")  # query the cursor position; the reply comes after all output before it is drawn
    sys.stdout.flush()
    while sys.stdin.read(1) != "R":
        pass
    (directory / f"{number}.done").touch()

tty.setcbreak(0)
for number in range(10_000):
    while not (chunk := directory / f"{number}.chunk").exists():
        time.sleep(0.002)
    if not (text := chunk.read_text(encoding="utf-8")):
        break
    stream.feed(text)
    drawn()
stream.close()
drawn()
time.sleep(60)
"""


@dataclass
class Window:
    """A tmux window in which a reply is streamed."""

    directory: Path
    chunk_count: int = field(default=0, init=False)

    def tmux(self, *arguments: str) -> str:
        command = ("tmux", "-u", "-S", str(self.directory / "socket"), "-f", "/dev/null", *arguments)
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}  # no COLUMNS, which readline sets for all below pytest
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20, env=env).stdout

    def stream(self, text: str) -> None:
        """Stream one piece of a text, and wait until it is drawn; an empty one ends the reply."""
        unseen = self.directory / "unseen"
        unseen.write_text(text, encoding="utf-8")
        unseen.rename(self.directory / f"{self.chunk_count}.chunk")
        wait_until((self.directory / f"{self.chunk_count}.done").exists)
        self.chunk_count += 1

    def end(self) -> str:
        """End the reply and return the contents of the window and its scrollback, with wrapped rows joined."""
        self.stream("")
        return self.tmux("capture-pane", "-t", "reply", "-p", "-J", "-S", "-")


@contextlib.contextmanager
def open_window(directory: Path, columns: int) -> Iterator[Window]:
    directory.mkdir()
    window = Window(directory)
    (directory / "program.py").write_text(PROGRAM)
    program = shlex.join(["exec", sys.executable, str(directory / "program.py"), str(directory)])
    options = ("set", "-g", "status", "off", ";", "set", "-g", "default-terminal", "tmux-256color", ";")
    window.tmux(*options, "new-session", "-d", "-s", "reply", "-x", str(columns), "-y", "24", program)
    try:
        yield window
    finally:
        window.tmux("kill-server")


TEXT = (ROOT / "tests" / "data" / "resized_reply.md").read_text(encoding="utf-8")
WORD = re.compile(r"[a-z]\d*i?\d+|日本\d+語|Kopf|end")


@pytest.mark.parametrize("sizes", [((50, 24), (70, 30), (100, 16), (80, 24)), ((120, 24), (90, 24), (60, 30))])
def test_resized_window_shows_every_word_once(tmp_path: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    with open_window(tmp_path / "window", 80) as window:
        terminal = os.open(window.tmux("display", "-p", "#{pane_tty}").strip(), os.O_RDWR | os.O_NOCTTY)
        for number, at in enumerate(range(0, len(TEXT), 60)):
            window.stream(TEXT[at : at + 60])
            if number % 2:
                size = sizes[number // 2 % len(sizes)]
                window.tmux("resize-window", "-t", "reply", "-x", str(size[0]), "-y", str(size[1]))
                wait_until(lambda size=size: os.get_terminal_size(terminal) == size)  # type: ignore[misc]
        os.close(terminal)
        assert WORD.findall(window.end().replace("\n", "")) == WORD.findall(TEXT)


CLUSTERS = ("👨‍👩‍👧‍👦", "🇩🇪🇯🇵", "❤️", "👍🏽", "e\u0301", "क्षि", "한", "☎️", "1️⃣", "🏳️‍🌈", "ﷺ", "→")


def test_markdown_stream_erases_rows_of_uncertain_width(tmp_path: Path) -> None:
    text = "".join(f"- {cluster * 14} p{n:02} {cluster * 25} q{n:02}\n" for n, cluster in enumerate(CLUSTERS)) + "\nend"
    with open_window(tmp_path / "window", 30) as window:
        for at in range(0, len(text), 9):
            window.stream(text[at : at + 9])
        assert re.findall(r"[pq]\d\d|end", window.end().replace("\n", "")) == re.findall(r"[pq]\d\d|end", text)
