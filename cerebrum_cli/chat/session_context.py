"""The first message of a session that stays in the context, so that the next reply has room."""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.chat.context_window import turns_to_drop
from cerebrum_cli.chat.history import load_conversation, visible_messages
from cerebrum_cli.chat.rows import Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.inference.responder import Responder
from cerebrum_cli.models.model import Model

RESTORE_BELOW = 0.25  # of the context: dropping turns for this context size leaves more


class FittedSession(NamedTuple):
    """A session that fits the context, and a notice if turns were dropped."""

    session: Session
    notice: NoticeEvent | None


def fit_session(
    store: Store, session: Session, model: Model, responder: Responder, prefix_length: int, settings: Settings
) -> FittedSession:
    """Drop the oldest turns of a session if the reply, whose first `prefix_length` tokens exist, needs the room.

    Turns dropped from a smaller context are restored if the remaining ones leave most of this one free.
    """
    size = responder.context_size
    assert size is not None, "the model is loaded"

    def count(conversation: Conversation) -> int:
        return responder.count_tokens(conversation) + prefix_length

    previous_first = session.first
    if previous_first and count(load_conversation(store, session, model, settings)) < size * RESTORE_BELOW:
        session = store.update_session(session, first=None)
    if settings.overflow == "stop":
        return FittedSession(session, None)
    drop = turns_to_drop(load_conversation(store, session, model, settings), count, size, settings.max_tokens)
    if drop is None:
        return FittedSession(session, None)
    first = visible_messages(store, session)[drop.messages].id
    notice = drop.notice(size, responder.larger_context) if first != previous_first else None
    return FittedSession(store.update_session(session, first=first), notice)
