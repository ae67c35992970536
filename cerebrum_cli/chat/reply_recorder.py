"""Save a reply to its session: now and then while it is generated, and when it finishes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from cerebrum_cli.chat.history import begin_with, reply_metadata, session_params
from cerebrum_cli.chat.session import Session, StoredMessage
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.model.interface import Model
from cerebrum_cli.model.reply import Reply, ReplyRequest
from cerebrum_cli.model.voting import MajorityVote

SAVE_EVERY_S = 1.0  # a killed process loses at most this much of a reply
SAVE_SHARE = 0.02  # or, of a long one, this part: the whole text is written each time


def save_interval(elapsed_s: float) -> float:
    """Seconds until a reply is saved again, so that the bytes written grow little faster than its length."""
    return max(SAVE_EVERY_S, elapsed_s * SAVE_SHARE)


@dataclass(slots=True)
class ReplyRecorder:
    """The reply to the last question of `session`; it may continue the reply `continued`."""

    store: Store
    session: Session
    loaded: Model
    settings: Settings
    continued: StoredMessage | None = None
    reply: Reply = field(default_factory=Reply)
    _is_stored: bool = field(default=False, init=False)
    _start: float = field(default_factory=time.monotonic, init=False)
    _next_save: float = field(default_factory=lambda: time.monotonic() + save_interval(0.0), init=False)

    def record(
        self, conversation: Conversation, majority_vote: MajorityVote | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of a reply, or of a vote, and save the reply, or the leading sample. Raises SessionError."""
        request = ReplyRequest(conversation, self.settings, prefix_tokens=self.prefix_tokens)
        if majority_vote is None:
            self.reply = self.loaded.respond(request)
            if self.continued:
                begin_with(self.reply, self.continued)
            with contextlib.closing(self.reply.events()) as events:
                for event in events:
                    self._save_sometimes()
                    yield event
        else:
            try:
                with contextlib.closing(self.loaded.vote_events(request, majority_vote)) as events:
                    yield from events
            finally:
                self.reply = majority_vote.reply or self.reply
        self.save("cancelled")

    def _save_sometimes(self) -> None:
        now = time.monotonic()
        if self.has_tokens and now >= self._next_save:
            self._next_save = now + save_interval(now - self._start)
            with contextlib.suppress(SessionError):  # generation continues; `record` saves it at the end
                self.save(None)

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        return (self.continued and self.continued.message.tokens) or ()

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens besides those it continues."""
        return len(self.reply.sampled) > len(self.prefix_tokens)

    def save(self, unfinished: str | None) -> None:
        """Save the reply so far; `unfinished` is its reason to finish until it has one of its own."""
        params = session_params(self.settings, self.loaded.model)
        metadata = reply_metadata(self.reply, self.loaded, params, unfinished)
        message = Message("assistant", self.reply.text, self.reply.tokens)
        if self._is_stored:
            self.store.update_message(self.session, message, metadata)
        else:
            self.session = self.store.add_message(self.session, message, metadata)
            self._is_stored = True
