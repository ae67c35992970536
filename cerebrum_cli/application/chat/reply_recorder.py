"""Save a reply to its session: every second while it is generated, and when it finishes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from cerebrum_cli.application.chat.history import Author, reply_metadata, sampling_params
from cerebrum_cli.application.inference.reply import ReplyCollector
from cerebrum_cli.application.inference.responder import GenerationRequest, Responder
from cerebrum_cli.application.inference.voting import MajorityVote, run_vote
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.sessions.rows import ReplyMetadata, Session, StoredMessage
from cerebrum_cli.sessions.store import Store

SAVE_EVERY_S = 1.0  # at most this much of a reply is lost with a killed process


@dataclass(slots=True)
class ReplyRecorder:
    """The reply to the last question of `session`; it continues `prefix_tokens`, those of the reply `continued`."""

    store: Store
    session: Session
    author: Author
    settings: Settings
    prefix_tokens: tuple[int, ...] = ()
    continued: StoredMessage | None = None
    collector: ReplyCollector = field(default_factory=ReplyCollector)
    _is_stored: bool = field(default=False, init=False)
    _is_finished: bool = field(default=False, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def record(
        self, responder: Responder, conversation: Conversation, majority_vote: MajorityVote | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of a reply, or of a vote, and save it; of a vote, the winning or leading sample.

        Raises SessionError if it cannot be saved.
        """
        if majority_vote is None:
            with contextlib.closing(
                responder.respond(conversation, self.settings, prefix_tokens=self.prefix_tokens)
            ) as events:
                for event in events:
                    self._process_event(event)
                    yield event
        else:
            try:
                with contextlib.closing(
                    run_vote(responder, GenerationRequest(conversation, self.settings), majority_vote)
                ) as events:
                    yield from events
            finally:
                self.collector = majority_vote.best_sample or self.collector
        self.finish()

    def _process_event(self, event: Event) -> None:
        """Process one event of the reply, and save the text so far when it is due."""
        self.collector.emit(event)
        with contextlib.suppress(SessionError):  # generation continues; `finish` tries again
            if self.collector.reply:
                self.finish()
            elif self.has_tokens and time.monotonic() - self._saved_at >= SAVE_EVERY_S:
                self._saved_at = time.monotonic()
                self._save(self._partial_metadata(None))

    @property
    def has_tokens(self) -> bool:
        return bool(self.collector.tokens)

    def finish(self) -> Session:
        """Save the finished or interrupted reply, and return the changed session.

        Raises SessionError if it cannot be saved.
        """
        if not self._is_finished:
            reply = self.collector.reply
            self._save(
                reply_metadata(reply, self.author, sampling_params(self.settings))
                if reply
                else self._partial_metadata("cancelled")
            )
            self._is_finished = True
        return self.session

    def _partial_metadata(self, reason: str | None) -> ReplyMetadata:
        model = self.author.model
        return ReplyMetadata(
            reasoning=self.collector.reasoning,
            finish_reason=reason,
            model=model.reference,
            vocabulary=model.vocabulary,
        )

    def _save(self, metadata: ReplyMetadata) -> None:
        reply, text, tokens = self.collector.reply, self.collector.text, None
        if reply is None or reply.tokens is not None:
            tokens = (*self.prefix_tokens, *self.collector.tokens)
        if self.continued:
            text = self.continued.message.content + text
            if self.continued.metadata.reasoning:
                metadata = replace(metadata, reasoning=self.continued.metadata.reasoning + (metadata.reasoning or ""))
        message = Message("assistant", text, tokens)
        if self._is_stored:
            self.store.update_message(self.session, message, metadata)
        else:
            self.session = self.store.add_message(self.session, message, metadata)
            self._is_stored = True
