"""A chat: a session, the loaded model that replies in it, and every change a user can make to either.

Questions are saved immediately, replies while they are generated. Undo, retry and fork move through the session's tree
of messages; the engine still holds the tokens of the shared prefix, so these are not evaluated again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from cerebrum_cli.chat.history import (
    KEPT,
    NO_CONTINUATION,
    History,
    can_continue,
    forced_tokens,
    is_author,
    load_conversation,
    session_params,
    settings_of,
    unused_session_name,
    without_partial_character,
)
from cerebrum_cli.chat.reply_recorder import ReplyRecorder
from cerebrum_cli.chat.session import Session, StoredMessage, validated_name
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import CerebrumError, FormatError, SessionError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import LOCAL_KEYS, SLASH_SET, Layer, Settings, SourcedLayer
from cerebrum_cli.replies.inspection import GivenReply
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.source import ModelSource, draft_notice
from cerebrum_cli.replies.voting import MajorityVote

Events = Generator[Event, None, None]
MIN_CACHED_TOKENS = 64  # fewer are evaluated as fast as they are read from disk
MIN_PREFIX_TOKENS = 32  # of the system prompt, with which every conversation begins


@dataclass(slots=True)
class Chat:
    """A session and the model that replies in it; `session` is None until the first question.

    `overrides` are the settings from the command line, the environment, /set and a saved prompt: they apply to other
    models too. `unprompted` are the same without the saved prompt.
    """

    history: History
    resolve: Callable[[Layer], ModelSource]
    overrides: Layer
    loaded: Model
    settings: Settings
    session: Session | None = None
    name: str | None = None
    unprompted: Layer | None = None
    _counted: tuple[object, int] | None = field(default=None, init=False)
    _sampled: tuple[int | None, tuple[int, ...]] | None = field(default=None, init=False)  # of the message with this id
    _undone: list[tuple[int | None, int | None]] = field(default_factory=list, init=False)  # leaves after and before

    @property
    def messages(self) -> list[StoredMessage]:
        return self.history.store.messages(self.session) if self.session else []

    @property
    def conversation(self) -> Conversation:
        if self.session is None:
            return self.settings.applied_to(Conversation((), self.settings.system))
        return load_conversation(self.history.store, self.session, self.loaded.model, self.settings)

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply; None if the last message is a question."""
        messages = self.messages
        return messages[-1] if messages and messages[-1].message.role == "assistant" else None

    @property
    def context_usage(self) -> tuple[int, int] | None:
        """Tokens of the conversation and of the context; None until the model is loaded, and where they are unknown."""
        size = self.loaded.context_size
        if size is None or self.loaded.model.is_served:
            return None
        key = self.loaded, self.session, self.settings.system, self.settings.think, self.settings.keep_reasoning
        if self._counted is None or self._counted[0] != key:
            conversation = self.conversation
            if conversation.messages and conversation.messages[-1].role == "assistant":
                conversation = conversation.user("")  # templates may include the reasoning of the last reply
            try:
                self._counted = key, self.loaded.count_tokens(conversation)
            except FormatError:  # reported with the next question
                return None
        return self._counted[1], size

    def send(self, text: str, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        """Save a question, and yield the events of the reply or vote. Without a reply, the question is removed."""
        before, store, question = self.session, self.history.store, Message("user", text)
        if before:
            self.session = store.add_message(before, question)
        else:  # the session and its question in one step: a killed process leaves no empty session
            name = self.name or unused_session_name(store, Conversation().user(text))
            self.session = store.create(
                name, "chat", **self._session_values, system_prompt=self.settings.system, question=question
            )
            self.history.lock(self.session)
        try:
            yield from self._reply(before.leaf if before else None, settings=settings, majority_vote=majority_vote)
        except CerebrumError:
            if before is None and self.session and self.session.leaf is None:  # do not leave an empty session
                with contextlib.suppress(SessionError):
                    store.remove(self.session)
                self.switch_session(None, self.name)
            raise

    def edit_question(self, text: str) -> Events:
        yield from self._reply(self._move(self.require_question().parent, Message("user", text)))

    def retry(self, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        previous_leaf = self._move(self.require_question().id)
        yield from self._reply(previous_leaf, settings=settings, majority_vote=majority_vote)

    def continue_reply(self) -> Events:
        last = self.require_reply()
        if not can_continue(last, self.loaded.model):
            raise SessionError(NO_CONTINUATION, "ask a question, or use /retry")
        yield from self.load()
        if last.metadata.finish_reason == "context" and not self.loaded.is_remote:
            yield from self._enlarge_context(last)
        continued = without_partial_character(last, self.loaded)
        previous_leaf = self._move(self.require_question().id)
        yield from self._reply(previous_leaf, continued, settings_of(last, self.settings))

    @property
    def doubled_context(self) -> int | None:
        """Twice the context, up to the model's trained length; None if it has that, or is on a server."""
        size, trained = self.loaded.context_size, self.loaded.model.trained_context
        return min(2 * size, trained) if size and size < trained and not self.loaded.is_remote else None

    def _enlarge_context(self, last: StoredMessage) -> Events:
        """Load the model with a larger context if question and reply fill this one. Raises SessionError."""
        size, asked = self.loaded.context_size or 0, self.conversation
        asked = replace(asked, messages=asked.messages[:-1])
        if self.loaded.count_tokens(asked) + len(last.message.tokens or ()) < size:
            return
        if (larger := self.doubled_context) is None:
            problem = f"the reply fills the context of {size} tokens, the largest this model supports"
            raise SessionError(problem, "limit reasoning with /think N, then /retry")
        yield NoticeEvent(f"increasing the context from {size} to {larger} tokens", "use /set ctx N for another size")
        yield from self.change_settings({"ctx": larger})

    def given_reply(self) -> GivenReply:
        """The last reply in the tokens it was sampled as. Raises SessionError if they are not known.

        Those of a reply that a stop string ended are not stored, and known only while the chat runs.
        """
        self.loaded.require_inspection()
        last = self.require_reply()
        tokens = last.message.tokens
        if self._sampled and self._sampled[0] == last.id:
            tokens = self._sampled[1]
        if tokens is None or not is_author(self.loaded.model, last.metadata):
            raise SessionError("the tokens of the last reply are not known for this model", "use /retry first")
        conversation = settings_of(last, self.settings).applied_to(self.conversation)
        before = replace(conversation, messages=conversation.messages[:-1])
        return GivenReply(before, tokens, forced_tokens(last.metadata))

    def inspect(self, reply: GivenReply, likeliest: int) -> Events:
        yield from self.load()
        yield from self.loaded.inspect(reply, likeliest)

    def undo(self) -> str:
        question = self.require_question()
        self._undone.append((question.parent, self._move(question.parent)))
        return question.message.content

    def redo(self) -> str:
        """Restore the turn that was undone last, and return its question. Raises SessionError.

        After an earlier run of the program, it is the newest turn that the session has after this one.
        """
        leaf = self.session.leaf if self.session else None
        if self._undone and self._undone[-1][0] == leaf:
            self._move(self._undone.pop()[1])
        elif turn := self.history.store.undone(self.session)[:2] if self.session else []:
            self._move(turn[-1].id)
        else:
            raise SessionError("nothing to redo", "/replies lists other replies to the last question")
        return self.require_question().message.content

    @property
    def replies(self) -> list[StoredMessage]:
        """All replies to the last question, and to its other versions, oldest first. Raises SessionError."""
        return self.history.store.replies(self.require_question())

    def choose_reply(self, reply: StoredMessage) -> None:
        self._move(reply.id)

    def replace_reply(self, reply: str) -> None:
        self._move(self.require_reply().parent, Message("assistant", reply))

    def set_system_prompt(self, system_prompt: str | None) -> None:
        """Change the system prompt from now on; None means the format's own."""
        self.settings = replace(self.settings, system=system_prompt)
        if self.session:
            self.session = self.history.store.update_session(self.session, system_prompt=system_prompt)

    def fork(self, name: str | None = None) -> Session:
        if self.session is None:
            raise SessionError("no messages yet", "ask something first")
        store = self.history.store
        copied = ("system_prompt", "model", "format", "params", "leaf", "first")
        values = {key: getattr(self.session, key) for key in copied}
        self.switch_session(store.create(store.unused_name(name or self.session.name), "chat", **values))
        return self.session

    def switch_session(self, session: Session | None, name: str | None = None) -> NoticeEvent | None:
        """Switch to a session, with None to one that the next question creates. Raises SessionError if it is locked.

        What was evaluated of the previous one is saved; return a notice if that fails.
        """
        notice = None
        if self.session and self.session.leaf and not (session and session.leaf == self.session.leaf):
            notice = self.loaded.save_prompt_cache(MIN_CACHED_TOKENS, self.conversation, empties=True)
        if session:
            session = self.history.acquire(session)
        else:
            self.history.release()
        self.session, self.name = session, name
        return notice

    def rename(self, name: str) -> None:
        """Rename the session, or name the one to be created. Raises SessionError if the name is in use."""
        if self.session:
            self.session = self.history.store.update_session(self.session, name=name)
        elif self.history.store.find(validated_name(name)):
            raise SessionError(f"session {name!r} already exists", "choose another name")
        self.name = name

    def change_settings(self, changes: Layer) -> Events:
        """Change settings, None meaning the default; yield the loading events if the model must be (re)loaded.

        If that fails, the previous model and settings are restored.
        """
        unprompted = None if self.unprompted is None else with_changes(self.unprompted, changes)
        yield from self._apply(with_changes(self.overrides, changes), changes, unprompted)

    def use(self, saved: SavedPrompt) -> Events:
        """Apply a saved prompt's settings, not an earlier one's; yield the events of loading. Raises UsageError."""
        saved.require_without("a chat", "schema", "extract")
        before = self.overrides.get("system")
        unprompted = self.overrides if self.unprompted is None else self.unprompted
        settings = yield from self._apply(SourcedLayer(unprompted, saved.settings), saved.settings, unprompted)
        is_earlier = self.overrides.get("system") != before == self.conversation.system_prompt
        if "system" in saved.settings or is_earlier:  # not after /system, which stays
            self.set_system_prompt(settings.system)

    def _apply(self, overrides: Layer, changes: Layer, unprompted: Layer | None) -> Generator[Event, None, Settings]:
        if self.loaded.is_remote and (
            local := next((key for key in LOCAL_KEYS if overrides.get(key) is not None), None)
        ):
            raise UsageError(f"{local} cannot be set: the model runs on a server", "set it where the server is started")
        previous, source = replace(self.loaded.source, settings=self.settings), self.resolve(overrides)
        source.validate()
        settings = source.settings
        if source.reload_key != previous.reload_key:
            if notice := self.loaded.save_prompt_cache(MIN_CACHED_TOKENS, self.conversation):
                yield notice
            try:
                self._reopen(source)
                yield from self.loaded.load()
                self.loaded.check_settings(settings)
            except BaseException:
                self._reopen(previous)
                raise
        elif changes.get("speculative") and (notice := draft_notice(self.loaded.model)):
            yield notice
        elif changes.get("logit_bias") or changes.get("think"):
            yield from self.load()
            self.loaded.check_settings(settings)
        self.overrides, self.unprompted = overrides, unprompted
        self.settings = replace(settings, system=self.settings.system)
        if self.session:
            self._update_session()
        return settings

    def load(self) -> Events:
        """Yield the loading events of the model; after a failure, restart it for the next question."""
        source = replace(self.loaded.source, settings=self.settings)
        try:
            yield from self.loaded.load()
        except BaseException:
            self._reopen(source)
            raise

    def close(self) -> NoticeEvent | None:
        """Save the prompt cache, and release model and session; return a notice if saving failed."""
        try:
            return self.loaded.save_prompt_cache(
                MIN_CACHED_TOKENS, self.conversation, is_slow=lambda tokens: tokens >= MIN_PREFIX_TOKENS
            )
        finally:
            self.loaded.close()
            self.history.close()

    @property
    def is_saved(self) -> bool:
        return self.history.locks is not None

    def require_question(self) -> StoredMessage:
        for stored in reversed(self.messages):
            if stored.message.role == "user":
                return stored
        raise SessionError("no question yet", "ask something first")

    def require_reply(self) -> StoredMessage:
        if last := self.last_reply:
            return last
        raise SessionError("no reply yet", "ask something first")

    def _move(self, leaf: int | None, message: Message | None = None) -> int | None:
        """Move the session to another branch, add a message to it, and return the previous leaf."""
        assert self.session
        previous_leaf = self.session.leaf
        self.session = self.history.store.move(self.session, leaf)
        if message:
            self.session = self.history.store.add_message(self.session, message)
        return previous_leaf

    def _reopen(self, source: ModelSource) -> None:
        """Free the loaded model and start to load another; safe to call again after an interruption."""
        self.loaded.close()
        self.loaded = open_source(source)

    @property
    def _session_values(self) -> dict[str, Any]:
        model = self.loaded.model
        recorded = session_params(self.settings, model)
        params = {key: value for key, value in recorded.items() if key in KEPT or key in self.overrides}
        return {"model": model.reference, "format": self.loaded.format_name, "params": params}

    def _update_session(self) -> Session:
        assert self.session is not None
        values = self._session_values
        if any(getattr(self.session, key) != value for key, value in values.items()):
            self.session = self.history.store.update_session(self.session, **values)
        return self.session

    def _reply(
        self,
        previous_leaf: int | None,
        continued: StoredMessage | None = None,
        settings: Settings | None = None,
        majority_vote: MajorityVote | None = None,
    ) -> Events:
        """Yield the events of a reply to the last question, saving it while it is generated.

        Of a vote, the winning sample is saved, or the leading one if it is interrupted. If there is no reply to save,
        the session is moved back to `previous_leaf`.
        """
        session, settings = self._update_session(), settings or self.settings
        recorder = ReplyRecorder(self.history.store, session, self.loaded, settings, continued)
        try:
            yield from self.load()
            yield from recorder.record(majority_vote)
            self._sampled = recorder.session.leaf, tuple(recorder.reply.sampled)
        except BaseException as error:
            recorder.end_early(error, previous_leaf)
            raise
        finally:
            self.session = recorder.session


def with_changes(layer: Layer, changes: Layer) -> Layer:
    """A layer with changes; None removes a setting."""
    changed = SourcedLayer(layer, SourcedLayer(changes, origin=SLASH_SET))
    for key in changes.keys() - SourcedLayer(changes).keys():
        changed.pop(key, None)
    return changed
