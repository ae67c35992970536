"""A reply on its way into a session: kept every second while it is said, and as it has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from cerebrum_cli.application.chat.history import Author, params_of, reply_metadata
from cerebrum_cli.application.inference.reply import ReplyCollector
from cerebrum_cli.application.inference.responder import GenerationRequest, Responder
from cerebrum_cli.application.inference.voting import MajorityVote, run_vote
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.sessions.rows import ReplyMetadata, Session, StoredMessage
from cerebrum_cli.sessions.store import Store

SAVE_EVERY_S = 1.0  # what a killed process may lose of a reply


@dataclass(slots=True)
class ReplyRecorder:
    """The reply to the question that `session` has come to; it goes on with `begun`, the tokens of `before`, if any."""

    store: Store
    session: Session
    speaker: Author
    settings: Settings
    begun: tuple[int, ...] = ()
    before: StoredMessage | None = None
    gatherer: ReplyCollector = field(default_factory=ReplyCollector)
    _placed: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def replied(
        self, responder: Responder, conversation: Conversation, poll: MajorityVote | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of the reply to a conversation, and keep it; of a vote keep what won, or what leads when it
        is interrupted. SessionError where it cannot be kept.
        """
        if poll is None:
            with contextlib.closing(responder.respond(conversation, self.settings, prefix_tokens=self.begun)) as events:
                for event in events:
                    self.emit(event)
                    yield event
        else:
            try:
                with contextlib.closing(
                    run_vote(responder, GenerationRequest(conversation, self.settings), poll)
                ) as events:
                    yield from events
            finally:
                self.gatherer = poll.best_sample or self.gatherer
        self.end()

    def emit(self, event: Event) -> None:
        """Take one event of the reply, and keep what was said so far when that is due."""
        self.gatherer.emit(event)
        with contextlib.suppress(SessionError):  # it goes on being said; `end` tries once more
            if self.gatherer.reply:
                self.end()
            elif self.has_begun and time.monotonic() - self._saved_at >= SAVE_EVERY_S:
                self._saved_at = time.monotonic()
                self._save(self._unfinished(None))

    @property
    def has_begun(self) -> bool:
        """Whether anything has been said."""
        return bool(self.gatherer.tokens)

    def end(self) -> Session:
        """Keep the reply as it has ended, or was interrupted, and return the session, which has come to it.

        SessionError where it cannot be kept.
        """
        if not self._ended:
            reply = self.gatherer.reply
            self._save(
                reply_metadata(reply, self.speaker, params_of(self.settings))
                if reply
                else self._unfinished("cancelled")
            )
            self._ended = True
        return self.session

    def _unfinished(self, reason: str | None) -> ReplyMetadata:
        return ReplyMetadata(reasoning=self.gatherer.reasoning, finish_reason=reason, model=self.speaker.model)

    def _save(self, how: ReplyMetadata) -> None:
        reply, text, tokens = self.gatherer.reply, self.gatherer.text, None
        if reply is None or reply.tokens is not None:
            tokens = (*self.begun, *self.gatherer.tokens)
        if self.before:
            text = self.before.message.content + text
            if self.before.metadata.reasoning:
                how = replace(how, reasoning=self.before.metadata.reasoning + (how.reasoning or ""))
        message = Message("assistant", text, tokens)
        if self._placed:
            self.store.update_message(self.session, message, how)
        else:
            self.session = self.store.add_message(self.session, message, how)
            self._placed = True
