"""A conversation with a model, turn by turn, kept as it goes: each question at once, each reply while it is said.

Taking back, trying again and going on move through the session's tree; the engine still holds what was read, so
nothing of it is evaluated again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from cerebrum_cli.application.history import History, Speaker, heard, name_of, params_of, spoken
from cerebrum_cli.application.opening import Opened, Opener
from cerebrum_cli.application.saying import Saying
from cerebrum_cli.application.window import overflow
from cerebrum_cli.ground.conversation import Conversation, Message
from cerebrum_cli.ground.errors import FormatError, PromptTooLong, SessionError
from cerebrum_cli.ground.events import Event, NoticeEvent
from cerebrum_cli.ground.settings import Layer, Settings
from cerebrum_cli.sessions.rows import Session, StoredMessage

KEPT_TOKENS = 64  # fewer are evaluated again as fast as they are found on disk


@dataclass(slots=True)
class Chat:
    """A session and the model that speaks in it; `session` is None until something has been said.

    `given` are the settings that command line, environment and /set have given: they hold for other models too.
    """

    history: History
    opener: Opener
    given: Layer
    opened: Opened
    settings: Settings
    session: Session | None = None
    name: str | None = None
    _counted: tuple[object, int] | None = field(default=None, init=False)

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
        """What was said so far, as far as the model still reads it."""
        if self.session is None:
            return Conversation((), self.settings.system)
        return spoken(self.history.store, self.session, self.opened.model.reference)

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply, if the conversation has come to one."""
        path = self.path
        return path[-1] if path and path[-1].message.role == "assistant" else None

    @property
    def gauge(self) -> tuple[int, int] | None:
        """Tokens of the conversation, and of the context; None where no model is there yet that could count them."""
        responder = self.opened.responder
        size = responder.context_size
        if size is None:
            return None
        now = self.opened, self.session, self.settings.system
        if self._counted is None or self._counted[0] != now:
            try:
                self._counted = now, responder.count(self.conversation)
            except FormatError:  # told when something is asked
                return None
        return self._counted[1], size

    def say(self, text: str) -> Generator[Event, None, None]:
        """Keep a question, and yield the events of the reply. A question that does not fit is taken back."""
        session = self._begun(text)
        self.session = self.history.store.say(session, Message("user", text))
        yield from self._replied(session.leaf)

    def retry(self, settings: Settings | None = None) -> Generator[Event, None, None]:
        """Answer the last question again, with these settings if given; the reply there was stays in the tree."""
        yield from self._replied(self._moved_to_question(), settings=settings)

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
        yield from self._replied(self._moved_to_question(), last.message.tokens, last)

    def undo(self) -> str | None:
        """Take the last question and its reply back, and return the question; None where there is none."""
        question = self.last_question
        if question is None or self.session is None:
            return None
        self.session = self.history.store.move(self.session, question.parent)
        return question.message.content

    def reword(self, reply: str) -> None:
        """Put a reply of the user's own in place of the last one, which stays in the tree."""
        last = self.last_reply
        if last is None or self.session is None:
            raise SessionError("there is no reply to change", "ask something first")
        store = self.history.store
        self.session = store.say(store.move(self.session, last.parent), Message("assistant", reply))

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
        self.enter(
            store.create(
                store.free_name(name or before.name),
                "chat",
                system_prompt=before.system_prompt,
                model=before.model,
                format=before.format,
                params=before.params,
                leaf=before.leaf,
                first=before.first,
            )
        )
        return self.session

    def enter(self, session: Session | None, name: str | None = None) -> None:
        """Go on in another session, or with None in one that begins with the next question.

        SessionError where another process leads it; then this chat stays where it is.
        """
        if session:
            session = self.history.taken(session)
        else:
            self.history.lock.release()
        self.session, self.name = session, name

    def rename(self, name: str) -> None:
        """Call the session otherwise, now or as soon as it begins. SessionError if the name is taken."""
        if self.session:
            self.session = self.history.store.lead(self.session, name=name)
        elif self.history.store.find(name):
            raise SessionError(f"there is a session {name} already", "choose another name")
        self.name = name

    def change(self, changes: Layer) -> Generator[Event, None, None]:
        """Go on with other settings, None being the usual; yield the loading where they take another model, or anew.

        Where that fails, the chat goes on as it was.
        """
        given = {key: value for key, value in {**self.given, **changes}.items() if value is not None}
        before = self.opened.model, self.settings
        model, settings = self.opener.settled(given)
        if (model.paths, _loaded_with(settings)) != (before[0].paths, _loaded_with(before[1])):
            if notice := self.opened.keep(KEPT_TOKENS):
                yield notice
            self.opened.engine.close()
            self.opened = self.opener.open(model, settings)
            try:
                yield from self.opened.responder.load()
            except BaseException:
                self.opened.engine.close()
                self.opened = self.opener.open(*before)
                raise
        self.given, self.settings = given, replace(settings, system=self.settings.system)
        if self.session:
            speaker, params = self.speaker, params_of(self.settings)
            leading = {"model": speaker.model, "format": speaker.format, "params": params}
            self.session = self.history.store.lead(self.session, **leading)

    def leave(self) -> NoticeEvent | None:
        """Keep what the model has read, and let go of model and session; return what could not be kept."""
        try:
            return self.opened.keep(KEPT_TOKENS)
        finally:
            self.opened.engine.close()
            self.history.close()

    @property
    def last_question(self) -> StoredMessage | None:
        """The last question, answered or not."""
        return next((each for each in reversed(self.path) if each.message.role == "user"), None)

    def _begun(self, text: str) -> Session:
        if self.session is None:
            name = self.name or name_of(Conversation().user(text))
            self.enter(self.history.begin(name, "chat", self.speaker, self.settings, self.settings.system))
        assert self.session is not None
        return self.session

    def _moved_to_question(self) -> int | None:
        """Go back to the last question, and return what the session had come to."""
        question, before = self.last_question, self.session
        if question is None or before is None:
            raise SessionError("there is no question to answer", "ask something first")
        self.session = self.history.store.move(before, question.id)
        return before.leaf

    def _fitted(self, begun: tuple[int, ...], settings: Settings) -> NoticeEvent | None:
        """Drop the oldest turns from the context if the next reply needs their room, and return what to tell of it."""
        responder, conversation = self.opened.responder, self.conversation
        size = responder.context_size
        assert size is not None and self.session is not None, "the model is loaded, and something was asked"
        if settings.overflow == "stop":
            return None
        drop = overflow(conversation, lambda rest: responder.count(rest) + len(begun), size, settings.max_tokens)
        if drop is None:
            return None
        kept = heard(self.history.store, self.session)[drop.messages :]
        self.session = self.history.store.lead(self.session, first=kept[0].id)
        return drop.notice(size)

    def _replied(
        self,
        back: int | None,
        begun: tuple[int, ...] = (),
        before: StoredMessage | None = None,
        settings: Settings | None = None,
    ) -> Generator[Event, None, None]:
        """Yield the events of a reply to the question the session has come to, and keep it while it is said.

        Where it cannot be given the session goes back to the message `back`.
        """
        assert self.session is not None
        settings, store, responder = settings or self.settings, self.history.store, self.opened.responder
        saying = Saying(store, self.session, self.speaker, settings, begun, before)
        try:
            yield from responder.load()
            if notice := self._fitted(begun, settings):
                yield notice
            saying.session = self.session
            with contextlib.closing(responder.respond([self.conversation], settings, begun=begun)) as events:
                for event in events:
                    saying.emit(event)
                    yield event
        except PromptTooLong:
            self.session = store.move(self.session, back)
            raise
        except BaseException:  # Ctrl-C before there was anything to stop, too: the question stays
            self.session = saying.end()
            raise
        self.session = saying.end()


def _loaded_with(settings: Settings) -> tuple[object, ...]:
    """Return what a model has to be opened anew for."""
    return settings.format, settings.ctx, settings.threads, settings.gpu_layers
