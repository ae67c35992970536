"""`cerebrum` in a real terminal: what a person sees, and what the keys do."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from command_line import COMMAND, CommandLine, endless_reply_grammar, fixed_reply_grammar
from screen import Screen, rendered_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SCRIPTED = str(Path(__file__).with_name("scripted_command.py"))
DRAWING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program in a terminal of its own, and what it shows."""

    def __init__(self, argv: list[str], env: Mapping[str, str], size: tuple[int, int]) -> None:
        columns, rows = size
        self.screen = Screen(columns, rows)
        self.raw = ""
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=dict(env), dimensions=(rows, columns), timeout=30)

    def read_until(self, text: str) -> None:
        """Read until a text has been written."""
        while text not in self.raw:
            self._read()

    def press(self, key: str) -> None:
        """Press a key, or write a line."""
        self._pty.send(key)

    def send_signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self._pty.kill(number)

    def end(self) -> int:
        """Read to the end and return the exit code, as a shell tells it."""
        while True:
            try:
                self._read()
            except pexpect.EOF:
                break
        self._pty.close()
        code = self._pty.exitstatus
        return int(128 + self._pty.signalstatus if code is None else code)

    def close(self) -> None:
        """End the program, whatever it does."""
        self._pty.close(force=True)

    def _read(self) -> None:
        data = self._pty.read_nonblocking(4096, timeout=30)
        self.screen.feed(data)
        self.raw += data.decode("utf-8", "replace")


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """Return how to open a terminal with a program in it."""
    opened: list[Terminal] = []

    def open_terminal(*argv: str | Path, size: tuple[int, int] = (80, 24), **env: str) -> Terminal:
        environment = CommandLine(tmp_path).environment({"TERM": "xterm-256color", **env})
        opened.append(Terminal([str(part) for part in argv], environment, size))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def scripted(script: dict[str, Any], model: Path, *arguments: str) -> tuple[str, ...]:
    """Return the command that asks a scripted model."""
    return sys.executable, SCRIPTED, json.dumps(script), "ask", "-m", str(model), *arguments, "hi"


REPLY = """# Title

Some **bold** text, long enough to wrap in a window of forty columns, and 日本語のテキスト too.

```python
print("\x1b[31mhello\x1b]0;title\x07")
```

- one
- two
"""


@pytest.mark.parametrize("size", [(80, 24), (20, 8)])
def test_an_answer_is_drawn_as_markdown_and_cannot_steer_the_terminal(
    terminal: Open, chatml_model: Path, size: tuple[int, int]
) -> None:
    window = terminal(*scripted({"reply": REPLY, "pause": 0.0005}, chatml_model), size=size)
    assert window.end() == 0
    clean = REPLY.replace("\x1b[31m", "").replace("\x1b]0;title\x07", "")
    assert window.screen.lines == rendered_lines(clean, *size)
    assert "title" not in window.raw
    assert window.screen.cursor == (0, len(window.screen.lines))
    assert not window.screen.cursor_hidden


def test_a_random_models_text_holds_no_control_but_those_that_draw(terminal: Open, chatml_model: Path) -> None:
    asked = ("-n", "60", "--temperature", "3", "--min-p", "0", "--top-k", "0", "--seed", "5")
    window = terminal(COMMAND, "ask", "-m", chatml_model, *asked, "hi")
    assert window.end() == 0
    assert "\x1b[" in window.raw
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", DRAWING.sub("", window.raw))


def test_plain_answers_and_prompts_are_stripped_of_controls_too(
    terminal: Open, chatml_model: Path, tmp_path: Path
) -> None:
    text = "a\x1b[31mb\x1b]0;title\x07c"
    window = terminal(COMMAND, "ask", "-m", chatml_model, "--grammar", fixed_reply_grammar(text, tmp_path), "hi")
    assert (window.end(), window.raw) == (0, "abc\r\n")
    window = terminal(COMMAND, "ask", "-m", chatml_model, "--raw", "--dry-run", "-q", text)
    assert (window.end(), window.raw) == (0, "abc\r\n")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "unknown"}, {"ACCESSIBLE": "1"}])
def test_a_terminal_that_is_not_drawn_on_gets_plain_lines(
    terminal: Open, chatml_model: Path, env: dict[str, str]
) -> None:
    window = terminal(*scripted({"reply": REPLY, "load": 0.2}, chatml_model), **env)
    assert window.end() == 0
    assert "\x1b" not in window.raw
    assert window.screen.lines[0] == "# Title"


def test_what_is_redirected_is_clean_though_the_terminal_is_there(
    terminal: Open, chatml_model: Path, tmp_path: Path
) -> None:
    command = scripted({"reply": "# Title\n\n" + "word " * 40 + "end", "load": 0.2}, chatml_model)
    window = terminal("sh", "-c", f'"$0" "$@" > {tmp_path}/out', *command)
    assert window.end() == 0
    assert (tmp_path / "out").read_text() == "# Title\n\n" + "word " * 40 + "end\n"
    assert "loading chatml 50%" in window.raw
    assert window.screen.lines == []


def test_a_wait_shows_a_line_that_goes_away(terminal: Open, chatml_model: Path) -> None:
    window = terminal(*scripted({"reply": "yes", "load": 0.3}, chatml_model))
    window.read_until("loading chatml 50%")
    assert window.end() == 0
    assert window.screen.lines == ["yes"]
    window = terminal(*scripted({"reply": "yes", "load": 0.3}, chatml_model, "-q"))
    assert window.end() == 0
    assert "loading" not in window.raw


WORDS = "".join(f"word{number} " for number in range(10_000))


@pytest.mark.parametrize("arguments", [(), ("--no-markdown",)])
def test_ctrl_c_ends_the_answer_at_once_and_keeps_it(
    terminal: Open, chatml_model: Path, arguments: tuple[str, ...]
) -> None:
    window = terminal(*scripted({"reply": WORDS, "pause": 0.002}, chatml_model, *arguments))
    window.read_until("word9 ")
    window.press("\x03")
    pressed = time.monotonic()
    assert window.end() == 130
    assert time.monotonic() - pressed < 2
    text = " ".join(window.screen.lines)
    assert text.startswith("word0 word1 word2 word3 word4 word5 word6 word7 word8 word9")
    assert window.screen.cursor == (0, len(window.screen.lines))
    assert not window.screen.cursor_hidden
    assert "Traceback" not in window.raw


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_real_models_answer(
    terminal: Open, chatml_model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    window = terminal(COMMAND, "ask", "-m", chatml_model, "--stats", "--grammar", endless_reply_grammar(tmp_path), "hi")
    window.read_until(" ")
    window.send_signal(number)
    assert window.end() == code
    assert "finish reason cancelled" in window.raw.replace("\r\n", "")
    assert window.screen.cursor[0] == 0


def test_a_second_ctrl_c_does_not_wait_for_a_model_that_is_stuck(terminal: Open, chatml_model: Path) -> None:
    window = terminal(*scripted({"reply": WORDS, "stuck": 20}, chatml_model, "--no-markdown"))
    window.read_until("word2 ")
    window.press("\x03")
    window.read_until("^C")
    time.sleep(0.1)
    window.press("\x03")
    pressed = time.monotonic()
    assert window.end() == 130
    assert time.monotonic() - pressed < 2


def test_ctrl_c_while_the_model_loads_ends_it(terminal: Open, chatml_model: Path) -> None:
    window = terminal(*scripted({"reply": "yes", "load": 1.0}, chatml_model))
    window.read_until("loading chatml")
    window.press("\x03")
    assert window.end() == 130
    assert "yes" not in window.raw
    assert "Traceback" not in window.raw


@pytest.mark.parametrize(("key", "code"), [("n\r", 3), ("\x04", 3), ("\x03", 130)])
def test_without_a_model_one_is_offered(terminal: Open, key: str, code: int) -> None:
    window = terminal(COMMAND, "ask", "hi")
    window.read_until("no model is installed. Pull starter (Q4_1, 98 MB) now? [Y/n] ")
    window.press(key)
    assert window.end() == code
    if code == 3:
        assert "error: no model is installed" in window.screen.lines
        assert any(line.startswith("  try: cerebrum pull cerebrum-7b") for line in window.screen.lines)


def test_quiet_terminals_show_the_same_markdown(terminal: Open, chatml_model: Path) -> None:
    window = terminal(*scripted({"reply": REPLY}, chatml_model, "-q"), NO_COLOR="1")
    assert window.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", window.raw)
    title = rendered_lines("# Title", 80, 24)
    assert window.screen.lines[: len(title)] == title


def test_whoever_waits_for_standard_input_is_told_so(terminal: Open, chatml_model: Path) -> None:
    window = terminal("sh", "-c", f"sleep 30 | {COMMAND} ask hi -n 1 --model {chatml_model}")
    window.read_until("note: waiting for the end of standard input")
    window.press("\x03")
    assert window.end() != 0
    assert "Traceback" not in window.raw
