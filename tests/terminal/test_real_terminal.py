"""`cerebrum ask` in a real terminal: its display, keys and signals; and its styles in a pipe with FORCE_COLOR."""

import re
from pathlib import Path
from shlex import join

import pytest
from command_line import COMMAND, fixed_reply_grammar
from person import OpenTerminal
from screen import rendered_lines
from scripted_command import run_here

from cerebrum_cli.core.text import strip_controls

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

REPLY = """# Title

Some **bold** text, long enough to wrap in a window of forty columns, and 日本語のテキスト too.

```python
print("\x1b[31mhello\x1b]0;title\x07")
```

- one
- two
"""


@pytest.mark.parametrize(
    ("size", "is_quiet", "exported"), [((80, 24), False, "0"), ((20, 8), True, "120")], ids=["color", "quiet, no color"]
)
def test_ask_renders_markdown_without_the_models_control_sequences(
    open_scripted: OpenTerminal, size: tuple[int, int], is_quiet: bool, exported: str
) -> None:
    arguments, env = (("-q",), {"NO_COLOR": "1"}) if is_quiet else ((), {})
    env |= {"COLUMNS": exported, "LINES": exported}  # of another window
    window = open_scripted({"reply": REPLY, "pause": 0.0005, "load": 0.6}, "ask", "hi", *arguments, size=size, **env)
    assert window.end() == 0
    clean = REPLY.replace("\x1b[31m", "").replace("\x1b]0;title\x07", "")
    assert window.screen.lines == rendered_lines(clean, *size)
    assert "title" not in window.output and ("loading" in window.output) is not is_quiet
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", window.output)) is not is_quiet
    assert window.screen.cursor == (0, len(window.screen.lines))
    assert not window.screen.cursor_hidden


def test_ask_strips_controls_from_plain_answers_and_prompts(
    open_terminal: OpenTerminal, chatml_model: Path, tmp_path: Path
) -> None:
    text = "a\x1b[31mb\x1b]0;title\x07\u202e\u2066c"
    window = open_terminal(COMMAND, "ask", "-m", chatml_model, "--grammar", fixed_reply_grammar(text, tmp_path), "hi")
    assert (window.end(), window.output.rpartition("\x1b[2K")[2]) == (0, "abc\r\n")  # after the line of a slow load
    window = open_terminal(COMMAND, "ask", "-m", chatml_model, "--raw", "--dry-run", "-q", text)
    assert (window.end(), window.output) == (0, "abc\r\n")


@pytest.mark.parametrize("env", [{"TERM": "unknown"}, {"ACCESSIBLE": "1"}])
def test_ask_prints_plain_lines_on_plain_terminals(open_scripted: OpenTerminal, env: dict[str, str]) -> None:
    window = open_scripted({"reply": REPLY, "load": 0.2}, "ask", "hi", **env)
    assert window.end() == 0
    assert "\x1b" not in window.output
    assert window.screen.lines[0] == "# Title"


WORDS = "".join(f"word{number} " for number in range(10_000))


def test_ask_redirects_text_and_keeps_its_status_line(open_scripted: OpenTerminal, tmp_path: Path) -> None:
    text = f"# Title\n\n{WORDS[:300]}end"
    window = open_scripted({"reply": text, "load": 0.5}, "ask", "hi", shell=("sh", "-c", '"$0" "$@" > out'))
    assert window.end() == 0
    assert (tmp_path / "out").read_text() == f"{text}\n"
    assert "loading chatml 50%" in window.output
    assert window.screen.lines == []


def test_ask_ctrl_c_keeps_the_partial_answer_on_screen(open_scripted: OpenTerminal) -> None:
    window = open_scripted({"reply": WORDS, "pause": 0.002}, "ask", "hi")
    window.wait_for_output("word9 ")
    window.type("\x03")
    assert window.end() == 130
    text = " ".join(window.screen.lines)
    assert text.startswith("word0 word1 word2 word3 word4 word5 word6 word7 word8 word9")
    assert "word9999" not in text
    assert text.endswith("interrupted; the answer so far is saved; resume it with /continue in cerebrum chat -c")
    assert window.screen.cursor == (0, len(window.screen.lines))
    assert not window.screen.cursor_hidden
    assert "Traceback" not in window.output


def test_ask_notes_that_it_waits_for_standard_input(open_terminal: OpenTerminal, chatml_model: Path) -> None:
    ask = ("ask", "hi", "-n", "1", "--model", str(chatml_model))
    window = open_terminal("sh", "-c", f"sleep 30 | {join([COMMAND, *ask])}")
    window.wait_for_output("note: reading standard input")
    window.type("\x03")
    assert window.end() != 0
    assert "Traceback" not in window.output


def test_settings_are_listed_with_ranges_and_defaults(open_terminal: OpenTerminal) -> None:
    window = open_terminal(COMMAND, "ask", "--set", "help", size=(80, 200))
    window.wait_for("llama.cpp's log")
    place = window.screen.lines.index(f"{'min_p':19}Drop tokens below P times the likeliest")
    assert window.screen.lines[place + 1] == f"{' ' * 19}a number from 0 to 1; default: 0.05"


STYLED = "# Title\n\nSome **bold** text and `code`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n1. one\n2. two"
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:[39]\d|38;5;\d+)m")


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"FORCE_COLOR": ""}, "plain text"),
        ({"FORCE_COLOR": "1"}, "colors"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "styles"),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, "plain text"),
        ({"FORCE_COLOR": "1", "ACCESSIBLE": "1"}, "plain text"),
    ],
)
def test_pipes_have_styles_only_with_force_color(
    variables: dict[str, str], shown: str, tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = run_here({"reply": STYLED, "pause": 0.002}, tmp_path, "ask", "-m", chatml_model, "-n", "100", "Go")
    failed = run_here({}, tmp_path, "ask", "-m", chatml_model, "-n", "many", "Go")
    assert done.out == f"{STYLED}\n" if shown == "plain text" else "\x1b[1;4mTitle" in done.out
    assert not re.search(r"\x1b\[[^m]*[^m\d;]", done.out), "nothing is erased"
    assert strip_controls(done.out).count("Title") == strip_controls(done.out).count("2. two") == 1
    assert bool(COLOR.search(done.out)) == bool(COLOR.search(failed.err)) == (shown == "colors")
