"""A chat: a session, the loaded model that replies in it, and every change a user can make to either.

Questions are saved immediately, replies while they are generated. Undo, retry and fork move through the session's tree
of messages; the engine still holds the tokens of the shared prefix, so these are not evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cerebrum_cli.chat.archive import SUFFIX_FORMATS, export_to_file, format_transcript, session_rows
from cerebrum_cli.chat.history import (
    KEPT,
    NO_CONTINUATION,
    History,
    calls_of,
    can_continue,
    forced_tokens,
    is_author,
    load_conversation,
    session_params,
    settings_of,
    unused_session_name,
    without_last,
    without_partial_character,
)
from cerebrum_cli.chat.reply_recorder import ReplyRecorder
from cerebrum_cli.chat.session import Messages, Session, StoredMessage, validated_name
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import CerebrumError, FormatError, SessionError, UsageError
from cerebrum_cli.core.events import Event, Events, NoticeEvent
from cerebrum_cli.core.inspection import GivenReply
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import LOCAL_KEYS, SLASH_SET, Layer, Settings, SourcedLayer, without_keys
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.reply import MajorityVote, Reply
from cerebrum_cli.replies.source import ModelSource

MIN_PREFIX_TOKENS = 32  # of the system prompt, with which every conversation begins


@dataclass(slots=True)
class Chat:
    """A session and the model that replies in it; `session` is None until the first question.

    `overrides` are the settings from the command line, the environment and /set: they apply to other models too. So do
    `saved`, those of the saved prompt in use, which are above them. Replies may call the `tools`, but not in a vote.
    """

    history: History
    resolve: Callable[[Layer], ModelSource]
    overrides: Layer
    loaded: Model
    settings: Settings
    session: Session | None = None
    name: str | None = None
    saved: Layer = field(default_factory=dict)
    tools: Tools = ()
    _counted: tuple[object, int] | None = None
    _generated: tuple[int | None, Reply] | None = None  # for the message with this id
    _undone: list[tuple[int | None, int | None]] = field(default_factory=list)  # leaves after and before

    @property
    def messages(self) -> Messages:
        return self.history.store.messages(self.session) if self.session else []

    @property
    def conversation(self) -> Conversation:
        if self.session is None:
            conversation = self.settings.applied_to(Conversation((), self.settings.system))
        else:
            conversation = load_conversation(self.history.store, self.session, self.loaded.model, self.settings)
        return replace(conversation, tools=tuple(tool.spec for tool in self.tools))

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply; None if the last message is a question."""
        messages = self.messages
        return messages[-1] if messages and messages[-1].message.role == "assistant" else None

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
        key = self.loaded, self.session, self.tools, settings.system, settings.think, settings.keep_reasoning
        if self._counted is None or self._counted[0] != key:
            conversation = self.conversation
            if self.last_reply or not self.messages:
                # Templates may include the reasoning of the last reply, and may need a question.
                conversation = conversation.user("")
            try:
                self._counted = key, self.loaded.count_tokens(conversation)
            except FormatError:  # reported with the next question
                return None
        return self._counted[1], size

    def send(self, text: str, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        """Save a question, and return the events of the reply or vote. Without a reply, the question is removed."""
        question = Message("user", text)
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
        name = self.name or unused_session_name(store, Conversation((question,)))
        values = self._session_values
        session = store.create(name, "chat", system_prompt=self.settings.system, question=question, **values)
        self.history.lock(session)
        return session

    def edit_question(self, text: str) -> Events:
        yield from self._reply(self._move(self.require_question().parent, Message("user", text)))

    def retry(self, settings: Settings | None = None, majority_vote: MajorityVote | None = None) -> Events:
        yield from self._reply(self._move(self.require_question().id), settings=settings, majority_vote=majority_vote)

    def continue_reply(self) -> Events:
        """Continue the last reply, if it was cut off or edited. Raises SessionError."""
        last = self.require_reply()
        if last.is_edited:
            yield from self.reply_from(last.message.content)
            return
        if not can_continue(last, self.loaded.model):
            raise SessionError(NO_CONTINUATION, "ask a question, or use /retry")
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

    def given_reply(self) -> GivenReply:
        """The last reply in the tokens it was sampled as. Raises SessionError if they are not known.

        Those of a reply that a stop string ended are not stored, and known only while the chat runs.
        """
        self.loaded.require_inspection()
        last = self.require_reply()
        tokens = last.message.tokens
        if self.generated:
            tokens = tuple(self.generated.sampled)
        if tokens is None or not is_author(self.loaded.model, last.metadata):
            raise SessionError("the tokens of the last reply are not known for this model", "use /retry first")
        conversation = settings_of(last, self.settings).applied_to(self.conversation)
        return GivenReply(without_last(conversation), tokens, forced_tokens(last.metadata))

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
    def replies(self) -> Messages:
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
            notice = self.loaded.save_prompt_cache(self.conversation, empties=True)
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
        kept = without_keys(self.overrides, changes)
        overrides = SourcedLayer(kept, SourcedLayer(changes, origin=SLASH_SET))
        yield from self._apply(overrides, without_keys(self.saved, changes), changes)

    def use(self, prompt: SavedPrompt) -> Events:
        """Apply a saved prompt's settings, not an earlier one's; yield the events of loading. Raises UsageError."""
        prompt.require_without("a chat", "schema", "extract")
        earlier = self.saved.get("system")
        is_in_effect = earlier is not None and earlier == self.conversation.system_prompt  # not after /system
        settings = yield from self._apply(self.overrides, prompt.settings, prompt.settings)
        if is_in_effect or "system" in prompt.settings:
            self.set_system_prompt(settings.system)

    def _apply(self, overrides: Layer, saved: Layer, changes: Layer) -> Generator[Event, None, Settings]:
        if self.loaded.is_remote:
            require_no_local(changes)
        source = self.resolve(SourcedLayer(overrides, saved))
        source.choose_format()
        settings = source.settings
        if source.reload_key != self._source.reload_key:
            yield from self._change_model(source)
        elif changes.get("logit_bias") or changes.get("think"):
            yield from self.load()
            self.loaded.check_settings(settings)
            yield from self.loaded.take_notices()
        self.overrides, self.saved = overrides, saved
        self.settings = replace(settings, system=self.settings.system)
        if self.session:
            self._update_session()
        return settings

    @property
    def _source(self) -> ModelSource:
        """What opens the loaded model again, with the present settings."""
        return replace(self.loaded.source, settings=self.settings)

    def _change_model(self, source: ModelSource) -> Events:
        """Load another model, or the same with other options; after a failure, open the previous one again."""
        previous = self._source
        if notice := self.loaded.save_prompt_cache(self.conversation):
            yield notice
        try:
            self._reopen(source)
            yield from self.loaded.load()
            self.loaded.check_settings(source.settings)
            yield from self.loaded.take_notices()
        except BaseException:
            self._reopen(previous)
            raise

    def load(self) -> Events:
        """Yield the loading events of the model; after a failure, restart it for the next question."""
        source = self._source
        try:
            yield from self.loaded.load()
        except BaseException:
            self._reopen(source)
            raise

    def close(self) -> NoticeEvent | None:
        """Save the prompt cache, and release model and session; return a notice if saving failed."""
        try:
            return self.loaded.save_prompt_cache(self.conversation, is_slow=lambda tokens: tokens >= MIN_PREFIX_TOKENS)
        finally:
            self.loaded.close()
            self.history.close()

    @property
    def session_rows(self) -> list[JsonDict]:
        return session_rows(self.history.store)

    @property
    def transcript(self) -> str:
        """The exact text of the conversation, once the model is loaded."""
        return format_transcript(self.loaded, self.conversation)

    def export(self, path: Path) -> Events:
        """Export the session to a new file, in the format of its suffix. Raises UsageError."""
        if self.session is None:
            raise UsageError("the conversation is empty", "ask something first")
        if SUFFIX_FORMATS.get(path.suffix) == "transcript":  # needs the model's vocabulary
            yield from self.load()
        export_to_file(path, self.history.store, self.session, self.loaded)

    @property
    def difference(self) -> NoticeEvent | None:
        """The notice of a session that used another model or other adapters than the loaded ones."""
        session, model = self.session, self.loaded.model
        if session is None:
            return None
        if session.model and session.model != model.reference:
            return NoticeEvent(f"this session used {session.model}", f"switch with /model {session.model}")
        adapters = session.params.get(LORA, [])
        if self.loaded.is_remote or adapters == model.adapter_names:
            return None
        if not adapters:
            return NoticeEvent("this session used other adapters: none", "switch with /set lora none")
        used = " and ".join(adapters)
        return NoticeEvent(f"this session used other adapters: {used}", f"switch with /set lora {adapters[0]}")

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
    def _session_values(self) -> JsonDict:
        model = self.loaded.model
        chosen = {*KEPT, *self.overrides, *self.saved}
        params = {key: value for key, value in session_params(self.settings, model).items() if key in chosen}
        return {"model": model.reference, "format": self.loaded.format_name, "params": params}

    def _update_session(self) -> Session:
        assert self.session is not None
        values = self._session_values
        stored = {key: getattr(self.session, key) for key in values}
        if stored != values:
            self.session = self.history.store.update_session(self.session, **values)
        return self.session

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


def require_no_local(changes: Layer) -> None:
    """Raise UsageError if a setting is changed that only a model on this machine has."""
    for key in LOCAL_KEYS:
        if changes.get(key) is not None:
            raise UsageError(f"{key} cannot be set: the model runs on a server", "set it where the server is started")
