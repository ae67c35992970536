"""`cerebrum ask` in a real terminal: its display, keys and signals."""

import json
import re
import sys
from pathlib import Path
from shlex import join
from typing import Any

import pytest
from command_line import COMMAND, fixed_reply_grammar
from person import OpenTerminal
from screen import rendered_lines
from scripted_command import SCRIPTED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


def scripted(script: dict[str, Any], model: Path, *arguments: str) -> tuple[str, ...]:
    return sys.executable, SCRIPTED, json.dumps(script), "ask", "-m", str(model), *arguments, "hi"


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
    open_terminal: OpenTerminal, chatml_model: Path, size: tuple[int, int], is_quiet: bool, exported: str
) -> None:
    arguments, env = (("-q",), {"NO_COLOR": "1"}) if is_quiet else ((), {})
    env |= {"COLUMNS": exported, "LINES": exported}  # of another window
    script = {"reply": REPLY, "pause": 0.0005, "load": 0.6}
    window = open_terminal(*scripted(script, chatml_model, *arguments), size=size, **env)
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
def test_ask_prints_plain_lines_on_dumb_and_accessible_terminals(
    open_terminal: OpenTerminal, chatml_model: Path, env: dict[str, str]
) -> None:
    window = open_terminal(*scripted({"reply": REPLY, "load": 0.2}, chatml_model), **env)
    assert window.end() == 0
    assert "\x1b" not in window.output
    assert window.screen.lines[0] == "# Title"


def test_ask_redirects_plain_text_and_keeps_the_status_line_on_screen(
    open_terminal: OpenTerminal, chatml_model: Path, tmp_path: Path
) -> None:
    text = "# Title\n\n" + "".join(f"word{number} " for number in range(40)) + "end"
    command = scripted({"reply": text, "load": 0.5}, chatml_model)
    window = open_terminal("sh", "-c", f'"$0" "$@" > {tmp_path}/out', *command)
    assert window.end() == 0
    assert (tmp_path / "out").read_text() == f"{text}\n"
    assert "loading chatml 50%" in window.output
    assert window.screen.lines == []


WORDS = "".join(f"word{number} " for number in range(10_000))


def test_ask_ctrl_c_keeps_the_partial_answer_on_screen(open_terminal: OpenTerminal, chatml_model: Path) -> None:
    window = open_terminal(*scripted({"reply": WORDS, "pause": 0.002}, chatml_model))
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
