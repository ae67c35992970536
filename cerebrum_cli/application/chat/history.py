"""Conversations that are kept: what a session is called, how one is gone on from, and what is kept of an exchange."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cerebrum_cli.application.inference.reply import Reply
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.sessions.lock import SessionLock
from cerebrum_cli.sessions.names import validated_name
from cerebrum_cli.sessions.rows import Origin, ReplyMetadata, Session, StoredMessage
from cerebrum_cli.sessions.store import Store

_WORDS, _LONGEST = 5, 40  # of a session's name
_FILE = re.compile(r"^[^\n]+:\n(`{3,})[^\n`]*\n.*?\n\1$", re.DOTALL | re.MULTILINE)  # as a question quotes one
PARAMS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "stop")


@dataclass(frozen=True, slots=True)
class Author:
    """Who replies: the model by its reference, and the format it is asked in."""

    model: str
    format: str


@dataclass(slots=True)
class History:
    """The sessions of a user, as the use cases need them, and the lock on the one this process leads."""

    store: Store
    lock: SessionLock

    def acquire_latest(self) -> Session:
        """Take the session that was last changed. SessionError if there is none, or another process leads it."""
        session = self.store.latest()
        if session is None:
            raise SessionError("there is no session to go on from", "ask without -c first")
        return self.acquire(session)

    def acquire_named(self, name: str) -> Session | None:
        """Take the session of this name; None where there is none yet. SessionError if none can be called so."""
        session = self.store.find(name)
        if session is None:
            validated_name(name)
            return None
        return self.acquire(session)

    def acquire(self, session: Session) -> Session:
        """Take a session, at a place a question can follow. SessionError where another process leads it."""
        self.lock.acquire(session)
        return self.close_unanswered(session)

    def get(self, name: str) -> Session:
        """Return a session by its name. SessionError where there is none."""
        session = self.store.find(name)
        if session is None:
            raise SessionError(f"there is no session {name}", "cerebrum sessions list shows them")
        return session

    def close(self) -> None:
        """Let go of the session that is led, and of the database."""
        self.lock.release()
        self.store.close()

    def close_unanswered(self, session: Session) -> Session:
        """Return a session that has come to a reply: an empty one, interrupted, where its process ended before."""
        path = self.store.messages(session)
        if path and path[-1].message.role == "user":
            return self.store.add_message(session, Message("assistant", ""), ReplyMetadata(finish_reason="cancelled"))
        return session

    def create_session(
        self, name: str, origin: Origin, author: Author, settings: Settings, system_prompt: str | None
    ) -> Session:
        """Begin a session. SessionError if the name is taken."""
        return self.store.create(
            name,
            origin,
            system_prompt=system_prompt,
            model=author.model,
            format=author.format,
            params=sampling_params(settings),
        )

    def record(
        self,
        session: Session | None,
        conversation: Conversation,
        reply: Reply,
        author: Author,
        settings: Settings,
        origin: Origin = "ask",
    ) -> Session:
        """Keep what is new of a conversation and the reply to it, in a new session where none is given."""
        params = sampling_params(settings)
        with self.store.transaction():
            if session is None:
                name = self.store.unused_name(suggest_name(conversation))
                session = self.create_session(name, origin, author, settings, conversation.system_prompt)
            leading = {"system_prompt": conversation.system_prompt, "model": author.model, "format": author.format}
            session = self.store.update_session(session, **leading)
            for message in conversation.messages[len(visible_messages(self.store, session)) :]:
                session = self.store.add_message(session, message)
            return self.store.add_message(
                session, Message("assistant", reply.text, reply.tokens), reply_metadata(reply, author, params)
            )


def reply_metadata(reply: Reply, author: Author, params: dict[str, Any]) -> ReplyMetadata:
    """Return what is kept of how a reply came to be."""
    finish = reply.finish
    return ReplyMetadata(
        reasoning=reply.reasoning,
        finish_reason=finish.reason,
        model=author.model,
        format=author.format,
        params=params,
        seed=finish.seed,
        timings={
            **asdict(finish.timings),
            "prompt_tokens": finish.prompt_tokens,
            "cached_tokens": finish.cached_tokens,
        },
    )


def with_session_defaults(session: Session | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command was given, with the session's model and format where it names no other model.

    A chat goes on with its settings; those of one question were for that.
    """
    if session is None or given.get("model") not in (None, session.model):
        return dict(given)
    params = session.params if session.origin == "chat" else {}
    kept = {"model": session.model, "format": session.format, **params}
    return {**{key: value for key, value in kept.items() if value is not None}, **given}


def sampling_params(settings: Settings) -> dict[str, Any]:
    """Return the sampling settings a reply was made with."""
    return {**{key: getattr(settings, key) for key in PARAMS}, "stop": list(settings.stop)}


def suggest_name(conversation: Conversation) -> str:
    """Return what to call a session: the first words of its first question, rather than of a file before it."""
    first = conversation.messages[0].content if conversation.messages else ""
    first = _FILE.sub("", first).strip() or first
    words = "".join(char if _is_of_a_word(char) else " " for char in first.lower()).split()[:_WORDS]
    return "-".join(words)[:_LONGEST].strip("-") or "session"


def _is_of_a_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")  # marks stand on letters in many scripts


def load_conversation(store: Store, session: Session, model: str) -> Conversation:
    """Return a session as a conversation for a model, from the first message that is in its context.

    Tokens are kept of its own replies, others' are read as text; and so are thoughts that came to no answer, since
    their markup is open, and all that follows would be thought.
    """
    messages = tuple(
        stored.message if stored.metadata.model == model and not _is_mere_thought(stored) else _as_text(stored.message)
        for stored in visible_messages(store, session)
    )
    return Conversation(messages, session.system_prompt)


def _is_mere_thought(stored: StoredMessage) -> bool:
    return bool(stored.metadata.reasoning) and not stored.message.content


def _as_text(message: Message) -> Message:
    return replace(message, tokens=None)


def visible_messages(store: Store, session: Session) -> list[StoredMessage]:
    """Return the messages of a session that have not been dropped from the context."""
    path = store.messages(session)
    first = next((at for at, stored in enumerate(path) if stored.id == session.first), 0)
    return path[first:]


def continue_session(
    store: Store, session: Session, model: str, conversation: Conversation, system: str | None
) -> Conversation:
    """Return a session with the turns of another conversation after it; a system prompt given now replaces its own."""
    before = load_conversation(store, session, model)
    prompt = before.system_prompt if system is None else system
    return replace(before, messages=(*before.messages, *conversation.messages), system_prompt=prompt)
