"""Which of the oldest turns of a long conversation are dropped from the context, so that the next reply has room."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from cerebrum_cli.chat.history import load_conversation, visible_messages
from cerebrum_cli.chat.session import Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.model.loaded_model import LoadedModel

RESTORE_BELOW = 0.25  # of the context: dropping turns for this context size leaves more
REPLY_FRACTION = 8  # a reply needs 1/8 of the context, or its maximum tokens if fewer
DROP_FRACTION = 4  # drop 1/4 of the context or more together: the rest is evaluated again, so this should be rare


class DroppedTurns(NamedTuple):
    """Number of oldest messages to drop, and of tokens that removes from the prompt."""

    messages: int
    tokens: int


def fit_session(
    store: Store, session: Session, model: LoadedModel, prefix_length: int, settings: Settings
) -> tuple[Session, NoticeEvent | None]:
    """Drop the oldest turns of a session if the reply, whose first `prefix_length` tokens exist, needs the room.

    Turns dropped from a smaller context are restored if the remaining ones leave most of this one free. Returns the
    session, with a notice if other turns than before are dropped.
    """
    size = model.context_size
    assert size is not None, "the model is loaded"

    def count(conversation: Conversation) -> int:
        return model.count_tokens(conversation) + prefix_length

    previous_first = session.first
    if previous_first and count(load_conversation(store, session, model.model, settings)) < size * RESTORE_BELOW:
        session = store.update_session(session, first=None)
    if settings.overflow == "stop":
        return session, None
    drop = turns_to_drop(load_conversation(store, session, model.model, settings), count, size, settings.max_tokens)
    if drop is None:
        return session, None
    first = visible_messages(store, session)[drop.messages].id
    notice = NoticeEvent(
        f"the context of {size} tokens is nearly full: dropped the"
        f" {drop.messages} oldest messages ({drop.tokens} tokens) from it",
        f"the session keeps them; {model.larger_context} to fit more, or use --set overflow=stop to refuse such"
        " questions",
    )
    return store.update_session(session, first=first), notice if first != previous_first else None


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
    return replace(conversation, messages=conversation.messages[messages:])
