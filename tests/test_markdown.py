"""Markdown grows on a screen into what it is at once, and no line of it is there twice."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from screen import ScreenFile, at_once

from cerebrum_cli.terminal import markdown
from cerebrum_cli.terminal.markdown import MarkdownStream

DOCUMENT = """# Title

A paragraph with **bold** words that is long enough to wrap, surely, on a window of twenty columns.
Its second line.

Setext
======

- one
- two with `code` and more words, to wrap
  - nested

- loose

1. first
2. second

```python
def f(x):
    return x * 2

# not a heading
for i in range(30):
    print(i)
```

| a | b |
|---|---|
| 1 | 日本語 |
| 2 | 😀 |

> a quote
> goes on
lazily

---

日本語のテキストはとても幅が広いので折り返しが必要です。もっと長い文章を書きます。
#hashtag is no heading, though it begins as one

* * *

Last ~~struck~~ line
"""
TALL = "before\n\n```\n" + "".join(f"line {number}\n" for number in range(40)) + "```\n\nafter"
SIZES = [(80, 24), (20, 6), (33, 4), (20, 2), (120, 60)]


def grown(text: str, columns: int, rows: int, step: int = 1) -> ScreenFile:
    """Return the screen after a stream of Markdown, a few characters at a time."""
    file = ScreenFile(columns, rows)
    stream = MarkdownStream(Console(file=file, width=columns, height=rows))
    for at in range(0, len(text), step):
        stream.feed(text[at : at + step])
    stream.close()
    return file


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal one that can be drawn on, whatever the tests run in."""
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def every_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw at every piece of text."""
    monkeypatch.setattr(markdown, "REDRAW_EVERY_S", 0.0)


@pytest.mark.usefixtures("every_character")
@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize(("text", "step"), [(DOCUMENT, 1), (TALL, 3)])
def test_markdown_grows_into_what_it_is_at_once(text: str, step: int, columns: int, rows: int) -> None:
    file = grown(text, columns, rows, step)
    assert file.screen.lines == at_once(text, columns, rows)
    assert file.screen.cursor == (0, len(file.screen.lines))
    assert not file.screen.cursor_hidden


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
]


@pytest.mark.usefixtures("every_character")
def test_markdown_of_any_blocks_grows_into_what_it_is_at_once() -> None:
    @given(
        st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5),
        st.sampled_from(["\n", "\n\n"]),
        st.sampled_from(SIZES[:4]),
        st.integers(1, 7),
    )
    def holds(blocks: list[str], between: str, size: tuple[int, int], step: int) -> None:
        text = between.join(blocks)
        assert grown(text, *size, step).screen.lines == at_once(text, *size)

    holds()


@pytest.mark.usefixtures("every_character")
def test_a_finished_block_is_written_once() -> None:
    file = grown("first block\n\nsecond block\n\nthird", 80, 24)
    assert "first block" not in file.getvalue().partition("third")[2]
    assert len(re.findall("first block", file.getvalue())) <= len("first block\n\nsecond block")


@pytest.mark.usefixtures("every_character")
def test_markdown_leaves_no_spaces_to_be_copied() -> None:
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", grown("# Title\n\nshort\n\n- item\n\n> quote", 80, 24).getvalue())
    assert "short\n" in text
    assert "item\n" in text
    assert "quote\n" in text


def test_markdown_is_not_drawn_at_every_token() -> None:
    assert grown("word " * 2000, 80, 24).getvalue().count("\r") < 200
