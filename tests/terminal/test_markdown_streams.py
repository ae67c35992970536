"""Recorded replies, streamed by token and split at every position, end up on the screen like the complete reply.

`data/streams.json` holds replies of the starter model, and handwritten ones for what it does not generate.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from screen import Screen, ScreenFile, render_whole

from cerebrum_cli.terminal.markdown.code_blocks import (
    CLOSINGS,
    CODE,
    END,
    OPENINGS,
    TextPosition,
    code_lines,
    highlight_chunks,
    parse,
    slice_tokens,
    split_leaves,
)
from cerebrum_cli.terminal.markdown.elements import render_rows
from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("redraw_always")]

STREAMS: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "streams.json").read_text(encoding="utf-8")
)
SIZES = [(80, 24), (20, 6), (33, 12)]
HANDWRITTEN = ("made_line_ends", "made_wide_table", "nested_list")


@cache
def rendered(name: str, columns: int, height: int) -> Screen:
    """Render a complete reply on a screen."""
    return render_whole("".join(STREAMS[name]), columns, height)


def console(columns: int, height: int) -> Console:
    """A console with a screen."""
    return Console(file=ScreenFile(columns, height), width=columns, height=height, color_system="256")


def screen(of: Console) -> Screen:
    """Screen of a console."""
    assert isinstance(of.file, ScreenFile)
    return of.file.screen


@pytest.mark.parametrize(("columns", "height"), SIZES)
@pytest.mark.parametrize("name", STREAMS)
def test_recorded_stream_ends_like_the_document_with_its_colors(name: str, columns: int, height: int) -> None:
    window, expected = console(columns, height), rendered(name, columns, height)
    stream = MarkdownStream(window)
    scrolled = 0
    for chunk in STREAMS[name]:
        stream.feed(chunk)
        if screen(window).scrolled_rows > scrolled:  # rows in the scrollback are final and not duplicated
            scrolled = screen(window).scrolled_rows
            assert screen(window).lines[:scrolled] == expected.lines[:scrolled]
    stream.close()
    assert screen(window).lines == expected.lines
    assert screen(window).styled_cells == expected.styled_cells


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        *((name, 30 if name in HANDWRITTEN else 10) for name in STREAMS),
        *(pytest.param(name, 10_000, marks=pytest.mark.fuzz) for name in HANDWRITTEN),
    ],
)
def test_recorded_stream_split_anywhere_ends_like_the_document(name: str, splits: int) -> None:
    text = "".join(STREAMS[name])
    stride = max(1, len(text) // splits)  # with more splits than characters, everywhere
    for at in range(0, len(text) + 1, stride):
        columns, height = SIZES[at // stride % 3]
        window = console(columns, height)
        stream = MarkdownStream(window)
        stream.feed(text[:at])
        stream.feed(text[at:])
        stream.close()
        assert screen(window).lines == rendered(name, columns, height).lines, at


@pytest.mark.parametrize("name", STREAMS)
def test_slices_of_a_reply_render_like_the_whole(name: str) -> None:
    window = console(50, 24)
    tokens = parse("".join(STREAMS[name]))
    expected = render_rows(window, window.options, slice_tokens(tokens, TextPosition(), END))
    for position in positions(name):
        before = render_rows(window, window.options, slice_tokens(tokens, TextPosition(), position))
        assert before + render_rows(window, window.options, slice_tokens(tokens, position, END)) == expected, position


def positions(name: str) -> list[TextPosition]:
    """Every position at which a reply can be split."""
    leaves = [
        step[0] for step in split_leaves(parse("".join(STREAMS[name]))) if step[0].type not in (*OPENINGS, *CLOSINGS)
    ]
    lines = [
        TextPosition(leaf, end)
        for leaf, token in enumerate(leaves)
        if token.type in CODE
        for _, end in highlight_chunks(len(code_lines(token)))
    ]
    return [*(TextPosition(leaf) for leaf in range(len(leaves) + 1)), *lines]
