"""Streamed Markdown ends up on the screen like the complete document, without duplicate lines.

`data/streams.json` holds replies of the starter model, and handwritten ones for what it does not generate.
"""

import json
import re
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown
from screen import ScreenFile, render_whole, rendered_lines

from cerebrum_cli.terminal.markdown import renderer as markdown
from cerebrum_cli.terminal.markdown.code_blocks import Unit, code_blocks, find_code, parse_units
from cerebrum_cli.terminal.markdown.renderer import STYLES, MarkdownStream

SIZES = [(80, 24), (20, 6), (33, 4), (20, 2), (120, 60)]


def open_stream(columns: int = 80, rows: int = 24) -> tuple[ScreenFile, MarkdownStream]:
    file = ScreenFile(columns, rows)
    console = Console(file=file, width=columns, height=rows, theme=STYLES, color_system="standard")
    return file, MarkdownStream(console)


def streamed(text: str, columns: int = 80, rows: int = 24, step: int = 1) -> ScreenFile:
    """Stream Markdown to a screen, `step` characters at a time."""
    file, stream = open_stream(columns, rows)
    for at in range(0, len(text), step):
        stream.feed(text[at : at + step])
    stream.close()
    return file


BLOCKS = [
    "# Head line",
    "some words that will wrap around",
    "Setext\n---",
    "---",
    "- a\n- b",
    "- a\n\n- loose\n\n  in item",
    "1. one\n   - nested",
    "```py\nx = 1\n\n- not a list\n```",
    "    indented",
    "| a | b |\n|---|---|\n| 日本 | 😀 |",
    "text before\n| a | b |\n|---|---|",
    "> quote\nlazy",
    "<div>html</div>",
    "para\n#hashtag",
    "para\n```x`y",
    "para\n1. x",
    "日本語のテキストはとても幅が広い",
    "line  \nbreak\u2028same line",
    "a\x0bb\x85c",
    "```\nunclosed",
    "3. a\n7. b\n   1. c\n\n      ```\n      d\n      ```\n\n   e\n9. f",
    "- \n- \n- third",
    "* * *\n* a\n+ b",
    "> - a\n>   b\n> - ```js\n>   /* c",
    "```js\n/*\n" + "".join(f" * {line}\n" for line in range(30)) + "*/\nlet x\n```",
    "![image](a/b.png) in text\n- ![again][1]\n\n[1]: c",
]


@pytest.mark.slow
@pytest.mark.usefixtures("redraw_always")
def test_markdown_stream_of_any_blocks_ends_like_the_document() -> None:
    @settings(max_examples=30)
    @given(
        st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5),
        st.sampled_from(["\n", "\n\n"]),
        st.sampled_from(SIZES[:4]),
        st.integers(1, 7),
    )
    def holds(blocks: list[str], between: str, size: tuple[int, int], step: int) -> None:
        text = between.join(blocks)
        assert streamed(text, *size, step).screen.lines == rendered_lines(text, *size)

    holds()


# Appearance and cost.


PLAIN = """# Title

A paragraph with **bold** words that is long enough to wrap, surely, on a window of twenty columns.

- one
- two with `code` and more words, to wrap
  - nested

| a | b |
|---|---|
| 1 | 日本語 |

> a quote

日本語のテキストはとても幅が広いので折り返しが必要です。もっと長い文章を書きます。
#hashtag and ~~struck~~ words
"""


@pytest.mark.parametrize("columns", [80, 20])
def test_markdown_without_code_and_numbers_looks_like_rich(columns: int) -> None:
    file = ScreenFile(columns, 24)
    Console(file=file, width=columns).print(Markdown(PLAIN, hyperlinks=False))
    lines = [line.strip() if "Title" in line else line for line in file.screen.lines]
    assert rendered_lines(PLAIN, columns, 24) == lines


@pytest.mark.parametrize("columns", [1, 5, 7])
def test_markdown_list_shows_long_numbers_in_few_columns(columns: int) -> None:
    assert rendered_lines("123456789. hello", columns, 24)[0] == "123456789"[:columns]


@pytest.mark.usefixtures("redraw_always")
def test_markdown_is_left_aligned_short_and_readable_on_light_backgrounds() -> None:
    file = streamed("# Title\n\n`code`\n\n---\n\n> quote", 200, 24)
    assert file.screen.lines == ["Title", "", "code", "", "-" * 40, "", "▌ quote"]
    assert "\x1b[40m" not in file.getvalue()
    assert "quote\n" in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", file.getvalue())  # rows have no trailing spaces


@pytest.mark.usefixtures("redraw_always")
def test_markdown_stream_rewrites_only_changed_rows() -> None:
    file = streamed("".join(f"- item_{number}_\n" for number in range(12)), step=4)
    assert all(file.getvalue().count(f"item_{number}_") <= 2 for number in range(12))
    frames = file.getvalue().split("\x1b[?2026h\x1b[?25l")[1:]
    assert len(frames) > 12
    assert all(frame.endswith("\x1b[?25h\x1b[?2026l") for frame in frames)


def test_markdown_shows_html_and_link_definitions_as_text() -> None:
    text = "<b>bold</b> is HTML\n\n<div>\n\nsee [it][1]\n\n[1]: https://example.com"
    assert rendered_lines(text, 80, 24) == text.splitlines()


@pytest.mark.parametrize(("cost", "share"), [(0.001, 0.03), (0.03, 0.04)])
def test_markdown_stream_limits_the_share_of_time_spent_drawing(
    monkeypatch: pytest.MonkeyPatch, cost: float, share: float
) -> None:
    now, spent = [0.0], [0.0]

    def costly(*arguments: Any) -> list[Any]:
        now[0] += cost
        spent[0] += cost
        return []

    monkeypatch.setattr(markdown, "render_rows", costly)
    monkeypatch.setattr(markdown, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = MarkdownStream(Console(file=ScreenFile(80, 24)))
    for _ in range(2000):
        now[0] += 0.005
        stream.feed("word ")
    assert 0 < spent[0] < now[0] * share


@pytest.mark.slow
@pytest.mark.usefixtures("redraw_always")
@pytest.mark.parametrize(
    "line", ["- some item of a list\n", "1. an item\n   - inside one\n\n", "text\n\n", "# Title\n", "---\n"]
)
def test_markdown_stream_does_not_parse_printed_text_again(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    most = [0]

    def watched(text: str, *arguments: Any) -> list[Unit]:
        most[0] = max(most[0], len(text))
        return parse_units(text, *arguments)

    monkeypatch.setattr(markdown, "parse_units", watched)
    streamed(line * 100, step=4)
    assert most[0] < 4 * len(line)


# Code blocks: numbered, labeled, copied, and shown while they stream.

NESTED = """1. Install it:

   ```bash
   pip install cerebrum
   ```

> ~~~python
> import cerebrum
> ~~~

    indented = True

```a-language-with-a-long-name of its own
"""


def test_code_blocks_are_numbered_and_labeled_at_any_depth() -> None:
    assert rendered_lines(NESTED, 20, 24) == [
        "  1 Install it:",
        "    [1] bash",
        "      pip install",
        "      cerebrum",
        "",
        "▌ [2] python",
        "▌   import",
        "▌   cerebrum",
        "",
        "[3]",
        "  indented = True",
        "",
        "[4] a-language-with…",
    ]


def test_code_blocks_returns_their_contents_in_order() -> None:
    assert code_blocks(NESTED) == [
        ("pip install cerebrum", "bash"),
        ("import cerebrum", "python"),
        ("indented = True", None),
        ("", "a-language-with-a-long-name"),
    ]
    assert code_blocks("```\r\na\r\n\r\nb\r\n```") == [("a\n\nb", "")]
    assert code_blocks("no `code` block") == []


MIXED = """Run `ls`:

    indented

```sh
ls
```

~~~~
```py
not a block
```
~~~~

* then

  ```py title="a.py"
  def f():
      return 1
  ```

```

```

```javascript
f(
"""


@pytest.mark.parametrize(
    ("language", "last", "code"),
    [
        (None, False, "ls"),
        (None, True, "f("),  # the reply was truncated
        ("", True, "f("),
        ("python3", True, "def f():\n    return 1"),
        ("js", False, "f("),
        ("rust", False, None),
    ],
)
def test_find_code_takes_a_fenced_block_of_a_language(language: str | None, last: bool, code: str | None) -> None:
    assert find_code(MIXED, language, last) == code
    assert find_code("```Quux\na\n```", "quux") == "a"  # a language without a lexer
    assert find_code("no `code`\n\n    indented\n\n```\n \n```") is None


@pytest.mark.usefixtures("redraw_always")
def test_code_block_is_streamed_without_its_fence() -> None:
    text = "so\n```python\nx = 1\n```\n- a\n  ```\n  y\n  ```\n"
    file, stream = open_stream()
    for at, character in enumerate(text):
        stream.feed(character)
        assert not any("`" in line for line in file.screen.lines), text[: at + 1]
        if text[: at + 1].endswith("x ="):
            assert file.screen.lines == ["so", "", "[1] python", "  x ="]
    stream.close()
    assert file.screen.lines == ["so", "", "[1] python", "  x = 1", "", " • a", "   [2]", "     y"]


@pytest.mark.slow
@pytest.mark.usefixtures("redraw_always")
@pytest.mark.parametrize(("begin", "line"), [("```\n", ""), ("", "- "), ("", "# ")])
def test_long_block_is_readable_while_it_streams(begin: str, line: str) -> None:
    file, stream = open_stream(80, 12)
    text = begin + "".join(f"{line}line {number}\n" for number in range(60))
    for line in text.splitlines(keepends=True):
        stream.feed(line)
    read = re.findall(r"line (\d+)", "\n".join(file.screen.lines))
    assert read[:40] == [str(number) for number in range(40)]


@pytest.mark.parametrize(("language", "begin", "end"), [("js", "/*", "*/"), ("html", "<!--", "-->")])
def test_code_comment_has_its_color_before_it_is_closed(language: str, begin: str, end: str) -> None:
    comment = f"```{language}\n{begin} let x\n"
    opened, closed = (render_whole(text, 80, 60) for text in (comment + "let y\n" * 30, f"{comment}{end}\n```"))
    assert opened.styled_cells[1] == closed.styled_cells[1]


# Recorded replies.

WINDOWS = ((80, 24), (20, 6), (33, 12))
STREAMS: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "streams.json").read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.usefixtures("redraw_always")
@pytest.mark.parametrize(("name", "columns", "height"), [(name, *size) for name, size in zip(STREAMS, cycle(WINDOWS))])
def test_recorded_stream_ends_like_the_document_with_its_colors(name: str, columns: int, height: int) -> None:
    expected = render_whole("".join(STREAMS[name]), columns, height)
    file = ScreenFile(columns, height)
    stream = MarkdownStream(Console(file=file, width=columns, height=height, color_system="256"))
    scrolled = 0
    for chunk in STREAMS[name]:
        stream.feed(chunk)
        if file.screen.scrolled_rows > scrolled:  # rows in the scrollback are final and not duplicated
            scrolled = file.screen.scrolled_rows
            assert file.screen.lines[:scrolled] == expected.lines[:scrolled]
    stream.close()
    assert file.screen.lines == expected.lines
    assert file.screen.styled_cells == expected.styled_cells
