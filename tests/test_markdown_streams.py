"""Replies as models said them, token by token and cut at every position, grow on a screen into what they are at once.

`data/streams` holds what the starter model said, and replies made for what it does not say.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from screen import Screen, ScreenFile, render_whole

from cerebrum_cli.terminal.markdown import renderer as markdown
from cerebrum_cli.terminal.markdown.code_blocks import (
    CLOSINGS,
    CODE,
    END,
    OPENINGS,
    Position,
    code_lines,
    highlight_chunks,
    parse,
    slice_tokens,
    split_leaves,
)
from cerebrum_cli.terminal.markdown.renderer import MarkdownStream
from cerebrum_cli.terminal.markdown.rows import render_rows

STREAMS = {path.stem: path for path in sorted((Path(__file__).parent / "data" / "streams").glob("*.json"))}
SIZES = [(80, 24), (20, 6), (33, 12)]
CUT_EVERYWHERE = ("made_line_ends", "made_wide_table", "nested_list")


@cache
def pieces(name: str) -> tuple[str, ...]:
    """Return a reply in the pieces in which it was said."""
    return tuple(json.loads(STREAMS[name].read_text(encoding="utf-8")))


@cache
def at_once(name: str, columns: int, height: int) -> Screen:
    """Return a reply on a screen, rendered as a whole."""
    return render_whole("".join(pieces(name)), columns, height)


def console(columns: int, height: int) -> Console:
    """Return a console over a screen."""
    return Console(file=ScreenFile(columns, height), width=columns, height=height, color_system="256")


def screen(of: Console) -> Screen:
    """Return the screen under a console."""
    assert isinstance(of.file, ScreenFile)
    return of.file.screen


@pytest.fixture(autouse=True)
def drawn_at_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw at every piece, on a terminal that can be drawn on."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(markdown, "MIN_REDRAW_INTERVAL_S", 0.0)
    monkeypatch.setattr(markdown, "MAX_DRAWING_SHARE", 1e9)


@pytest.mark.parametrize(("columns", "height"), SIZES)
@pytest.mark.parametrize("name", STREAMS)
def test_a_reply_grows_into_what_it_is_at_once_colours_too(name: str, columns: int, height: int) -> None:
    window, expected = console(columns, height), at_once(name, columns, height)
    stream = MarkdownStream(window)
    scrolled = 0
    for piece in pieces(name):
        stream.feed(piece)
        if screen(window).scrolled_rows > scrolled:  # what has left the screen is final, and there once
            scrolled = screen(window).scrolled_rows
            assert screen(window).lines[:scrolled] == expected.lines[:scrolled]
    stream.close()
    assert screen(window).lines == expected.lines
    assert screen(window).styled_cells == expected.styled_cells


@pytest.mark.parametrize("name", STREAMS)
def test_a_reply_cut_anywhere_grows_into_what_it_is_at_once(name: str) -> None:
    text = "".join(pieces(name))
    stride = 1 if name in CUT_EVERYWHERE else len(text) // 25
    for at in range(0, len(text) + 1, stride):
        columns, height = SIZES[at // stride % 3]
        window = console(columns, height)
        stream = MarkdownStream(window)
        stream.feed(text[:at])
        stream.feed(text[at:])
        stream.close()
        assert screen(window).lines == at_once(name, columns, height).lines, at


@pytest.mark.parametrize("name", STREAMS)
def test_the_parts_of_a_reply_show_together_what_the_whole_shows(name: str) -> None:
    window = console(50, 24)
    tokens = parse("".join(pieces(name)))
    expected = render_rows(window, window.options, slice_tokens(tokens, Position(), END))
    for place in places(name):
        before = render_rows(window, window.options, slice_tokens(tokens, Position(), place))
        assert before + render_rows(window, window.options, slice_tokens(tokens, place, END)) == expected, place


def places(name: str) -> list[Position]:
    """Return every place at which a reply can be printed so far."""
    leaves = [
        step[0] for step in split_leaves(parse("".join(pieces(name)))) if step[0].type not in (*OPENINGS, *CLOSINGS)
    ]
    lines = [
        Position(leaf, end)
        for leaf, token in enumerate(leaves)
        if token.type in CODE
        for _, end in highlight_chunks(len(code_lines(token)))
    ]
    return [*(Position(leaf) for leaf in range(len(leaves) + 1)), *lines]
