"""A chat: questions to the loaded model, and its replies, which are saved in a session.

Questions are saved immediately, replies while they are generated. Undo, retry and fork move through the session's tree
of messages; the engine still holds the tokens of the shared prefix, so these are not evaluated again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cerebrum_cli.chat.model_view import (
    calls_of,
    no_continuation,
    without_last,
    without_partial_character,
)
from cerebrum_cli.chat.reply_params import settings_of
from cerebrum_cli.chat.reply_recorder import ReplyRecorder
from cerebrum_cli.chat.session import Session, StoredMessage
from cerebrum_cli.chat.session_model import SessionModel
from cerebrum_cli.core.conversation import Conversation, Message, Pictures
from cerebrum_cli.core.errors import CerebrumError, FormatError, SessionError, UsageError
from cerebrum_cli.core.events import Events, NoticeEvent
from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.replies.reply import MajorityVote, Reply


@dataclass(slots=True, kw_only=True)
class Chat(SessionModel):
    """Questions and replies in a session, and what is known of them."""

    EXPORTS: ClassVar[tuple[str, ...]] = ".md", ".json"

    _counted: tuple[object, int] | None = None
    _generated: tuple[int | None, Reply] | None = None  # for the message with this id

    @property
    def generated(self) -> Reply | None:
        """The last reply as it was generated; None if that was before the chat was opened."""
        leaf = self.session.leaf if self.session else None
        if self._generated and self._generated[0] == leaf:
            return self._generated[1]
        return None

    @property
    def context_usage(self) -> tuple[int, int] | None:
        """Tokens of the conversation and of the context; None until the model is loaded, and where they are unknown."""
        size = self.loaded.context_size
        if size is None or self.loaded.model.is_served:
            return None
        settings = self.settings
        key = self.loaded, self.session, self.tools, settings.system, settings.think
        if self._counted is None or self._counted[0] != key:
            try:
                self._counted = key, self.loaded.count_tokens(self._with_question)
            except FormatError:  # reported with the next question
                return None
        return self._counted[1], size

    @property
    def _with_question(self) -> Conversation:
        """The conversation with a question: templates may include the reasoning of the last reply, and may need one."""
        conversation = self.conversation
        return conversation.user("") if self.last_reply or not self.messages else conversation

    def send(
        self,
        text: str,
        settings: Settings | None = None,
        majority_vote: MajorityVote | None = None,
        pictures: Pictures = (),
    ) -> Events:
        """Save a question, and return the events of the reply or vote. Without a reply, the question is removed."""
        question = Message("user", text, pictures=pictures)
        if self.session:
            previous_leaf = self.session.leaf
            self.session = self.history.store.add_message(self.session, question)
            return self._reply(previous_leaf, settings=settings, majority_vote=majority_vote)
        self.session = self._create_session(question)
        return self._first_reply(settings, majority_vote)

    def _first_reply(self, settings: Settings | None, majority_vote: MajorityVote | None) -> Events:
        try:
            yield from self._reply(None, settings=settings, majority_vote=majority_vote)
        except CerebrumError:
            if self.session and self.session.leaf is None:
                with suppress(SessionError):
                    self.history.store.remove(self.session)
                self.switch_session(None, self.name)
            raise

    def _create_session(self, question: Message) -> Session:
        """Create the session with its first question in one step: a killed process leaves no empty session."""
        store = self.history.store
        values = self._session_values
        with store.transaction():  # no other process takes its name, or sees it before it is locked
            name = self.name or self.history.unused_name(Conversation((question,)))
            session = store.create(name, "chat", system_prompt=self.settings.system, question=question, **values)
            self.history.lock(session)
        return session

    def edit_question(self, text: str) -> Events:
        """Ask the last question again with another text, and the same pictures."""
        question = self.require_question()
        yield from self._reply(self._move(question.parent, replace(question.message, content=text)))

    def retry(self, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        yield from self._reply(self._move(self.require_question().id), settings=settings, majority_vote=majority_vote)

    def continue_reply(self) -> Events:
        """Continue the last reply, if it was cut off or edited. Raises SessionError."""
        last = self.require_reply()
        if last.is_edited:
            yield from self.reply_from(last.message.content)
            return
        if problem := no_continuation(last, self.loaded.model):
            raise SessionError(problem, "ask a question, or use /retry")
        yield from self.load()
        if last.metadata.finish_reason == "context" and not self.loaded.is_remote:
            self._enlarge_context(last)
        continued = without_partial_character(last, self.loaded)
        question = self.require_question()
        settings, begun = settings_of(last, self.settings), calls_of(continued.message)
        yield from self._reply(self._move(question.id), continued, settings, prefill=begun)

    def reply_from(self, beginning: str) -> Events:
        """Reply to the last question again, with a given beginning."""
        yield from self._reply(self._move(self.require_question().id), prefill=Message("assistant", beginning))

    @property
    def doubled_context(self) -> int | None:
        """Twice the context, up to the model's trained length; None if it has that."""
        size, trained = self.loaded.engine.context_size, self.loaded.model.trained_context
        if size >= trained:
            return None
        return min(2 * size, trained)

    def _enlarge_context(self, last: StoredMessage) -> None:
        """Enlarge the context if question and reply fill this one. Raises SessionError."""
        size = self.loaded.context_size or 0
        asked = without_last(self.conversation)
        if self.loaded.count_tokens(asked) + len(last.message.tokens or ()) < size:
            return
        if larger := self.doubled_context:
            self.loaded.grow(larger)
        if self.loaded.context_size == size:
            problem = f"the reply fills the context of {size} tokens, the largest for this model and free memory"
            raise SessionError(problem, "limit reasoning with /think N, then /retry")

    @property
    def transcript(self) -> str:
        """The exact text of the conversation, once the model is loaded."""
        conversation = self.conversation
        if not (conversation.messages and conversation.messages[-1].role == "assistant"):
            return f"{self.loaded.preview(conversation)[0]}\n"
        last = conversation.messages[-1]
        prompt, _ = self.loaded.preview(replace(without_last(conversation), thinks=last.thinks))
        if last.tokens is not None:
            return f"{prompt}{self.loaded.detokenize(last.tokens)}\n"
        if not prompt[-1:].isspace():
            prompt += " "
        return f"{prompt}{last.content}\n"

    def export(self, path: Path) -> None:
        """Write the session to a new file, as Markdown or OpenAI's messages by its suffix. Raises UsageError."""
        if self.session is None:
            raise UsageError("the conversation is empty", "ask something first")
        if path.suffix not in self.EXPORTS:
            raise UsageError(f"{path}: unsupported file type", f"use {' or '.join(self.EXPORTS)}")
        archived = self.history.archived(self.session)
        text = archived.markdown if path.suffix == ".md" else archived.json
        if path.exists():
            raise UsageError(f"{path} already exists", "choose another file")
        try:
            atomic_write(path, text.encode())  # a partial file would make the next attempt fail
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", "choose another file") from error

    def _reply(
        self,
        previous_leaf: int | None,
        continued: StoredMessage | None = None,
        settings: Settings | None = None,
        majority_vote: MajorityVote | None = None,
        prefill: Message | None = None,
    ) -> Events:
        """Yield the events of a reply to the last question, which may begin with `prefill`, saving it meanwhile.

        Of a vote, the winning sample is saved, or the leading one if it is interrupted. If there is no reply to save,
        the session is moved back to `previous_leaf`.
        """
        session, settings = self._update_session(), settings or self.settings
        tools = self.tools if majority_vote is None else ()
        recorder = ReplyRecorder(self.history.store, session, self.loaded, settings, continued, prefill, tools)
        try:
            yield from self.load()
            if self.tools and not tools:
                yield NoticeEvent("a vote calls no functions")
            yield from recorder.record(majority_vote)
            if recorder.reply.is_finished:
                self._generated = recorder.session.leaf, recorder.reply
        except BaseException as error:
            recorder.end_early(error, previous_leaf)
            raise
        finally:
            self.session = recorder.session
