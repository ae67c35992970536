"""A session's place in the context: where the model's view of it begins, so that the next reply has room."""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.application.chat.context_window import turns_to_drop
from cerebrum_cli.application.chat.history import load_conversation, visible_messages
from cerebrum_cli.application.inference.responder import LocalResponder
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.sessions.rows import Session
from cerebrum_cli.sessions.store import Store

RESTORE_BELOW = 0.25  # of a context: what is left after dropping turns from one of its size is more


class FittedSession(NamedTuple):
    """A session as the model will read it, and what is to be told of that."""

    session: Session
    notice: NoticeEvent | None


def fit_session(
    store: Store, session: Session, model: str, responder: LocalResponder, prefix_length: int, settings: Settings
) -> FittedSession:
    """Drop the oldest turns of a session where a reply, of which `begun` tokens are there, needs their room.

    Turns that were dropped from a smaller context come back where there is much more room than what is left takes.
    """
    size = responder.context_size
    assert size is not None, "the model is loaded"

    def count(conversation: Conversation) -> int:
        return responder.count_tokens(conversation) + prefix_length

    before = session.first
    if before and count(load_conversation(store, session, model)) < size * RESTORE_BELOW:
        session = store.update_session(session, first=None)
    if settings.overflow == "stop":
        return FittedSession(session, None)
    drop = turns_to_drop(load_conversation(store, session, model), count, size, settings.max_tokens)
    if drop is None:
        return FittedSession(session, None)
    first = visible_messages(store, session)[drop.messages].id
    return FittedSession(store.update_session(session, first=first), drop.notice(size) if first != before else None)
