"""Control sequences are stripped from text, however it is split into chunks."""

import re

import pytest
from hypothesis import example, given, strategies as st

from cerebrum_cli.core.text import MAX_HELD, strip_complete, strip_controls

INVISIBLE = (
    *("\x1b[2J\x1b[1;1H", "\x1b[?1049h", "\x1b]0;title\x07", "\x1b]0;title\x1b\\", "\x1b]52;c;aGk=\x07"),
    *("\x1bPq#0~\x1b\\", "\x1b_G\x1b\\", "\x9b31m", "\x9d0;title\x9c", "\x1bc", "\x1b(0", "\x1b#8"),
)
SEQUENCES = {
    **{f"a{sequence}b": "ab" for sequence in INVISIBLE},
    "a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b": "alinkb",
    "a\x1b[31mred\x1b[0m": "ared",
    "a\x85\x8d\x9fb\x9c": "a",
    "a\x1b": "a",
    "a\x1b\nb": "a\nb",
    "a\x1b[31": "a[31",
    "a\x1b]0;never ends": "a]0;never ends",
    "one\rtwo\r\nthree": "onetwo\nthree",
    "a\x08\x08b\x07\x7f\x00c": "abc",
    "tab\tline\nend": "tab\tline\nend",
    "pay \u202egpj.exe\u202c \u2066now\u2069 \u202a\u202b\u202d\u2067\u2068": "pay gpj.exe now ",
    "שלום \u200f\u200e\u061c مرحبا": "שלום \u200f\u200e\u061c مرحبا",
    "é 日本語 😀 \N{NO-BREAK SPACE}": "é 日本語 😀 \N{NO-BREAK SPACE}",
}


@pytest.mark.parametrize(("text", "clean"), SEQUENCES.items())
def test_control_filter_strips_sequences_split_anywhere(text: str, clean: str) -> None:
    assert strip_controls(text) == clean
    for split in range(len(text) + 1):
        assert streamed([text[:split], text[split:]]) == clean
    assert streamed(list(text)) == clean


def streamed(chunks: list[str]) -> str:
    clean, held = "", ""
    for chunk in chunks:
        text, held = strip_complete(held + chunk)
        clean += text
    return clean + strip_controls(held)


PARTS = (*SEQUENCES, "\x1b", "[", "]", "\\", "\x07", "3", "m", "\x9b", "P", "\0", "\u2068", "é", "\n", "a b")


@given(st.lists(st.sampled_from(PARTS) | st.characters(max_codepoint=0x9F), max_size=16))
@example(["\x1b]a\x1b", "[3", "1m"])
def test_control_filter_output_does_not_depend_on_the_chunks(chunks: list[str]) -> None:
    clean = streamed(chunks)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", clean)
    assert clean == strip_controls("".join(chunks))


def test_control_filter_holds_back_a_limited_number_of_characters() -> None:
    text = "\x1b]0;" + "x" * MAX_HELD
    assert strip_complete(text[:MAX_HELD]) == ("", text[:MAX_HELD])
    assert streamed([*text, "shown"]).endswith("xxshown")
