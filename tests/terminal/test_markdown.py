"""What a model writes is on the screen, however it arrives, without duplicate lines.

`data/streams.json` holds replies of the starter model, and handwritten ones for what it does not generate.
"""

import json
import re
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st
from rich.color import Color
from rich.console import Console
from screen import ScreenFile, render_whole, rendered_lines

from cerebrum_cli.terminal.markdown import renderer as markdown
from cerebrum_cli.terminal.markdown.blocks import code_blocks
from cerebrum_cli.terminal.markdown.renderer import MarkdownStream
from cerebrum_cli.terminal.sinks import find_code
from cerebrum_cli.terminal.styles import COLORS, console_theme

SIZES = [(80, 24), (20, 6), (33, 4), (20, 2), (120, 60)]


def open_stream(columns: int = 80, rows: int = 24) -> tuple[ScreenFile, MarkdownStream]:
    file = ScreenFile(columns, rows)
    console = Console(file=file, width=columns, height=rows, theme=console_theme(), color_system="256")
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
    "some words that will wrap around, **bold** and `code`",
    "Setext\n---",
    "- a\n- b\n  - nested, and long enough to wrap",
    "1. one\n10) ten\n2024. Was a good year",
    "```py\nx = 1\n\n- not a list\n```",
    "    indented\n\ttab",
    "| a | b |\n|---|--:|\n| 日本 | 😀 |",
    "text before\na | b\n---|---\n1 | 2 | 3\nafter",
    "a | b\nno table",
    "> quote\n> - ```js\n>   /* c",
    "<div>html</div> &amp; \\*x\\* [a](b_c_d) ![i][1]",
    "日本語のテキストは**とても**幅が広い",
    "line  \nbreak\u2028same line",
    "```\nunclosed",
    "\\[\nx^2\n\\]",
    "\\[ unclosed\n\nmore",
    "  12\n+ 30\n----\n  42",
    "```js\n/*\n" + "".join(f" * {line}\n" for line in range(90)) + "*/\nlet x\n```",
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


# Every character that is not markup is on the screen, in order.

PIECES = ["a", "word", "1", "23", "*", "**", "_", "__", "~~", "`", " ", "\n", "\n\n", "- ", "1. ", "2) ", "# ", "> "]
PIECES += ["|", " | ", "|---|\n", "\\", "(", ")", "&amp;", "[x](y)", "    ", "+", "---\n", "===\n", "é", "日本", "\t"]
PIECES += ["!", ":", "x*y", "~"]


def letters(text: str) -> list[str]:
    return [character for character in text if character.isalnum()]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 12])
def test_every_letter_and_digit_is_on_the_screen(columns: int) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
    def holds(text: str) -> None:
        assume("~~~" not in text and "```" not in text)  # code has a number, too
        assert letters("".join(rendered_lines(text, columns, 24))) == letters(text)

    holds()


@pytest.mark.parametrize(
    "text",
    [
        "5*6*7 = 210, 2**10 - 2**3, a*b and c*d, 2 *3 + 4* 5",
        "__init__.py, __name__, _x_, snake_case_name, *args, **kwargs)",
        "f(*args, **kwargs) and g(*a, **k), rm *.o *.a, **/*.py",
        ".*foo.*, print('*' * 3, '*'), ('_', '_'), # -*- coding: utf-8 -*-, /usr/lib/*_test_*.so",
        "SELECT *, count(*) FROM t; int *p, *q;",
        "C:\\_new\\*.txt \\d+\\.\\d* \\*no\\* &lt; &amp; <b>x</b> f[a](b.c) [a]() [a](b) [1]: http://b_c.d/*e*",
        "10~~20~~30, ~5 minutes ~ 10 ~, 4 * 5 * 6, * not *, ** not **",
        "An old silent pond\n  A frog jumps in\nSplash! Silence again",
        "3. three\n7. seven\n9) nine\n2024. Was a good year",
        "Name:  Ann\nAge:   5",
        "  12\n+ 30\n----\n  42\n\n- 5\n* 6\n+ 7\n---\n***",
        "- [x] done\n- [ ] open\nTitle\n===\n>>> 1 + 1\n>no quote",
        "It costs $5 and $10; echo $HOME $PATH, US$ 3 and 4 US$.",
        "${x}+${y} $(a)/$(b) $$ and $$ \\$5=\\$6 $5=£4, $6=£5",
        "\\(group\\) and \\[link\\](u), \\[1\\] note",
        "\\begin{tabular}{l}\n  a & b\n\\end{tabular}",
        "a | b, and || too; f(**a)/g(**b), $12 x 5 = $<<12*5=60>>60",
        "\\(x \\[ $x \\begin{a}",
        # code without a fence, with its comments
        "# config\nname: x\nservices:\n  # the web\n  web:\n    # image\n    image: x\n# next\n---\na: b\n# end",
        "# run each day\n0 5 * * * /usr/bin/backup\n# and hourly\n\n# more\n@hourly foo",
        "#!/bin/sh\n# Install\nnpm install | tee log\n\n# Next step\n\nmake\n\n# Output: 5",
        "# Logs\n*.log\n\n# Env\n.env\n\n# loop\nfor i in 1:10\n\n# rows\nSELECT * FROM t\n\n# local\n127.0.0.1 me",
        "# Load\n\nimport os\n# A run\n# of comments\n\nfor a in b:\n    # Print\n    print(a)\n\n# Done",
    ],
)
def test_text_that_is_no_markup_is_shown_as_written(text: str) -> None:
    assert rendered_lines(text, 120, 24) == text.split("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("I said *really*, _truly_ and ***both***.", "I said really, truly and both."),
        ("**Note:** __two words__ and ~~old~~ **`x`**", "Note: two words and old x"),
        ("Use `a*b*c` and ``a`b``.", "Use a*b*c and a`b."),
        (
            "H<sub>2</sub>O, x<sup>2</sup>y, <kbd>F1</kbd>, <sub>q</sub>, <b>x</b>",
            "H₂O, x²y, F1, <sub>q</sub>, <b>x</b>",
        ),
        ("**重要**な**点**です", "重要な点です"),
        ("### A *title* ###", "A title"),
        ("> quoted\n>\n> > - a", "│ quoted\n│\n│ │ - a"),
        ("# Code\n\nx = 1\n\n# Use\n\nRun *it*.\n# End", "# Code\n\nx = 1\n\nUse\n\nRun it.\nEnd"),
        ("a: 1\n\n# B\nb: 2\n\n# C\nNone.\n# D\nclass is over.", "a: 1\n\n# B\nb: 2\n\nC\nNone.\nD\nclass is over."),
        ("# E\nfor each of these:\n\n# F\nreturn it soon.", "E\nfor each of these:\n\nF\nreturn it soon."),
        ("1. a\n    ```\n    x = 1\n    ```\n\n# B", "1. a\n┌─ [1]\nx = 1\n└─\n\nB"),
        ("# Rain\nthe soft drops\n\n# Food\n\n- salt: 2", "Rain\nthe soft drops\n\nFood\n\n- salt: 2"),
        ("- **a**: 1\n  1. *b*", "- a: 1\n  1. b"),
        ('(*a*), *"b," c.* and **.env**', '(a), "b," c. and .env'),
        ("| a | b |\n|---|---|\n| **x** | y<br>z |", "a   b\n─────\nx   y\n    z"),
        ("| a |\n|---|\n| `x\\|y` |\n| p \\| q |", "a\n─────\nx|y\np | q"),
    ],
)
def test_markup_becomes_styling(text: str, shown: str) -> None:
    assert rendered_lines(text, 80, 24) == shown.split("\n")


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"So \(2 \times 3 = 6\) holds.", "So 2 × 3 = 6 holds."),
        (r"$x^2 + y_{n+1}$, $42$ and $5", "x² + yₙ₊₁, $42$ and $5"),
        (r"\[\frac{-b \pm \sqrt{b^2-4ac}}{2a}\]", "  (-b ± √(b²-4ac))/(2a)"),
        ("- So\n  $$\n  \\boxed{42}\n  $$.", "- So\n    42."),
        (
            "It is: $$\nx^2\n$$\nSo \\[\nx = 2\n\\]\n|a|b|\n|---|---|\n|c|d|",
            "It is:\n  x²\nSo\n  x = 2\na   b\n─────\nc   d",
        ),
        (r"\(\frac{1}{2}\cdot\sqrt[3]{16}, e^{i\pi}, x^{ab}, A_{QQ}\)", "1/2 · ³√16, e^(iπ), xᵃᵇ, A_(QQ)"),
        (r"\(\alpha \in \mathbb{R}^n, 90^\circ, f'(x) = \sin x\)", "α ∈ ℝⁿ, 90°, f'(x) = sin x"),
        (r"\(\text{cost} = \$5, \{1, 2\}, \left.x\right|, 10\%\)", "cost = $5, {1, 2}, x|, 10%"),
        ("$$\\begin{align}\nx &= 1 \\\\\ny &= 2\n\\end{align}$$", "  x = 1\n  y = 2"),
        ("\\begin{align*}\nx &= 1 \\\\\ny &= 2\n\\end{align*}", "  x = 1\n  y = 2"),
        (r"\(\unknown{a}{b} + x^{2\) and `\(x\)`", r"\(\unknown{a}{b} + x^{2\) and \(x\)"),
        (r"\(\unknown{a}{b} + \pi\)", r"\(\unknown{a}{b} + \pi\)"),
        (r"\(\begin{picture}a\end{picture}\), \(\ddot{x}\)", "\\(\\begin{picture}a\\end{picture}\\), \u1e8d"),
        (
            r"\(r\cos\varphi, 2\sin x\cos2x, n\log_2 n, \frac{1}{2}\sin x, \ln \frac{a}{b}, \lambda_{\max}\)",
            "r cos φ, 2 sin x cos 2x, n log₂ n, (1/2) sin x, ln(a/b), λₘₐₓ",
        ),
        (
            r"$\sec x \csc x \cot x, \Pr(A\mid B), f\colon A\to B, A\xrightarrow[k]{\Delta}B, x\overset{?}{=}y$",
            "sec x csc x cot x, Pr(A | B), f: A → B, A →ₖ^Δ B, x =^? y",
        ),
        (
            r"$\text{NH}_4^+, x_{1,2}, 25^\circ C, \cancel{5}, \underset{n}{\max}, \frac{\partial f}{\partial x}$",
            "NH₄⁺, x₁,₂, 25° C, 5̶, maxₙ, ∂f/∂x",
        ),
        (
            r"\(\ce{2H2 + O2 -> 2H2O}, \ce{Fe^3+ + SO4^2- + OH- <=> NH4+}, \ce{[Cu(NH3)4]^{2+}}\)",
            "2H₂ + O₂ → 2H₂O, Fe³⁺ + SO₄²⁻ + OH⁻ ⇌ NH₄⁺, [Cu(NH₃)₄]²⁺",
        ),
        (
            r"\[f(x) = \begin{cases} x, & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases}\]",
            "  f(x) = {x, if x ≥ 0; -x, otherwise}",
        ),
        (
            r"\(\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}, \left[ \frac{a}{b} \right], \underbrace{a+b}_{c}\)",
            "(1, 0; 0, 1), [a/b], (a+b)_c",
        ),
        (
            r"\(3\frac{1}{2}, \frac{a}{b}\frac{c}{bd}, \frac{x}{2}^2, \frac{1}{n}\sum x\)",
            "3 1/2, (a/b)(c/(bd)), (x/2)², (1/n)∑ x",
        ),
        (
            r"\(\sqrt{2}x, 3\sqrt{2}, \sqrt{ab}c, \frac{\sqrt{2}}{2}, 5--3, f''(x), 9.8~\text{m}\)",
            "√(2)x, 3√2, √(ab)c, √2/2, 5--3, f''(x), 9.8 m",
        ),
        (
            r"\(a \land \vec{v}, e^{-x^2/2}, 50% \times 2\) and \(\hat{x+y}\)",
            r"a ∧ v⃗, e^(-x²/2), 50% × 2 and \(\hat{x+y}\)",
        ),
        ("It costs $$\nand no more", "It costs $$\nand no more"),
        (
            r"$2 \times 5 = 10$, $ x^2 $, $-5$, $Name$, $n_1$2, \(n\)th, \(ABC\)",
            "2 × 5 = 10, $ x^2 $, $-5$, $Name$, $n_1$2, nth, ABC",
        ),
        (
            "$x$ and $y$: $2x + y = 3$, $P(A|B)$, $0! = 1$, $[0, 1)$, **$AB$**, the $n$th, $ABC$, $1 < x$; $A$1",
            "x and y: 2x + y = 3, P(A|B), 0! = 1, [0, 1), AB, the nth, ABC, 1 < x; $A$1",
        ),
        ("$12 x 5 = $<<12*5=60>>60, $ 5 and $ 6", "$12 x 5 = $<<12*5=60>>60, $ 5 and $ 6"),
        (r"sed 's/\([a-z]*\).*/\1/', \[a-z\], \\(x\\), $$$$", r"sed 's/\([a-z]*\).*/\1/', \[a-z\], \\(x\\), $$$$"),
        ("| a | b |\n|---|---|\n| $|x|^2$ | 1 |", "a      b\n────────\n|x|²   1"),
        ("|a ($)|b ($)|\n|---|---|\n| 5$ | $6 |\n|5$|6$|", "a ($)   b ($)\n─────────────\n5$      $6\n5$      6$"),
    ],
)
def test_mathematics_is_shown_as_unicode(latex: str, shown: str) -> None:
    assert rendered_lines(latex, 80, 24) == shown.split("\n")


def test_table_in_a_narrow_window_has_a_line_for_each_value() -> None:
    table = "| name | description |\n|---|---|\n| alpha | something_that_is_long and more |\n| beta | b |"
    assert rendered_lines(table, 40, 24)[0].split() == ["name", "description"]
    assert rendered_lines(table, 20, 24) == [
        "name: alpha",
        "description:",
        "something_that_is_lo",
        "ng and more",
        "",
        "name: beta",
        "description: b",
    ]
    assert rendered_lines("| a_long_header | b |\n|---|---|\nafter", 12, 24) == ["a_long_heade", "r:", "b:", "after"]


def test_rows_of_several_lines_in_a_table_are_told_apart_and_cut_no_word() -> None:
    table = (
        "| | what it is |\n|---|---|\n| internationalization | texts in files that anyone can edit |\n| b | c |\n|d|e|"
    )
    assert rendered_lines(table, 40, 24) == [
        "                       what it is",
        "─" * 40,
        "internationalization   texts in files",
        "                       that anyone can",
        "                       edit",
        "",
        "b                      c",
        "d                      e",
    ]
    table = "| 语言 | 优点 |\n|---|---|\n| Python | 简单易学，拥有丰富的库 |"
    assert rendered_lines(table, 24, 24)[2:] == ["Python   简单易学，拥有", "         丰富的库"]


@pytest.mark.usefixtures("redraw_always")
def test_notice_is_printed_above_what_is_redrawn() -> None:
    file, stream = open_stream(30)
    stream.feed("one two\nthree fo")
    stream.pause()
    file.write("note: x\n")
    stream.feed("ur five\n")
    stream.close()
    assert file.screen.lines == ["one two", "note: x", "three four five"]


# Appearance and cost.


@pytest.mark.usefixtures("redraw_always")
def test_addresses_longer_than_a_row_are_links() -> None:
    address = "https://example.com/" + "a/long/path/" * 5
    file = streamed(f"See {address}, or https://example.com.", 40, 24, step=200)
    links = re.findall(r"\x1b\]8;[^;]*;([^\x1b]*)\x1b", file.getvalue())
    assert set(links) == {address, ""}  # each end of a link has no address
    assert "".join("".join(file.screen.lines).split()) == f"See{address},orhttps://example.com."


LINKS = '**[a *b*](http://x.y/(z)_)**, [m](mailto:a@b.c "c"), '
LINKS += "[http://x](http://x), [x.org](http://y), ![i](#j), [l](m/n)"
WITH_ADDRESSES = 'a b (http://x.y/(z)_), m (a@b.c "c"), http://x, x.org (http://y), i (#j), l (m/n)'


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"TERM_PROGRAM": "vscode"}, "a b, m, http://x, x.org (http://y), i (#j), l (m/n)"),
        ({"TERM_PROGRAM": "vscode", "TMUX": "/tmp/tmux"}, WITH_ADDRESSES),
        ({}, WITH_ADDRESSES),
    ],
    ids=["known terminal", "within tmux", "unknown terminal"],
)
def test_link_shows_its_text_and_without_hyperlinks_its_address(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shown: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = streamed(LINKS, 200)
    assert file.screen.lines == [shown]
    links = set(re.findall(r"\x1b\]8;[^;]*;([^\x1b]+)\x1b", file.getvalue()))
    assert ("http://x.y/(z)_" in links) == ("x.y" not in shown)


@pytest.mark.parametrize("columns", [1, 5, 7])
def test_markdown_list_shows_long_numbers_in_few_columns(columns: int) -> None:
    assert rendered_lines("123456789. hello", columns, 24)[0] == "123456789"[:columns]


@pytest.mark.usefixtures("redraw_always")
def test_markdown_is_left_aligned_and_readable_on_light_backgrounds() -> None:
    file = streamed("# Title\n\n`code`\n\n> quote", 200, 24)
    assert file.screen.lines == ["Title", "", "code", "", "│ quote"]
    assert "\x1b[40m" not in file.getvalue()
    assert "quote\n" in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", file.getvalue())  # rows have no trailing spaces


def test_headings_differ_by_level() -> None:
    headings = render_whole("# A\n\n## A\n\n### A\n\n#### A", 80, 24).styled_cells[::2]
    assert len(set(headings)) == 4


@pytest.mark.usefixtures("redraw_always")
def test_markdown_stream_rewrites_only_changed_rows() -> None:
    file = streamed("".join(f"- item_{number}_\n" for number in range(12)), step=4)
    assert all(file.getvalue().count(f"item_{number}_") <= 2 for number in range(12))
    frames = file.getvalue().split("\x1b[?2026h\x1b[?25l")[1:]
    assert len(frames) > 12
    assert all(frame.endswith("\x1b[?25h\x1b[?2026l") for frame in frames)


@pytest.mark.parametrize(("cost", "share"), [(0.001, 0.03), (0.03, 0.04)])
def test_markdown_stream_limits_the_share_of_time_spent_drawing(
    monkeypatch: pytest.MonkeyPatch, cost: float, share: float
) -> None:
    now, spent = [0.0], [0.0]

    def costly(*arguments: Any) -> list[Any]:
        now[0] += cost / 2  # of two calls
        spent[0] += cost / 2
        return []

    monkeypatch.setattr(markdown, "render_rows", costly)
    monkeypatch.setattr(markdown, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = MarkdownStream(Console(file=ScreenFile(80, 24)))
    for _ in range(2000):
        now[0] += 0.005
        stream.feed("word ")
    assert 0 < spent[0] < now[0] * share


def luminance(color: tuple[int, int, int]) -> float:
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    channels = [value / 255 for value in color]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("number", COLORS.values())
def test_colors_have_a_contrast_of_at_least_4_5_on_black_and_on_white(number: int) -> None:
    assert 16 <= number <= 255, "a theme may change the others"
    brightness = luminance(Color.from_ansi(number).get_truecolor())
    assert min(1.05 / (brightness + 0.05), (brightness + 0.05) / 0.05) >= 4.5
    assert (brightness + 0.05) / (luminance((0x1E, 0x1E, 0x1E)) + 0.05) >= 3.55


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
        "1. Install it:",
        "",
        "┌─ [1] bash",
        "pip install cerebrum",
        "└─",
        "",
        "│ ┌─ [2] python",
        "import cerebrum",
        "└─",
        "",
        "    indented = True",
        "",
        "┌─ [3]",
        "a-language-with-a-lo",
        "ng-name of its own",
    ]


def test_code_blocks_returns_their_contents_in_order() -> None:
    assert code_blocks(NESTED) == [
        ("pip install cerebrum", "bash"),
        ("import cerebrum", "python"),
        ("", "a-language-with-a-long-name"),
    ]
    assert code_blocks("```\r\na\r\n\r\nb\r\n```") == [("a\n\nb", "")]
    assert code_blocks("no `code` block") == []
    docstring = 'def f():\n    """Say so:\n\n    ```\n    f()\n    ```\n    """'
    assert code_blocks(f"```python\n{docstring}\n ```\n\n```\nb\n```") == [(docstring, "python"), ("b", "")]


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
            assert file.screen.lines == ["so", "┌─ [1] python", "x ="]
    stream.close()
    assert file.screen.lines == ["so", "┌─ [1] python", "x = 1", "└─", "- a", "┌─ [2]", "y", "└─"]


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


TEXTS = {name: "".join(chunks) for name, chunks in STREAMS.items()} | {"made_blocks": "\n\n".join(BLOCKS)}
TEXTS |= {"formula": r"So \(x^2\) is **b**.", "comment": "```\n# a\n\n  # b\n```\n# c"}  # cut at each place


@pytest.mark.slow
@pytest.mark.usefixtures("redraw_always")
@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", TEXTS)
def test_text_in_any_pieces_and_after_a_cut_is_the_same_screen(name: str, columns: int) -> None:
    text = TEXTS[name]
    whole = rendered_lines(text, columns, 24)
    assert streamed(text, columns, step=3).screen.lines == whole
    file, stream = open_stream(columns)
    for word in re.findall(r"\s*\S*", text):
        stream.feed(word)
    stream.close()
    assert file.screen.lines == whole
    for cut in range(1, len(text), len(text) // 20 or 1):
        first = streamed(text[:cut], columns, step=len(text)).screen.lines
        file, stream = open_stream(columns)
        stream.skip(text[:cut])
        stream.feed(text[cut:])
        stream.close()
        rest = file.screen.lines
        first += [""] * len(whole)  # a screen has no empty lines at its end
        assert first[: len(whole) - len(rest)] + rest == whole, text[:cut]
