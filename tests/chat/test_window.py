"""The context window: which turns of a long conversation are dropped, many together so that it is rare."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.chat.context_window import (
    DROP_FRACTION,
    REPLY_FRACTION,
    DroppedTurns,
    drop_oldest,
    turns_to_drop,
)
from cerebrum_cli.core.conversation import Conversation

SYSTEM = 20  # tokens of the system prompt


def conversation_of(*sizes: int) -> Conversation:
    """Build a conversation of messages with these numbers of tokens."""
    conversation = Conversation(system_prompt="S")
    for number, size in enumerate(sizes):
        conversation = conversation.assistant("x" * size) if number % 2 else conversation.user("x" * size)
    return conversation


def count(conversation: Conversation) -> int:
    return SYSTEM + sum(len(message.content) for message in conversation.messages)


def test_window_keeps_all_that_leaves_room_for_a_reply() -> None:
    assert turns_to_drop(conversation_of(100, 200, 30), count, 400, None) is None
    assert turns_to_drop(conversation_of(100, 200, 31), count, 400, None) is not None


def test_window_leaves_less_room_for_a_short_reply() -> None:
    assert turns_to_drop(conversation_of(100, 200, 70), count, 400, 10) is None
    assert turns_to_drop(conversation_of(100, 200, 71), count, 400, 10) is not None


def test_window_drops_whole_turns_and_a_quarter_of_the_context() -> None:
    assert turns_to_drop(conversation_of(20, 40, 20, 40, 20, 40, 20, 40, 60, 60, 10), count, 400, None) == DroppedTurns(
        4, 120
    )


def test_window_drops_one_large_turn_alone() -> None:
    assert turns_to_drop(conversation_of(20, 200, 20, 40, 60), count, 400, None) == DroppedTurns(2, 220)


def test_window_keeps_the_last_question_even_without_room_for_a_reply() -> None:
    assert turns_to_drop(conversation_of(20, 40, 350), count, 400, None) == DroppedTurns(2, 60)


@pytest.mark.parametrize("sizes", [(390,), (20, 40, 380)])
def test_window_drops_nothing_when_that_does_not_help(sizes: tuple[int, ...]) -> None:
    assert turns_to_drop(conversation_of(*sizes), count, 400, None) is None


def test_window_notice_names_what_is_dropped_and_the_options() -> None:
    notice = DroppedTurns(4, 120).notice(400, "raise --ctx")
    assert "dropped the 4 oldest messages (120 tokens)" in notice.message
    assert "--set overflow=stop" in notice.hint


@given(st.lists(st.integers(1, 200), min_size=1, max_size=41).map(lambda sizes: sizes[: len(sizes) // 2 * 2 - 1 or 1]))
def test_window_leaves_a_conversation_that_fits_if_possible(sizes: list[int]) -> None:
    conversation, context_size = conversation_of(*sizes), 512
    tokens, drop = count(conversation), turns_to_drop(conversation_of(*sizes), count, context_size, None)
    if drop is None:
        shortest = count(drop_oldest(conversation, len(sizes) - 1))
        assert tokens + context_size // REPLY_FRACTION <= context_size or len(sizes) == 1 or shortest >= context_size
        return
    left = drop_oldest(conversation, drop.messages)
    assert drop.messages % 2 == 0
    assert left.messages[0].role == "user"
    assert left.messages[-1] == conversation.messages[-1]
    assert (left.system_prompt, count(left)) == ("S", tokens - drop.tokens)
    if len(left.messages) > 1:
        assert count(left) + context_size // REPLY_FRACTION <= context_size
        assert drop.tokens >= context_size // DROP_FRACTION
    assert count(left) < context_size
