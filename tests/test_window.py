"""Which turns of a long conversation are dropped from the context: few at a time would be often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.application.chat.context_window import (
    DROP_FRACTION,
    REPLY_FRACTION,
    DroppedTurns,
    drop_oldest,
    turns_to_drop,
)
from cerebrum_cli.core.conversation import Conversation

SYSTEM = 20  # tokens of the system prompt


def talk(*sizes: int) -> Conversation:
    """Return a conversation with messages of so many tokens each, in turn."""
    conversation = Conversation(system_prompt="S")
    for number, size in enumerate(sizes):
        conversation = conversation.assistant("x" * size) if number % 2 else conversation.user("x" * size)
    return conversation


def count(conversation: Conversation) -> int:
    return SYSTEM + sum(len(message.content) for message in conversation.messages)


def test_what_fits_with_room_for_a_reply_stays_whole() -> None:
    assert turns_to_drop(talk(100, 200, 30), count, 400, None) is None
    assert turns_to_drop(talk(100, 200, 31), count, 400, None) is not None


def test_a_short_reply_needs_less_room() -> None:
    assert turns_to_drop(talk(100, 200, 70), count, 400, 10) is None
    assert turns_to_drop(talk(100, 200, 71), count, 400, 10) is not None


def test_whole_turns_go_and_a_quarter_of_the_context_at_once() -> None:
    assert turns_to_drop(talk(20, 40, 20, 40, 20, 40, 20, 40, 60, 60, 10), count, 400, None) == DroppedTurns(4, 120)


def test_one_large_turn_goes_alone() -> None:
    assert turns_to_drop(talk(20, 200, 20, 40, 60), count, 400, None) == DroppedTurns(2, 220)


def test_the_last_question_stays_and_may_take_the_room_for_the_reply() -> None:
    assert turns_to_drop(talk(20, 40, 350), count, 400, None) == DroppedTurns(2, 60)


@pytest.mark.parametrize("sizes", [(390,), (20, 40, 380)])
def test_nothing_goes_where_that_does_not_help(sizes: tuple[int, ...]) -> None:
    assert turns_to_drop(talk(*sizes), count, 400, None) is None


def test_a_notice_says_what_goes_and_what_to_do() -> None:
    notice = DroppedTurns(4, 120).notice(400)
    assert "no longer reads the 4 oldest messages (120 tokens)" in notice.message
    assert "--overflow stop" in notice.hint


@given(st.lists(st.integers(1, 200), min_size=1, max_size=41).map(lambda sizes: sizes[: len(sizes) // 2 * 2 - 1 or 1]))
def test_what_is_left_fits_wherever_it_can(sizes: list[int]) -> None:
    conversation, context = talk(*sizes), 512
    tokens, drop = count(conversation), turns_to_drop(talk(*sizes), count, context, None)
    if drop is None:
        alone = count(drop_oldest(conversation, len(sizes) - 1))
        assert tokens + context // REPLY_FRACTION <= context or len(sizes) == 1 or alone >= context
        return
    left = drop_oldest(conversation, drop.messages)
    assert drop.messages % 2 == 0
    assert left.messages[0].role == "user"
    assert left.messages[-1] == conversation.messages[-1]
    assert (left.system_prompt, count(left)) == ("S", tokens - drop.tokens)
    if len(left.messages) > 1:
        assert count(left) + context // REPLY_FRACTION <= context
        assert drop.tokens >= context // DROP_FRACTION
    assert count(left) < context
