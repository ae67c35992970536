"""A conversation with a model, turn by turn, kept as it goes: each question at once, each reply while it is said.

Taking back, trying again and going on move through the session's tree; the engine still holds what was read, so
nothing of it is evaluated again.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from cerebrum_cli.application.history import History, Speaker, name_of, params_of, said, spoken
from cerebrum_cli.application.opening import Opened
from cerebrum_cli.application.reply import ReplyGatherer
from cerebrum_cli.ground.conversation import Conversation, Message
from cerebrum_cli.ground.errors import PromptTooLong, SessionError
from cerebrum_cli.ground.events import Event
from cerebrum_cli.ground.settings import Settings
from cerebrum_cli.sessions.rows import Said, Session, StoredMessage

SAVE_EVERY_S = 1.0  # what a killed process may lose of a reply


@dataclass(slots=True)
class Chat:
    """A session and the model that speaks in it; `session` is None until something has been said."""

    history: History
    opened: Opened
    settings: Settings
    session: Session | None = None
    name: str | None = None

    @property
    def speaker(self) -> Speaker:
        """Who replies."""
        return Speaker(self.opened.model.reference, self.opened.format_name)

    @property
    def path(self) -> list[StoredMessage]:
        """The messages from the first to the last."""
        return self.history.store.messages(self.session) if self.session else []

    @property
    def conversation(self) -> Conversation:
        """What was said so far."""
        if self.session is None:
            return Conversation((), self.settings.system)
        return spoken(self.history.store, self.session, self.opened.model.reference)

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply, if the conversation has come to one."""
        path = self.path
        return path[-1] if path and path[-1].message.role == "assistant" else None

    def say(self, text: str) -> Generator[Event, None, None]:
        """Keep a question, and yield the events of the reply. A question that does not fit is taken back."""
        store, session = self.history.store, self._begun(text)
        self.session = store.say(session, Message("user", text))
        try:
            yield from self._replied(())
        except PromptTooLong:
            self.session = store.move(self.session, session.leaf)
            raise

    def retry(self, settings: Settings | None = None) -> Generator[Event, None, None]:
        """Answer the last question again, otherwise if settings say so; the reply there was stays in the tree."""
        self.settings = settings or self.settings
        self._move_to_question()
        yield from self._replied(())

    def go_on(self) -> Generator[Event, None, None]:
        """Go on with the last reply where it ended. SessionError where there is none, or nothing can follow it."""
        last = self.last_reply
        if last is None:
            raise SessionError("there is no reply to go on with", "ask something first")
        mine = last.said.model == self.opened.model.reference
        if last.message.tokens is None or last.said.finish_reason == "stop" or not mine:
            raise SessionError(
                "the last reply has ended by itself, or another model said it", "ask for more, or /retry it"
            )
        self._move_to_question()
        yield from self._replied(last.message.tokens, last)

    def undo(self) -> str | None:
        """Take the last question and its reply back, and return the question; None where there is none."""
        question = self._last_question()
        if question is None or self.session is None:
            return None
        self.session = self.history.store.move(self.session, question.parent)
        return question.message.content

    def lead(self, system_prompt: str | None) -> None:
        """Lead the conversation with another system prompt from now on; None is the format's own."""
        self.settings = replace(self.settings, system=system_prompt)
        if self.session:
            self.session = self.history.store.lead(self.session, system_prompt=system_prompt)

    def fork(self, name: str | None = None) -> Session:
        """Begin a session of its own from here, and go on in it; the one there was stays as it is."""
        if self.session is None:
            raise SessionError("nothing has been said yet", "ask something first")
        store, before = self.history.store, self.session
        self.session = store.create(
            store.free_name(name or before.name),
            "chat",
            system_prompt=before.system_prompt,
            model=before.model,
            format=before.format,
            params=before.params,
            leaf=before.leaf,
        )
        return self.session

    def _begun(self, text: str) -> Session:
        if self.session:
            return self.session
        name = self.name or name_of(Conversation().user(text))
        return self.history.begin(name, "chat", self.speaker, self.settings, self.settings.system)

    def _move_to_question(self) -> None:
        question = self._last_question()
        if question is None or self.session is None:
            raise SessionError("there is no question to answer", "ask something first")
        self.session = self.history.store.move(self.session, question.id)

    def _last_question(self) -> StoredMessage | None:
        return next((each for each in reversed(self.path) if each.message.role == "user"), None)

    def _replied(self, begun: tuple[int, ...], before: StoredMessage | None = None) -> Generator[Event, None, None]:
        """Yield the events of a reply to the question the session has come to, and keep it while it is said."""
        gatherer, saved = ReplyGatherer(), time.monotonic()
        events = self.opened.responder.respond([self.conversation], self.settings, begun=begun)
        answered = False
        try:
            for event in events:
                gatherer.emit(event)
                if gatherer.tokens and time.monotonic() - saved >= SAVE_EVERY_S:
                    answered, saved = self._save(gatherer, begun, before, answered), time.monotonic()
                yield event
        except PromptTooLong:
            answered = True  # there is nothing to keep
            raise
        finally:
            events.close()
            if gatherer.reply or not answered:
                self._save(gatherer, begun, before, answered, ended=True)

    def _save(
        self,
        gatherer: ReplyGatherer,
        begun: tuple[int, ...],
        before: StoredMessage | None,
        again: bool,
        ended: bool = False,
    ) -> bool:
        """Keep what has been said of a reply; True, as it has a place now."""
        assert self.session is not None
        store, reply = self.history.store, gatherer.reply
        text = (before.message.content if before else "") + gatherer.text
        tokens = (*begun, *gatherer.tokens) if reply is None or reply.tokens is not None else None
        speaker = self.speaker
        how = Said(reasoning=gatherer.reasoning, finish_reason="cancelled" if ended else None, model=speaker.model)
        if reply:
            how = said(reply, speaker, params_of(self.settings))
        if before and before.said.reasoning:
            how = replace(how, reasoning=before.said.reasoning + (how.reasoning or ""))
        message = Message("assistant", text, tokens)
        if again:
            store.say_on(self.session, message, how)
        else:
            self.session = store.say(self.session, message, how)
        return True
