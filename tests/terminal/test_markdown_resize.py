"""Streamed Markdown in a window that is resized, in tmux, a real terminal that rewraps its contents."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
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


class Window:
    """A tmux window in which a reply is streamed."""

    def __init__(self, directory: Path, columns: int, rows: int) -> None:
        self._directory = directory
        self._chunk_count = 0
        (directory / "program.py").write_text(PROGRAM)
        program = shlex.join(["exec", sys.executable, str(directory / "program.py"), str(directory)])
        size = ("-x", str(columns), "-y", str(rows))
        options = ("set", "-g", "status", "off", ";", "set", "-g", "default-terminal", "tmux-256color", ";")
        self._tmux(*options, "new-session", "-d", "-s", "reply", *size, program)
        self._terminal = os.open(self._tmux("display", "-p", "#{pane_tty}").strip(), os.O_RDWR | os.O_NOCTTY)

    def stream(self, text: str, step: int | None = None) -> None:
        """Stream a text, `step` characters at a time, and wait until it is drawn."""
        for at in range(0, len(text), step or len(text)):
            self._send(text[at : at + (step or len(text))])

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-t", "reply", "-x", str(columns), "-y", str(rows))

    def wait_for_size(self, columns: int, rows: int) -> None:
        """Wait until the window's terminal has this size, which tmux delays."""
        wait_until(lambda: os.get_terminal_size(self._terminal) == (columns, rows))

    def end(self) -> str:
        """End the reply and return the final contents."""
        self._send("")
        return self.shown()

    def shown(self) -> str:
        """Contents of the window and its scrollback, with wrapped rows joined."""
        return self._tmux("capture-pane", "-t", "reply", "-p", "-J", "-S", "-")

    def close(self) -> None:
        os.close(self._terminal)
        self._tmux("kill-server")

    def _send(self, text: str) -> None:
        unseen = self._directory / "unseen"
        unseen.write_text(text, encoding="utf-8")
        unseen.rename(self._directory / f"{self._chunk_count}.chunk")
        wait_until((self._directory / f"{self._chunk_count}.done").exists)
        self._chunk_count += 1

    def _tmux(self, *arguments: str) -> str:
        command = ("tmux", "-u", "-S", str(self._directory / "socket"), "-f", "/dev/null", *arguments)
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}  # no COLUMNS, which readline sets for all below pytest
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20, env=env).stdout


Open = Callable[[int, int], Window]


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Open]:
    opened: list[Window] = []

    def open_window(columns: int, rows: int) -> Window:
        directory = tmp_path / str(len(opened))
        directory.mkdir()
        opened.append(Window(directory, columns, rows))
        return opened[-1]

    yield open_window
    for one in opened:
        one.close()


def words(count: int, begin: str) -> str:
    return " ".join(f"{begin}{number:03}" for number in range(count))


PROSE = f"{words(60, 'a')}\n\n{words(60, 'b')}\n\n"
WIDE = f"# Kopf\n\n{words(20, 'w')} {' '.join(f'日本{n:02}語' for n in range(30))} {words(9, 'x')}\n\n"
LIST = "".join(f"- {words(14, f'l{item}i')}\n  - {words(9, f'm{item}i')}\n" for item in range(5)) + "\n"
CODE = "```python\n" + "".join(f"c{line:02} = 'd{line:02}'  # e{line:02}\n" for line in range(24)) + "```\n\n"
TABLE = "| t00 | u00 |\n|---|---|\n" + "".join(f"| t{row:02} | u{row:02} v{row:02} |\n" for row in range(1, 9)) + "\n"
TEXT = PROSE + LIST + CODE + WIDE + TABLE + "end"
WORD = re.compile(r"[a-z]\d*i?\d+|日本\d+語|Kopf|end")

SIZES = (((50, 24), (70, 30), (100, 16), (80, 24)), ((120, 24), (90, 24), (60, 30)))


def test_markdown_stream_in_a_resized_window_shows_every_word_once(window: Open) -> None:
    replies = [window(80, 24) for _ in SIZES]
    for step, at in enumerate(range(0, len(TEXT), 120)):
        for reply, sizes in zip(replies, SIZES, strict=True):
            reply.stream(TEXT[at : at + 120], step=60)
            reply.resize(*sizes[step % len(sizes)])
        for reply, sizes in zip(replies, SIZES, strict=True):
            reply.wait_for_size(*sizes[step % len(sizes)])
    for reply in replies:
        assert WORD.findall(reply.end()) == WORD.findall(TEXT)


CLUSTERS = ("👨‍👩‍👧‍👦", "🇩🇪🇯🇵", "❤️", "👍🏽", "e\u0301", "क्षि", "한", "☎️", "1️⃣", "🏳️‍🌈", "ﷺ", "→")


def test_markdown_stream_erases_rows_of_uncertain_width(window: Open) -> None:
    reply = window(30, 24)
    text = "".join(f"- {cluster * 14} p{n:02} {cluster * 25} q{n:02}\n" for n, cluster in enumerate(CLUSTERS)) + "\nend"
    reply.stream(text, step=9)
    assert re.findall(r"[pq]\d\d|end", reply.end().replace("\n", "")) == re.findall(r"[pq]\d\d|end", text)
