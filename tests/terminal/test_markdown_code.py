"""Code blocks of a reply: numbered, labeled, copied, and shown while they stream."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from screen import ScreenFile, render_whole, rendered_lines

from cerebrum_cli.terminal.markdown.code_blocks import code_blocks, find_code
from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

pytestmark = pytest.mark.usefixtures("redraw_always")

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
        ("Python", False, "def f():\n    return 1"),
        ("python3", True, "def f():\n    return 1"),
        ("bash", False, "ls"),
        ("js", False, "f("),
        ("rust", False, None),
        ("no such language", False, None),
    ],
)
def test_find_code_takes_a_fenced_block_of_a_language(language: str | None, last: bool, code: str | None) -> None:
    assert find_code(MIXED, language, last) == code


def test_find_code_knows_languages_without_a_lexer_by_name() -> None:
    assert find_code("```Quux\na\n```", "quux") == "a"
    assert find_code("no `code`\n\n    indented\n\n```\n \n```") is None


def test_code_block_is_streamed_without_its_fence() -> None:
    text = "so\n```python\nx = 1\n```\n- a\n  ```\n  y\n  ```\n"
    file = ScreenFile(80, 24)
    stream = MarkdownStream(Console(file=file, width=80, height=24))
    for at, character in enumerate(text):
        stream.feed(character)
        assert not any("`" in line for line in file.screen.lines), text[: at + 1]
        if text[: at + 1].endswith("x ="):
            assert file.screen.lines == ["so", "", "[1] python", "  x ="]
    stream.close()
    assert file.screen.lines == ["so", "", "[1] python", "  x = 1", "", " • a", "   [2]", "     y"]


@pytest.mark.parametrize(
    ("begin", "line"), [("```\n", ""), ("- one\n\n  ```\n", "  "), ("", "- "), ("> 1. quoted\n", ">    - "), ("", "# ")]
)
def test_long_block_is_readable_while_it_streams(begin: str, line: str) -> None:
    file = ScreenFile(80, 12)
    stream = MarkdownStream(Console(file=file, width=80, height=12))
    text = begin + "".join(f"{line}line {number}\n" for number in range(60))
    for line in text.splitlines(keepends=True):
        stream.feed(line)
    read = re.findall(r"line (\d+)", "\n".join(file.screen.lines))
    assert read[:40] == [str(number) for number in range(40)]


@pytest.mark.parametrize(("language", "begin", "end"), [("js", "/*", "*/"), ("html", "<!--", "-->")])
def test_code_comment_has_its_color_before_it_is_closed(language: str, begin: str, end: str) -> None:
    comment = f"```{language}\n{begin} let x\n"
    assert (
        render_whole(comment + "let y\n" * 30, 80, 60).styled_cells[1]
        == render_whole(f"{comment}{end}\n```", 80, 60).styled_cells[1]
    )
