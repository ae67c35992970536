"""Which of the oldest turns of a long conversation are dropped from the context, and when."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent

REPLY_FRACTION = 8  # a reply needs 1/8 of the context, or its maximum tokens if fewer
DROP_FRACTION = 4  # drop 1/4 of the context or more together: the rest is evaluated again, so this should be rare


class DroppedTurns(NamedTuple):
    """Number of oldest messages to drop, and of tokens that removes from the prompt."""

    messages: int
    tokens: int

    def notice(self, context_size: int, larger_context: str) -> NoticeEvent:
        """Notice shown to the user before the turns are dropped."""
        return NoticeEvent(
            f"the context of {context_size} tokens is nearly full: dropped the"
            f" {self.messages} oldest messages ({self.tokens} tokens) from it",
            f"they stay in the session; {larger_context} to fit more, or use --set overflow=stop to refuse the question"
            " instead",
        )


def turns_to_drop(
    conversation: Conversation, count: Callable[[Conversation], int], context_size: int, max_tokens: int | None
) -> DroppedTurns | None:
    """Choose the turns to drop before a reply; None if all fit, or dropping would not help.

    Drops the oldest turns, each a question with its reply; the system prompt and the last question stay. `count` counts
    the tokens of a conversation's prompt.
    """
    tokens = count(conversation)
    room = min(max_tokens or context_size, context_size // REPLY_FRACTION)
    if tokens + room <= context_size:
        return None
    target = min(context_size - room, tokens - context_size // DROP_FRACTION)
    pairs = (len(conversation.messages) - 1) // 2

    def room_after(dropped: int) -> int:
        return -count(drop_oldest(conversation, 2 * dropped))

    dropped = min(pairs, bisect_left(range(pairs + 1), -target, key=room_after))
    left = count(drop_oldest(conversation, 2 * dropped))
    return DroppedTurns(2 * dropped, tokens - left) if dropped and left < context_size else None


def drop_oldest(conversation: Conversation, messages: int) -> Conversation:
    """Remove the oldest messages of a conversation."""
    return replace(conversation, messages=conversation.messages[messages:])
