"""The reader of a reply: its channels, stop strings and characters, however the stream is cut into pieces."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from cases import rows
from hypothesis import example, given, strategies as st
from thinkers import answering_late

from cerebrum_cli.formats.markup import REASONING_MARKUPS
from cerebrum_cli.formats.prompt_format import PromptFormat, ReasoningMarkup
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText, SplitText

THINK = REASONING_MARKUPS[0]
ANY_MARKUP = PromptFormat(name="any", markups=REASONING_MARKUPS)
RULES = ReplyRules(REASONING_MARKUPS, trims=True)


def read(stream: list[str], rules: ReplyRules = RULES) -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces."""
    return by_channel(pieces_of([text.encode() for text in stream], rules))


def pieces_of(stream: list[bytes], rules: ReplyRules, stop: tuple[str, ...] = ()) -> list[SplitText]:
    reader = ReplyText(rules, stop)
    pieces: list[SplitText] = []
    for part in (*stream, None):
        new = reader.finish() if part is None else reader.feed(part)
        if reader.correction == "thinking":
            pieces = [("thinking", text) for _, text in pieces]
        elif reader.correction == "answer":
            pieces = [piece for piece in pieces if piece[0] == "answer"]
        reader.correction = None
        pieces += new
    assert all(text for _, text in pieces)
    return pieces


def by_channel(pieces: list[SplitText]) -> tuple[str, str]:
    thinking = "".join(text for channel, text in pieces if channel == "thinking")
    answer = "".join(text for channel, text in pieces if channel == "answer")
    return thinking, answer


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data into pieces, some of them empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 1000), max_size=30)

# Reasoning and answer.

MARKUPS = {markup.open: markup for markup in REASONING_MARKUPS}


@pytest.mark.parametrize("case", rows("reasoning"), ids=lambda case: str(case["name"]))
def test_reply_text_is_independent_of_chunks(case: dict[str, Any]) -> None:
    """The markup of a case may be known, opened by its prompt, or none; a prefix of three tokens may precede it."""
    text, expected = case["text"], (case["reasoning"], case["answer"])
    rules = ReplyRules(
        () if case.get("plain") else REASONING_MARKUPS,
        known_markups=(MARKUPS[case["known"]],) if case.get("known") else (),
        opened=MARKUPS.get(case.get("opened", "")),
        trims=case.get("trims", True),
        prefix=case.get("prefix", ""),
        prefix_tokens=3 if "prefix" in case else 0,
    )
    assert read([text], rules) == expected
    assert read([*text], rules) == expected
    for place in range(len(text)):
        assert read([text[:place], text[place:]], rules) == expected, place


@pytest.mark.parametrize("markup", REASONING_MARKUPS, ids=lambda markup: markup.open)
def test_reply_text_knows_every_markup_also_in_open_reasoning(markup: ReasoningMarkup) -> None:
    opened = ANY_MARKUP.open_markup(f"<|im_start|>assistant\n{markup.open}\n")
    assert opened and opened.close == markup.close
    rest = f"\nhm\n{markup.close}{markup.header}\n\nFour."
    texts: list[tuple[str, ReasoningMarkup | None]] = [(rest, markup)]
    if not markup.open.startswith("Here"):  # which is no markup unless the prompt has it
        texts.append((markup.open + rest, None))
    for text, block in texts:
        for place in range(len(text)):
            assert read([text[:place], text[place:]], replace(RULES, opened=block)) == ("hm", "Four.")


@pytest.mark.parametrize("end", ["", "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "<think>x", "think>"])
def test_prompt_without_an_open_tag_opens_no_reasoning(end: str) -> None:
    assert ANY_MARKUP.open_markup(end) is None


def test_reply_text_emits_certain_text_immediately() -> None:
    reader = ReplyText(RULES)
    stream = ("<think>", "a b", "</", "b>", "</think>\n", "F", "<think>")
    fed = ["".join(f"{channel} {text}" for channel, text in reader.feed(text.encode())) for text in stream]
    assert fed == ["", "thinking a b", "", "thinking </b>", "", "answer F", "answer <think>"]
    assert reader.finish() == []


@pytest.mark.parametrize(
    ("prefix", "stage", "tokens"),
    [("<think>a ", "thinking", 3), ("<think>a</think>b ", "answer", 0), ("<th", "undecided", 0)],
)
def test_reply_text_continues_a_prefix(prefix: str, stage: str, tokens: int) -> None:
    reader = ReplyText(replace(RULES, prefix=prefix, prefix_tokens=3), ("b c",))
    assert (reader.stage, reader.reasoning_tokens) == (stage, tokens)


def test_reply_text_counts_the_tokens_of_reasoning() -> None:
    reader = ReplyText(RULES)
    for number, piece in enumerate([b"<think>", b"a", b"b", b"</think>", b"c"]):
        reader.feed(piece, (number,))
    assert reader.reasoning_tokens == 3


@pytest.mark.parametrize(("reply", "ending"), rows("family_endings"))
def test_reasoning_ends_as_its_family_ends_it(reply: str, ending: str) -> None:
    has_channels = reply.startswith(("<|ch", "<|s", "<|o", " to"))
    text = ReplyText(replace(RULES, known_markups=REASONING_MARKUPS if has_channels else ()))
    text.feed_text(reply)
    assert text.open_markup and text.open_markup.ending(reply) == ending
    text.feed_text(ending)
    assert text.open_markup is None


MARKERS = sorted(
    {marker for row in REASONING_MARKUPS for marker in (row.open, row.close, row.header) if marker}, key=len
)[::-1]
fragments = st.lists(
    st.sampled_from([*MARKERS, "<", "think>", " ", "\n", "a", "</"]) | st.text(max_size=3), max_size=12
)
openings = st.sampled_from([None, *REASONING_MARKUPS])


TAGS = [text for markup in REASONING_MARKUPS[:11] for text in (markup.open, markup.close)]
TAGS += ["<answer>", "</answer>", "<|begin_of_box|>", "<Thought>"]
words = st.sampled_from([*TAGS, "<", "think>", "`", " ", "\n", ",", " is", "a", "Bc", "🙂"])
tagged = st.lists(words | st.text(max_size=3), max_size=12)


@given(tagged.map("".join), openings)
def test_reply_text_removes_only_markup_and_white_space(text: str, opened: ReasoningMarkup | None) -> None:
    shown = [text for _, text in pieces_of([text.encode()], replace(RULES, opened=opened))]
    assert "".join(map(without_tags, shown)) == without_tags(text)


def without_tags(text: str) -> str:
    tags = "|".join(map(re.escape, TAGS))
    return "".join(re.sub(tags, "", text, flags=re.IGNORECASE).split())


every_rules = st.builds(
    ReplyRules,
    markups=st.sampled_from([(), REASONING_MARKUPS]),
    opened=openings,
    trims=st.booleans(),
    stops_anywhere=st.booleans(),
)
stop_strings = st.lists(st.sampled_from(["a", " a", "\n\n", "ink>a", "</", "é", "<"]), max_size=2).map(tuple)


@given(fragments, cuts, every_rules, stop_strings)
def test_reply_text_by_channel_does_not_depend_on_where_bytes_are_cut(
    parts: list[str], places: list[int], rules: ReplyRules, stop: tuple[str, ...]
) -> None:
    data = "".join(parts).encode()
    assert by_channel(pieces_of(cut(data, places), rules, stop)) == by_channel(pieces_of([data], rules, stop))


# Characters and stop strings. Few letters, so that stop strings occur; of one to four bytes, so that they are cut.

texts = st.text("ab\néé€🙂", max_size=30)
stops = st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3).map(tuple)
anything = st.binary(max_size=30) | texts.map(str.encode)


def shown(pieces: list[bytes], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """Text shown after each piece and at the end; and whether a stop string ended it."""
    reader, texts = ReplyText(ReplyRules(), stop), [""]
    for piece in pieces:
        texts.append(texts[-1] + "".join(text for _, text in reader.feed(piece)))
        if reader.is_stopped:
            break
    rest = "".join(text for _, text in reader.finish())
    return [*texts[1:], texts[-1] + rest], reader.is_stopped


def up_to_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Text before the stop string that completes first, found by trying each length."""
    for length in range(len(text) + 1):
        found = [one for one in stop if text[:length].endswith(one)]
        if found:
            return text[: length - max(map(len, found))], True
    return text, False


@given(anything, cuts, stops)
def test_reply_text_shows_all_text_up_to_the_first_stop_string(
    data: bytes, places: list[int], stop: tuple[str, ...]
) -> None:
    texts, stopped = shown(cut(data, places), stop)
    assert (texts[-1], stopped) == up_to_stop(data.decode("utf-8", "replace"), stop)


@given(texts, cuts, stops)
def test_reply_text_holds_back_only_what_may_change(text: str, places: list[int], stop: tuple[str, ...]) -> None:
    pieces = cut(text.encode(), places)
    texts, _ = shown(pieces, stop)
    for count, now in enumerate(texts[:-1], 1):
        whole = b"".join(pieces[:count]).decode(errors="ignore")
        certain, stopped = up_to_stop(whole, stop)
        if not stopped:
            begun = [one[:length] for one in stop for length in range(1, len(one))]
            certain = whole[: len(whole) - max((len(one) for one in begun if whole.endswith(one)), default=0)]
        assert now == certain


@given(texts, texts, cuts, stops)
@example("", "<b a", [*range(20)], ("b ",))  # text like the beginning of markup
@example("b", "\n\na\n\nb", [*range(40)], ("\n\n",))  # a stop string before the answer
@example("a\n\nb", "éa\n\n", [], ("a\n\n",))  # all in one piece
def test_reply_text_ignores_stop_strings_before_the_answer(
    reasoning: str, answer: str, places: list[int], stop: tuple[str, ...]
) -> None:
    before = f"<think>{reasoning}</think>" if reasoning else ""
    reader = ReplyText(answering_late(), stop)
    pieces = [piece for part in cut(f"{before}{answer}".encode(), places) for piece in reader.feed(part)]
    pieces += reader.finish()
    expected, is_expected = up_to_stop(answer.lstrip(), stop)
    assert by_channel(pieces) == (reasoning, expected)
    assert reader.is_stopped == is_expected


@pytest.mark.parametrize(
    "pieces",
    [[b"<response>e</response>"], [b"<response>", b"e", b"</response>"], [b"<respon", b"se> \ne</", b"response>"]],
)
def test_reply_text_stops_in_an_answer_before_its_footer(pieces: list[bytes]) -> None:
    rules = replace(RULES, stops_anywhere=False)
    assert pieces_of([b"<think>a</think>", *pieces], rules, ("e",)) == [("thinking", "a")]
