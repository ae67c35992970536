"""The detokenizer: complete characters, no stop strings, no text lost or held back needlessly."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from thinkers import answer_start

from cerebrum_cli.engine.control import AnswerStartFactory
from cerebrum_cli.engine.detokenizer import Detokenizer
from cerebrum_cli.formats.thinking import markups_of
from cerebrum_cli.replies.reply_controls import AnswerDetector
from cerebrum_cli.replies.reply_stream import ReplyChannels

# Few letters, so that stop strings occur; letters of one to four bytes, so that they are split.
texts = st.text("ab\néé€🙂", max_size=30)
stops = st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3).map(tuple)
anything = st.binary(max_size=30) | texts.map(str.encode)


def fed(pieces: list[bytes], stop: tuple[str, ...], start: AnswerStartFactory | None = None) -> tuple[list[str], bool]:
    """Text shown after each piece and at the end; and whether a stop string ended it."""
    detokenizer = Detokenizer(stop, start)
    shown = [""]
    for piece in pieces:
        text, stopped = detokenizer.feed(piece)
        shown.append(shown[-1] + text)
        if stopped:
            break
    else:
        stopped = False
    rest, stopped_late = detokenizer.flush()
    return [*shown[1:], shown[-1] + rest], stopped or stopped_late


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Split data into pieces, some of them empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def up_to_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Text before the stop string that completes first, found by trying each length."""
    for length in range(len(text) + 1):
        found = [one for one in stop if text[:length].endswith(one)]
        if found:
            return text[: length - max(map(len, found))], True
    return text, False


@given(anything, st.lists(st.integers(0, 1000), max_size=30), stops)
def test_detokenizer_shows_all_text_up_to_the_first_stop_string(
    data: bytes, places: list[int], stop: tuple[str, ...]
) -> None:
    shown, stopped = fed(cut(data, places), stop)
    assert (shown[-1], stopped) == up_to_stop(data.decode("utf-8", "replace"), stop)


@given(texts, st.lists(st.integers(0, 1000), max_size=30), stops)
def test_detokenizer_holds_back_only_what_may_change(text: str, places: list[int], stop: tuple[str, ...]) -> None:
    pieces = cut(text.encode(), places)
    shown, _ = fed(pieces, stop)
    for count, now in enumerate(shown[:-1], 1):
        whole = b"".join(pieces[:count]).decode(errors="ignore")
        certain, stopped = up_to_stop(whole, stop)
        if not stopped:
            begun = [one[:length] for one in stop for length in range(1, len(one))]
            certain = whole[: len(whole) - max((len(one) for one in begun if whole.endswith(one)), default=0)]
        assert now == certain


@given(texts, texts, st.lists(st.integers(0, 1000), max_size=60), stops)
@example("", "<b a", [*range(20)], ("b ",))  # text like the beginning of markup
@example("b", "\n\na\n\nb", [*range(40)], ("\n\n",))  # a stop string before the answer
@example("a\n\nb", "éa\n\n", [], ("a\n\n",))  # all in one piece
def test_detokenizer_ignores_stop_strings_before_the_answer(
    reasoning: str, answer: str, places: list[int], stop: tuple[str, ...]
) -> None:
    before = f"<think>{reasoning}</think>" if reasoning else ""
    body = answer.lstrip()
    blank = answer[: len(answer) - len(body)]
    shown, stopped = fed(cut(f"{before}{answer}".encode(), places), stop, answer_start())
    expected, is_expected = up_to_stop(body, stop)
    assert (shown[-1], stopped) == (before + blank + expected, is_expected)


def test_detokenizer_stops_in_an_answer_before_its_footer() -> None:
    channels = ReplyChannels(markups_of("<response></response>"))
    start = partial(AnswerDetector, channels, {"<response>": frozenset(), "<think>": frozenset()})
    for pieces in (
        [b"<response>e</response>"],
        [b"<response>", b"e", b"</response>"],
        [b"<respon", b"se> \ne</", b"response>"],
    ):
        shown, stopped = fed(pieces, ("e",), start)
        assert (shown[-1].rstrip(), stopped) == ("<response>", True)
