"""Splitting a streamed reply into reasoning and answer, however the stream is chunked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.formats.thinking import (
    REASONING_MARKUPS,
    ReasoningMarkup,
    ReasoningSplitter,
    SplitText,
    markups_of,
    open_markup,
)

Markups = tuple[ReasoningMarkup, ...]
THINK = REASONING_MARKUPS[0]


def split(*stream: str, opened: ReasoningMarkup | None = None, markups: Markups = REASONING_MARKUPS) -> list[SplitText]:
    """Split a stream, and join adjacent texts of one channel."""
    splitter = ReasoningSplitter(markups, opened)
    pieces = [piece for text in stream for piece in splitter.feed(text)] + splitter.flush()
    assert all(text for _, text in pieces)
    return [
        (channel, "".join(text for _, text in group))
        for channel, group in itertools.groupby(pieces, key=lambda piece: piece[0])
    ]


def reasoning_and_answer(*stream: str, **known: Any) -> tuple[str, str]:
    pieces = split(*stream, **known)
    thinking, answer = ("".join(text for to, text in pieces if to == channel) for channel in ("thinking", "answer"))
    return thinking, answer


CASES = json.loads((Path(__file__).parents[1] / "data" / "reasoning.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_splitter_result_is_independent_of_chunks(case: dict[str, str]) -> None:
    text, expected = case["text"], (case["reasoning"], case["answer"])
    assert reasoning_and_answer(text) == expected
    assert reasoning_and_answer(*text) == expected
    for cut in range(len(text)):
        assert reasoning_and_answer(text[:cut], text[cut:]) == expected, cut


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><response>b</response>", ("a", "b")),
        ("<think>a</think>\n<response>\nb </b> </response>\n", ("a", "b </b>")),
        ("<think>a</think><response>b</response>c</resp", ("a", "b</response>c</resp")),
        ("<think>a</think>b</response>", ("a", "b</response>")),
        ("<xml></response>", ("", "<xml></response>")),
    ],
)
def test_splitter_drops_the_tags_around_an_answer_of_granite(text: str, expected: tuple[str, str]) -> None:
    markups = markups_of("Write your response between <response></response>.")
    for cut in range(len(text)):
        assert reasoning_and_answer(text[:cut], text[cut:], markups=markups) == expected


@pytest.mark.parametrize("markup", REASONING_MARKUPS, ids=lambda markup: markup.open)
def test_splitter_knows_every_markup_also_in_open_reasoning(markup: ReasoningMarkup) -> None:
    opened = open_markup(f"<|im_start|>assistant\n{markup.open}\n", REASONING_MARKUPS)
    assert opened and opened.close == markup.close
    rest = f"\nhm\n{markup.close}{markup.header}\n\nFour."
    for text, block in ((markup.open + rest, None), (rest, markup)):
        for cut in range(len(text)):
            assert split(text[:cut], text[cut:], opened=block) == [("thinking", "hm"), ("answer", "Four.")]


def test_no_marker_is_a_prefix_of_another() -> None:
    markers = {marker for markup in REASONING_MARKUPS for marker in (markup.open, markup.header) if marker}
    assert not [(a, b) for a in markers for b in markers if a != b and b.startswith(a)]


@pytest.mark.parametrize("end", ["", "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "<think>x", "think>"])
def test_prompt_without_an_open_tag_opens_no_reasoning(end: str) -> None:
    assert open_markup(end, REASONING_MARKUPS) is None


def test_splitter_without_markup_or_without_its_end() -> None:
    assert reasoning_and_answer("hm</th", opened=THINK) == ("hm</th", "")
    assert reasoning_and_answer(opened=THINK) == ("", "")
    assert split(" <think>a", "</think> ", markups=()) == [("answer", "<think>a</think>")]


def test_splitter_emits_certain_text_immediately() -> None:
    splitter = ReasoningSplitter(REASONING_MARKUPS)
    stream = ("<think>", "a b", "</", "b>", "</think>\n", "F", "<think>")
    fed = ["".join(f"{channel} {text}" for channel, text in splitter.feed(text)) for text in stream]
    assert fed == ["", "thinking a b", "", "thinking </b>", "", "answer F", "answer <think>"]
    assert splitter.flush() == []


MARKERS = sorted(
    {marker for row in REASONING_MARKUPS for marker in (row.open, row.close, row.header) if marker}, key=len
)[::-1]
fragments = st.lists(
    st.sampled_from([*MARKERS, "<", "think>", " ", "\n", "a", "</"]) | st.text(max_size=3), max_size=12
)
openings = st.sampled_from([None, *REASONING_MARKUPS])


def split_whole(text: str) -> tuple[str, str]:
    """Reasoning and answer of a complete text, as a reference for the stream."""
    blocks = []
    while row := next((row for row in REASONING_MARKUPS if text.lstrip().startswith(row.open)), None):
        block, _, text = text.lstrip().removeprefix(row.open).partition(row.close)
        blocks.append(block)
    header = next((row.header for row in REASONING_MARKUPS if row.header and text.lstrip().startswith(row.header)), "")
    return "".join(blocks).strip(), text.lstrip().removeprefix(header).strip()


@given(pieces=fragments, opened=openings)
def test_splitter_removes_only_markup_and_outer_white_space(pieces: list[str], opened: ReasoningMarkup | None) -> None:
    text = "".join(pieces)
    assert reasoning_and_answer(*text, opened=opened) == split_whole(opened.open + text if opened else text)
