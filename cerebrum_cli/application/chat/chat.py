"""A conversation with a model, turn by turn, kept as it goes: each question at once, each reply while it is said.

Taking back, trying again and going on move through the session's tree; the engine still holds what was read, so
nothing of it is evaluated again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from cerebrum_cli.application.chat.history import Author, History, load_conversation, sampling_params, suggest_name
from cerebrum_cli.application.chat.reply_recorder import ReplyRecorder
from cerebrum_cli.application.chat.session_context import fit_session
from cerebrum_cli.application.inference.loading import LoadedModel, ModelLoader, reload_key
from cerebrum_cli.application.inference.voting import MajorityVote
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import CerebrumError, FormatError, Interrupted, SessionError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import Layer, Settings
from cerebrum_cli.sessions.names import validated_name
from cerebrum_cli.sessions.rows import Session, StoredMessage

Events = Generator[Event, None, None]
INTERRUPTIONS = (Interrupted, GeneratorExit, KeyboardInterrupt)
MIN_CACHED_TOKENS = 64  # fewer are evaluated again as fast as they are found on disk
MIN_PREFIX_TOKENS = 32  # tokens that every conversation begins with, its system prompt


@dataclass(slots=True)
class Chat:
    """A session and the model that speaks in it; `session` is None until something has been said.

    `given` are the settings that command line, environment and /set have given: they hold for other models too.
    """

    history: History
    loader: ModelLoader
    overrides: Layer
    loaded: LoadedModel
    settings: Settings
    session: Session | None = None
    name: str | None = None
    _counted: tuple[object, int] | None = field(default=None, init=False)

    @property
    def author(self) -> Author:
        """Who replies."""
        return Author(self.loaded.model.reference, self.loaded.format_name)

    @property
    def messages(self) -> list[StoredMessage]:
        """The messages from the first to the last."""
        return self.history.store.messages(self.session) if self.session else []

    @property
    def conversation(self) -> Conversation:
        """What was said so far, as far as the model still reads it."""
        if self.session is None:
            return Conversation((), self.settings.system)
        return load_conversation(self.history.store, self.session, self.loaded.model.reference)

    @property
    def dropped_count(self) -> int:
        """How many of the oldest messages the model no longer reads."""
        return len(self.messages) - len(self.conversation.messages)

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply, if the conversation has come to one."""
        path = self.messages
        return path[-1] if path and path[-1].message.role == "assistant" else None

    @property
    def context_usage(self) -> tuple[int, int] | None:
        """Tokens of the conversation, and of the context; None where no model is there yet that could count them."""
        responder = self.loaded.responder
        size = responder.context_size
        if size is None:
            return None
        now = self.loaded, self.session, self.settings.system
        if self._counted is None or self._counted[0] != now:
            try:
                self._counted = now, responder.count_tokens(self.conversation)
            except FormatError:  # told when something is asked
                return None
        return self._counted[1], size

    def send(self, text: str, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        """Keep a question, and yield the events of the reply, or of a vote. One that does not fit is taken back."""
        is_first, session = self.session is None, self._ensure_session(text)
        try:
            self.session = self.history.store.add_message(session, Message("user", text))
            yield from self._reply(session.leaf, settings=settings, majority_vote=majority_vote)
        except CerebrumError:
            if is_first and self.session and self.session.leaf is None:  # nobody wants to go on from nothing
                self.history.store.remove(self.session)
                self.switch_session(None, self.name)
            raise

    def edit_question(self, text: str) -> Events:
        """Ask the last question in other words, and yield the events of the reply; what there was stays in the tree."""
        (before, question), store = self._require_question(), self.history.store
        self.session = store.add_message(store.move(before, question.parent), Message("user", text))
        yield from self._reply(before.leaf)

    def retry(self, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        """Answer the last question again, with these settings if given, or by a vote; the reply there was stays."""
        yield from self._reply(self._rewind_to_question(), settings=settings, majority_vote=majority_vote)

    def continue_reply(self) -> Events:
        """Go on with the last reply where it ended. SessionError where there is none, or nothing can follow it."""
        last = self.last_reply
        if last is None:
            raise SessionError("there is no reply to go on with", "ask something first")
        mine = last.metadata.model == self.loaded.model.reference
        if last.message.tokens is None or last.metadata.finish_reason == "stop" or not mine:
            raise SessionError(
                "nothing follows the last reply: it has ended by itself, or this model did not say it",
                "ask for more, or /retry it",
            )
        yield from self.load()
        begun, content = last.message.tokens, last.message.content
        whole = self.loaded.responder.drop_partial_character(begun)
        if len(whole) < len(begun):  # it was cut within a character, which is said again
            content = content.removesuffix("\ufffd").rstrip()  # as replies end, whose last space waits for more
        before = replace(last, message=replace(last.message, content=content))
        yield from self._reply(self._rewind_to_question(), whole, before)

    def undo(self) -> str | None:
        """Take the last question and its reply back, and return the question; None where there is none."""
        question = self.last_question
        if question is None or self.session is None:
            return None
        self.session = self.history.store.move(self.session, question.parent)
        return question.message.content

    def replace_reply(self, reply: str) -> None:
        """Put a reply of the user's own in place of the last one, which stays in the tree."""
        last = self.last_reply
        if last is None or self.session is None:
            raise SessionError("there is no reply to change", "ask something first")
        store = self.history.store
        self.session = store.add_message(store.move(self.session, last.parent), Message("assistant", reply))

    def set_system_prompt(self, system_prompt: str | None) -> None:
        """Lead the conversation with another system prompt from now on; None is the format's own."""
        self.settings = replace(self.settings, system=system_prompt)
        if self.session:
            self.session = self.history.store.update_session(self.session, system_prompt=system_prompt)

    def fork(self, name: str | None = None) -> Session:
        """Begin a session of its own from here, and go on in it; the one there was stays as it is."""
        if self.session is None:
            raise SessionError("nothing has been said yet", "ask something first")
        store, before = self.history.store, self.session
        self.switch_session(
            store.create(
                store.unused_name(name or before.name),
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

    def switch_session(self, session: Session | None, name: str | None = None) -> None:
        """Go on in another session, or with None in one that begins with the next question.

        SessionError where another process leads it; then this chat stays where it is.
        """
        if session:
            session = self.history.acquire(session)
        else:
            self.history.lock.release()
        self.session, self.name = session, name

    def rename(self, name: str) -> None:
        """Call the session otherwise, now or as soon as it begins. SessionError if the name is taken."""
        if self.session:
            self.session = self.history.store.update_session(self.session, name=name)
        elif self.history.store.find(validated_name(name)):
            raise SessionError(f"there is a session {name} already", "choose another name")
        self.name = name

    def change_settings(self, changes: Layer) -> Events:
        """Go on with other settings, None being the usual; yield the loading where they take another model, or anew.

        Where that fails, the chat goes on as it was.
        """
        given = {key: value for key, value in {**self.overrides, **changes}.items() if value is not None}
        before = self.loaded.model, self.settings
        model, settings = self.loader.resolve_settings(given)
        if (model.paths, reload_key(settings)) != (before[0].paths, reload_key(before[1])):
            if notice := self.loaded.save_prompt_cache(MIN_CACHED_TOKENS, self.conversation):
                yield notice
            try:
                self._reopen(model, settings)
                yield from self.loaded.responder.load()
            except BaseException:
                self._reopen(*before)
                raise
        self.overrides, self.settings = given, replace(settings, system=self.settings.system)
        if self.session:
            self._update_session()

    def load(self) -> Events:
        """Yield the loading of the model; where that fails or is interrupted it begins again, for whoever asks next."""
        model = self.loaded.model
        try:
            yield from self.loaded.responder.load()
        except BaseException:
            self._reopen(model, self.settings)
            raise

    def close(self) -> NoticeEvent | None:
        """Keep what the model has read, and let go of model and session; return what could not be kept."""
        try:
            conversation = self.conversation
            notice = self.loaded.save_prompt_cache(MIN_CACHED_TOKENS, conversation)
            return notice or self.loaded.save_prefix(conversation, lambda tokens: tokens >= MIN_PREFIX_TOKENS)
        finally:
            self.loaded.engine.close()
            self.history.close()

    @property
    def last_question(self) -> StoredMessage | None:
        """The last question, answered or not."""
        return next((each for each in reversed(self.messages) if each.message.role == "user"), None)

    def _reopen(self, model: Model, settings: Settings) -> None:
        """Begin to load a model, once the one before is gone; an interruption in between can be followed by another."""
        self.loaded.engine.close()
        self.loaded = self.loader.open(model, settings)

    def _ensure_session(self, text: str) -> Session:
        if self.session is None:
            name = self.name or self.history.store.unused_name(suggest_name(Conversation().user(text)))
            session = self.history.create_session(name, "chat", self.author, self.settings, self.settings.system)
            self.switch_session(session, self.name)
        assert self.session is not None
        return self.session

    def _update_session(self) -> Session:
        """Have the session know who speaks in it now, and with which settings."""
        assert self.session is not None
        speaker, params = self.author, sampling_params(self.settings)
        leading = {"model": speaker.model, "format": speaker.format, "params": params}
        if any(getattr(self.session, key) != value for key, value in leading.items()):
            self.session = self.history.store.update_session(self.session, **leading)
        return self.session

    def _require_question(self) -> tuple[Session, StoredMessage]:
        """Return the session and the last question in it. SessionError where there is none."""
        question = self.last_question
        if question is None or self.session is None:
            raise SessionError("there is no question to answer", "ask something first")
        return self.session, question

    def _rewind_to_question(self) -> int | None:
        """Go back to the last question, and return what the session had come to."""
        before, question = self._require_question()
        self.session = self.history.store.move(before, question.id)
        return before.leaf

    def _reply(
        self,
        back: int | None,
        prefix_tokens: tuple[int, ...] = (),
        continued: StoredMessage | None = None,
        settings: Settings | None = None,
        majority_vote: MajorityVote | None = None,
    ) -> Events:
        """Yield the events of a reply to the question the session has come to, and keep it while it is said.

        Of a vote what won is kept, or what leads when it is interrupted.

        Where it cannot be given or kept the session goes back to the message `back`.
        """
        settings, responder = settings or self.settings, self.loaded.responder
        session = self._update_session()
        saying = ReplyRecorder(self.history.store, session, self.author, settings, prefix_tokens, continued)
        try:
            yield from self.load()
            saying.session, notice = fit_session(
                saying.store, session, self.author.model, responder, len(prefix_tokens), settings
            )
            self.session = saying.session
            if notice:
                yield notice
            with contextlib.closing(saying.record(responder, self.conversation, majority_vote)) as events:
                yield from events
            self.session = saying.session
        except BaseException as error:
            self._end_early(saying, error, back)
            raise

    def _end_early(self, saying: ReplyRecorder, error: BaseException, back: int | None) -> None:
        """Keep what was said when it was interrupted, also where that is nothing; otherwise go back, so that no
        question stands without an answer."""
        if isinstance(error, INTERRUPTIONS) or (saying.has_tokens and not isinstance(error, SessionError)):
            with contextlib.suppress(SessionError):
                self.session = saying.finish()
                return
        assert self.session is not None
        try:
            self.session = self.history.store.move(self.session, back)
        except SessionError:  # the database cannot be written: here at least the conversation is as it was
            self.session = replace(self.session, leaf=back)
