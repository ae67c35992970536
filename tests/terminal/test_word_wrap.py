"""Streamed text on a terminal: rows end between words, however the text arrives in pieces."""

import pytest
from screen import Screen

from cerebrum_cli.terminal.word_wrap import WordWrap

TEXT = "Rows end between words, never within: 日本語 and https://example.org/a/long/address too.\n\n- one\ttab, two\n"
WRAPPED = [
    *("Rows end between", "words, never", "within: 日本語 and", "https://example.org/", "a/long/address too."),
    *("", "- one   tab, two"),
]
CODE = "```sh\nsome long command --with options\n```\nAnd words that are wrapped.\n"


def rows(text: str, size: int, columns: int = 20) -> list[str]:
    screen = Screen(columns, 24, lambda _: None)
    wrap = WordWrap(lambda: columns)
    for start in range(0, len(text), size):
        screen.feed(wrap.feed(text[start : start + size]).replace("\n", "\r\n").encode())
    return [line.rstrip() for line in screen.lines]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_streamed_text_is_broken_between_words(size: int) -> None:
    assert rows(TEXT, size) == WRAPPED
    assert rows(CODE, size)[:3] == ["```sh", "some long command --", "with options"]
    assert rows(CODE, size)[3:] == ["```", "And words that are", "wrapped."]
