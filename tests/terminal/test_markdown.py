"""What a model writes is on the screen, however it arrives, without duplicate lines.

`data/markdown.json` and `data/text_as_written.json` hold texts and the lines that show them; `data/streams.json` holds
replies of the starter model, and handwritten ones for what it does not generate.
"""

import re
from collections.abc import Iterable
from itertools import cycle

import pytest
from cases import cases, rows
from hypothesis import assume, given, strategies as st
from rich.color import Color
from screen import ScreenFile, render_whole, rendered_lines

from cerebrum_cli.terminal.markdown import renderer as markdown
from cerebrum_cli.terminal.markdown.blocks import code_blocks
from cerebrum_cli.terminal.markdown.renderer import MarkdownStream
from cerebrum_cli.terminal.sinks import find_code
from cerebrum_cli.terminal.styles import COLORS, styled_console


@pytest.fixture(autouse=True)
def redraw_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "MIN_REDRAW_INTERVAL_S", 0.0)
    monkeypatch.setattr(markdown, "MAX_DRAWING_SHARE", 1e9)


def open_stream(columns: int = 80, height: int = 24) -> tuple[ScreenFile, MarkdownStream]:
    file = ScreenFile(columns, height)
    return file, MarkdownStream(styled_console(file, width=columns, height=height))


def streamed(pieces: Iterable[str], columns: int = 80, height: int = 24, skipped: str = "") -> ScreenFile:
    """Stream Markdown to a screen in these pieces: a text is streamed one character at a time."""
    file, stream = open_stream(columns, height)
    stream.skip(skipped)
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    return file


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


# What is shown, in one piece.


@pytest.mark.parametrize(("what", "columns", "text", "shown"), rows("markdown"))
def test_markdown_is_shown_without_its_markup(what: str, columns: int, text: str, shown: str) -> None:
    assert rendered_lines(text, columns, 24) == shown.split("\n")


@pytest.mark.parametrize(("what", "text"), rows("text_as_written"))
def test_text_that_is_no_markup_is_shown_as_written(what: str, text: str) -> None:
    assert rendered_lines(text, 120, 24) == text.split("\n")


# Texts made of pieces: every character that is not markup is on the screen, in order.

TEXT_PIECES = {name: st.sampled_from(pieces) for name, pieces in rows("text_pieces").items()}


def letters(text: str) -> list[str]:
    return [character for character in text if character.isalnum()]


@pytest.mark.slow
@cases(300)
@given(st.lists(TEXT_PIECES["pieces of Markdown"], max_size=40).map("".join), st.sampled_from([80, 12]))
def test_every_letter_and_digit_is_on_the_screen(text: str, columns: int) -> None:
    assume("~~~" not in text and "```" not in text)  # code has a number, too
    assert letters("".join(rendered_lines(text, columns, 24))) == letters(text)


# Random texts with the delimiters of formulas. What may be either, such as `$5 + 6$`, is not among them.


def joined(parts: st.SearchStrategy[str], between: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(between, parts), max_size=4)
    return st.builds(lambda first, others: first + "".join(map("".join, others)), parts, pairs)


def prices(forms: str) -> st.SearchStrategy[str]:
    price = st.builds(str.format, TEXT_PIECES[forms], TEXT_PIECES["amounts"])
    return joined(price, TEXT_PIECES["between prices"])


def expressions(opening: str, closing: str, either: str, quantifiers: list[str]) -> st.SearchStrategy[str]:
    def group(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return joined(inner, st.sampled_from(["", either])).map(lambda body: opening + body + closing)

    atoms = st.recursive(TEXT_PIECES["atoms of regular expressions"], group, max_leaves=5)
    quantified = st.builds("{}{}".format, atoms, st.sampled_from(quantifiers))
    return joined(quantified, st.just("")).map(lambda body: f"^{body}$")


EXTENDED = expressions("(", ")", "|", ["", "", "*", "+", "?", "{3}", "{2,5}"])
BASIC = expressions(r"\(", r"\)", r"\|", ["", "*", r"\+", r"\?", r"\{3\}", r"\{2,5\}"])
NAMES = TEXT_PIECES["variables of PHP and Perl"]
STATEMENTS = st.builds("{} {} {}".format, NAMES, st.sampled_from(["=", "==", "+=", ".", "=>", "<", "=~"]), NAMES)
NO_FORMULAS = st.one_of(
    prices("prices with a sign before"),
    prices("prices with a sign behind"),
    joined(TEXT_PIECES["words of a shell"], st.just(" ")).map("echo {}".format),
    joined(TEXT_PIECES["tests of find"], st.sampled_from([" -o ", " -a "])).map(r"find . \( {} \) -print".format),
    joined(EXTENDED, st.sampled_from(["|", " or ", ", "])),
    joined(BASIC, st.sampled_from([" or ", ", "])),
    BASIC.map("sed 's/{}/\\1/g' a.txt".format),
    BASIC.map("grep -o '{}' a.txt | wc -l".format),
    EXTENDED.map("if ($x =~ /{}/i)".format),
    joined(STATEMENTS, st.sampled_from(["; ", ", ", " && "])),
    st.lists(TEXT_PIECES["columns of prices"], min_size=1, max_size=4).map("/".join),
)


@pytest.mark.slow
@cases(150)
@given(NO_FORMULAS)
def test_random_prices_shells_and_regular_expressions_stay(text: str) -> None:
    assert rendered_lines(text, 500, 10) == [text.rstrip()]


# Streams: the screen is the same in any pieces.

LONG_COMMENT = "```js\n/*\n" + "".join(f" * {line}\n" for line in range(90)) + "*/\nlet x\n```"
BLOCKS = [*rows("markdown_blocks"), LONG_COMMENT]


@pytest.mark.slow
@cases(30)
@given(
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from([(80, 24), (20, 6), (33, 4), (20, 2)]),
    st.integers(1, 7),
)
def test_markdown_stream_of_any_blocks_ends_like_the_document(
    blocks: list[str], between: str, size: tuple[int, int], step: int
) -> None:
    text = between.join(blocks)
    assert streamed(pieces(text, step), *size).screen.lines == rendered_lines(text, *size)


STREAMS: dict[str, list[str]] = rows("streams")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), list(zip(STREAMS, cycle([(80, 24), (20, 6), (33, 12)]))))
def test_recorded_stream_ends_like_the_document_with_its_colors(name: str, size: tuple[int, int]) -> None:
    expected = render_whole("".join(STREAMS[name]), *size)
    file, stream = open_stream(*size)
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
@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", TEXTS)
def test_text_in_any_pieces_and_after_a_cut_is_the_same_screen(name: str, columns: int) -> None:
    text = TEXTS[name]
    whole = rendered_lines(text, columns, 24)
    for split in (pieces(text, 3), re.findall(r"\s*\S*", text)):
        assert streamed(split, columns).screen.lines == whole
    step = len(text) // 20 or 1
    for cut in range(1 if columns == 80 else 1 + step, len(text), 2 * step):
        first = streamed([text[:cut]], columns).screen.lines
        rest = streamed([text[cut:]], columns, skipped=text[:cut]).screen.lines
        first += [""] * len(whole)  # a screen has no empty lines at its end
        assert first[: len(whole) - len(rest)] + rest == whole, text[:cut]


def test_notice_is_printed_above_what_is_redrawn() -> None:
    file, stream = open_stream(30)
    stream.feed("one two\nthree fo")
    stream.pause()
    file.write("note: x\n")
    stream.feed("ur five\n")
    stream.close()
    assert file.screen.lines == ["one two", "note: x", "three four five"]


@pytest.mark.slow
@pytest.mark.parametrize(("begin", "line"), [("```\n", ""), ("", "- "), ("", "# ")])
def test_long_block_is_readable_while_it_streams(begin: str, line: str) -> None:
    file, stream = open_stream(80, 12)
    stream.feed(begin)
    for number in range(60):
        stream.feed(f"{line}line {number}\n")
    read = re.findall(r"line (\d+)", "\n".join(file.screen.lines))
    assert read[:40] == [str(number) for number in range(40)]


# Appearance and cost.


def test_addresses_longer_than_a_row_are_links() -> None:
    address = "https://example.com/" + "a/long/path/" * 5
    file = streamed([f"See {address}, or https://example.com."], 40)
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
def test_link_shows_its_text(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shown: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = streamed(LINKS, 200)
    assert file.screen.lines == [shown]
    links = set(re.findall(r"\x1b\]8;[^;]*;([^\x1b]+)\x1b", file.getvalue()))
    assert ("http://x.y/(z)_" in links) == ("x.y" not in shown)


def test_markdown_is_left_aligned_and_readable_on_light_backgrounds() -> None:
    file = streamed("# A\n\n## A\n\n### A\n\n#### A\n\n`code`\n\n> quote", 200)
    assert file.screen.lines == [*("A", "") * 4, "code", "", "│ quote"]
    assert len({*file.screen.styled_cells[:8:2]}) == 4  # headings differ by level
    assert "\x1b[40m" not in file.getvalue()
    assert "quote\n" in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", file.getvalue())  # rows have no trailing spaces


def test_markdown_stream_rewrites_only_changed_rows() -> None:
    file = streamed(pieces("".join(f"- item_{number}_\n" for number in range(12)), 4))
    assert all(file.getvalue().count(f"item_{number}_") <= 2 for number in range(12))
    frames = file.getvalue().split("\x1b[?2026h\x1b[?25l")[1:]
    assert len(frames) > 12
    assert all(frame.endswith("\x1b[?25h\x1b[?2026l") for frame in frames)


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

CODE_BLOCKS = rows("code_blocks")


@pytest.mark.parametrize(("what", "text", "blocks"), CODE_BLOCKS)
def test_code_blocks_returns_their_contents_in_order(what: str, text: str, blocks: list[list[str]]) -> None:
    assert [[code, language] for code, language in code_blocks(text)] == blocks


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
    _, text, _ = CODE_BLOCKS[-1]
    assert find_code(text, language, last) == code
    assert find_code("```Quux\na\n```", "quux") == "a"  # a language without a lexer
    assert find_code("no `code`\n\n    indented\n\n```\n \n```") is None


def test_code_block_is_streamed_without_its_fence_and_continued_in_its_last_line() -> None:
    text = "so\n```python\nx = 1\n```\n- a\n  ```\n  y\n  ```\n"
    file, stream = open_stream()
    for at, character in enumerate(text):
        stream.feed(character)
        assert not any("`" in line for line in file.screen.lines), text[: at + 1]
        if text[: at + 1].endswith("x ="):
            assert file.screen.lines == ["so", "┌─ [1] python", "x ="]
    stream.close()
    assert file.screen.lines == ["so", "┌─ [1] python", "x = 1", "└─", "- a", "┌─ [2]", "y", "└─"]
    assert streamed(["= 1\n```"], skipped="```python\ny = 2\nx ").screen.lines == ["x = 1", "└─"]


@pytest.mark.parametrize(("language", "begin", "end"), [("js", "/*", "*/"), ("html", "<!--", "-->")])
def test_code_comment_has_its_color_before_it_is_closed(language: str, begin: str, end: str) -> None:
    comment = f"```{language}\n{begin} let x\n"
    opened, closed = (render_whole(text, 80, 60) for text in (comment + "let y\n" * 30, f"{comment}{end}\n```"))
    assert opened.styled_cells[1] == closed.styled_cells[1]
