"""How much of a long conversation a model still reads: which of the oldest turns are dropped, and when."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent

REPLY_FRACTION = 8  # a reply is to have this part of the context, or the most tokens it may have
DROP_FRACTION = (
    4  # at least this part of the context goes at once: what is left is evaluated again, which is to be rare
)


class DroppedTurns(NamedTuple):
    """The oldest turns that no longer fit: how many messages, and how many tokens less the prompt has then."""

    messages: int
    tokens: int

    def notice(self, context_size: int) -> NoticeEvent:
        """Return what the user is told before it is done."""
        return NoticeEvent(
            f"the context of {context_size} tokens is nearly full: the model no longer reads the"
            f" {self.messages} oldest messages ({self.tokens} tokens)",
            "they stay in the session; a larger --ctx holds more, and --overflow stop drops nothing",
        )


def turns_to_drop(
    conversation: Conversation, count: Callable[[Conversation], int], context_size: int, max_tokens: int | None
) -> DroppedTurns | None:
    """Return which turns to drop before a conversation is answered; None where all fit, or nothing would help.

    Whole turns go, a question with its reply, the oldest first; the system prompt and the last question stay.
    `count` is how many tokens the prompt of a conversation has.
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
    """Return a conversation without its oldest messages."""
    return replace(conversation, messages=conversation.messages[messages:])
