"""A chat: questions to the loaded model, and its replies, which are saved in a session.

Questions are saved immediately, replies while they are generated. The engine still holds the tokens of the shared
prefix after undo and retry, so these are not evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.message_tree import MessageTree
from cerebrum_cli.chat.model_messages import (
    calls_of,
    no_continuation,
    session_params,
    settings_of,
    without_last,
    without_partial_character,
)
from cerebrum_cli.chat.reply_recorder import ReplyRecorder
from cerebrum_cli.chat.session import Session, StoredMessage
from cerebrum_cli.core.conversation import Conversation, Message, Pictures
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import CerebrumError, FormatError, SessionError, UsageError
from cerebrum_cli.core.events import Event, Events, NoticeEvent
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import (
    LOCAL_KEYS,
    SLASH_SET,
    Layer,
    Settings,
    SourcedLayer,
    for_other_model,
    without_keys,
)
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.source import Installation, ModelSource

if TYPE_CHECKING:
    from cerebrum_cli.chat.archive import ArchivedSession

MIN_PREFIX_TOKENS = 32  # of the system prompt, with which every conversation begins


@dataclass(slots=True, kw_only=True)
class Chat:
    """A session, and the model that replies in it; both can be changed.

    `overrides` are the settings from the command line, the environment and /set: they apply to other models too. So do
    `saved`, those of the saved prompt in use, which are above them. Replies may call the `tools`.
    """

    tree: MessageTree
    resolve: Callable[[Layer], ModelSource]
    overrides: Layer
    loaded: Model
    settings: Settings
    saved: Layer = field(default_factory=dict)
    tools: Tools = ()
    _counted: tuple[object, int] | None = None
    _generated: tuple[int | None, Reply] | None = None  # for the message with this id

    # Questions and replies.

    def send(self, text: str, pictures: Pictures = ()) -> Events:
        """Save a question, and return the events of the reply. Without a reply, the question is removed."""
        is_new = self.tree.session is None
        values = {"system_prompt": self.settings.system, **self._session_values}
        previous_leaf = self.tree.ask(Message("user", text, pictures=pictures), values)
        return self._first_reply() if is_new else self._reply(previous_leaf)

    def _first_reply(self) -> Events:
        try:
            yield from self._reply(None)
        except CerebrumError:
            with suppress(SessionError):
                self.tree.remove_empty()
            raise

    def edit_question(self, text: str) -> Events:
        """Ask the last question again with another text, and the same pictures."""
        yield from self._reply(self.tree.ask_instead(text))

    def retry(self, settings: Settings | None = None) -> Events:
        yield from self._reply(self.tree.retry(), settings)

    def continue_reply(self) -> Events:
        """Continue the last reply, if it was cut off or edited. Raises SessionError."""
        last = self.tree.require_reply()
        if last.is_edited:
            yield from self.reply_from(last.message.content)
            return
        if problem := no_continuation(last, self.loaded.model):
            raise SessionError(problem, "ask a question, or use /retry")
        yield from self.load()
        continued = without_partial_character(last, self.loaded)
        settings = settings_of(last, self.settings)
        yield from self._reply(self.tree.retry(), settings, continued, calls_of(continued.message))

    def reply_from(self, beginning: str) -> Events:
        """Reply to the last question again, with a given beginning."""
        yield from self._reply(self.tree.retry(), prefill=Message("assistant", beginning))

    def _reply(
        self,
        previous_leaf: int | None,
        settings: Settings | None = None,
        continued: StoredMessage | None = None,
        prefill: Message | None = None,
    ) -> Events:
        """Yield the events of a reply to the last question, which may begin with `prefill`, saving it meanwhile.

        If there is no reply to save, the session is moved back to `previous_leaf`.
        """
        self.tree.update(**self._session_values)
        recorder = ReplyRecorder(self.tree, self.loaded, settings or self.settings, continued, prefill, self.tools)
        try:
            yield from self.load()
            yield from recorder.events()
            if recorder.reply.is_finished and self.tree.session:
                self._generated = self.tree.session.leaf, recorder.reply
        except BaseException as error:
            recorder.end_early(error, previous_leaf)
            raise

    # The conversation, its model and its settings.

    @property
    def conversation(self) -> Conversation:
        """What the model sees of the session."""
        if self.tree.session is None:
            conversation = Conversation((), self.settings.system)
        else:
            conversation = self.tree.history.conversation(self.tree.session, self.loaded.model)
        return self.settings.applied_to(conversation, self.tools)

    @property
    def generated(self) -> Reply | None:
        """The last reply as it was generated; None if that was before the chat was opened."""
        leaf = self.tree.session.leaf if self.tree.session else None
        if self._generated and self._generated[0] == leaf:
            return self._generated[1]
        return None

    @property
    def context_usage(self) -> tuple[int, int] | None:
        """Tokens of the conversation and of the context; None until the model is loaded, and where they are unknown."""
        size = self.loaded.context_size
        if size is None or self.loaded.model.is_served:
            return None
        key = self.loaded, self.tree.session, self.tools, self.settings.system, self.settings.think
        if self._counted is None or self._counted[0] != key:
            try:
                self._counted = key, self.loaded.prompts.count(self._with_question)
            except FormatError:  # reported with the next question
                return None
        return self._counted[1], size

    @property
    def _with_question(self) -> Conversation:
        """The conversation with a question: templates may include the reasoning of the last reply, and may need one."""
        conversation = self.conversation
        return conversation.user("") if self.tree.last_reply or not self.tree.messages else conversation

    @property
    def transcript(self) -> str:
        """The exact text of the conversation, once the model is loaded."""
        conversation = self.conversation
        if not (conversation.messages and conversation.messages[-1].role == "assistant"):
            return f"{self.loaded.preview(conversation)[0]}\n"
        last = conversation.messages[-1]
        prompt, _ = self.loaded.preview(replace(without_last(conversation), thinks=last.thinks))
        if last.tokens is not None:
            return f"{prompt}{self.loaded.prompts.detokenize(last.tokens)}\n"
        if not prompt[-1:].isspace():
            prompt += " "
        return f"{prompt}{last.content}\n"

    @property
    def archived(self) -> ArchivedSession:
        """The session to be shown or exported. Raises SessionError if there is none yet."""
        return self.tree.history.archived(self.tree.require_session())

    # Another session, model or settings.

    @property
    def installation(self) -> Installation:
        return self.loaded.source.installation

    def switch_session(self, session: Session | None) -> NoticeEvent | None:
        """Switch to a session, with None to one that the next question creates. Raises SessionError if it is locked.

        What was evaluated of the previous one is saved; return a notice if that fails.
        """
        notice = None
        if self.tree.messages and session != self.tree.session:
            notice = self.loaded.save_prompt_cache(self.conversation)
        self.tree.open(session)
        return notice

    def delete_session(self, session: Session) -> int:
        """Erase a session, and return its number of messages; if it is the open one, the next question creates another.

        Raises SessionError if it is open in another process.
        """
        is_open = self.tree.session is not None and self.tree.session.id == session.id
        opened = self.tree.history
        history = opened if is_open else History(opened.store, opened.locks)  # which holds a lock of its own
        history.lock(session)
        directories = self.installation.prompt_cache_directory, self.installation.history_path
        [(_, count)] = history.delete([session], *directories)
        if is_open:
            self.tree.open(None)
            self._generated = None
        return count

    def set_system_prompt(self, system_prompt: str | None) -> None:
        """Change the system prompt from now on; None means the format's own."""
        self.settings = replace(self.settings, system=system_prompt)
        self.tree.update(system_prompt=system_prompt)

    def change_settings(self, changes: Layer) -> Events:
        """Change settings, None meaning the default; yield the loading events if the model must be (re)loaded.

        If that fails, the previous model and settings are restored.
        """
        kept = without_keys(self.overrides, changes)
        if "model" in changes:
            kept = for_other_model(kept)
        overrides = SourcedLayer(kept, SourcedLayer(changes, origin=SLASH_SET))
        yield from self._apply(overrides, without_keys(self.saved, changes), changes)

    def use(self, prompt: SavedPrompt) -> Events:
        """Apply a saved prompt's settings, not an earlier one's; yield the events of loading. Raises UsageError."""
        prompt.require_for_chat()
        earlier = self.saved.get("system")
        is_in_effect = earlier is not None and earlier == self.conversation.system_prompt  # not after /system
        settings = yield from self._apply(self.overrides, prompt.settings, prompt.settings)
        if is_in_effect or "system" in prompt.settings:
            self.set_system_prompt(settings.system)

    def _apply(self, overrides: Layer, saved: Layer, changes: Layer) -> Generator[Event, None, Settings]:
        if self.loaded.is_remote:
            require_no_local(changes)
        named = for_other_model(overrides) if "model" in saved else overrides
        source = self.resolve(SourcedLayer(named, saved))
        source.choose_format()
        settings = source.settings
        if source.reload_key != self._source.reload_key:
            yield from self._change_model(source)
        elif changes.get("think"):
            yield from self.load()
            self.loaded.check_settings(settings)
            yield from self.loaded.take_notices()
        self.overrides, self.saved = overrides, saved
        self.settings = replace(settings, system=self.settings.system)
        self.tree.update(**self._session_values)
        return settings

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

    def _reopen(self, source: ModelSource) -> None:
        """Free the loaded model and start to load another; safe to call again after an interruption."""
        self.loaded.close()
        self.loaded = open_source(source)

    @property
    def _source(self) -> ModelSource:
        """What opens the loaded model again, with the present settings."""
        return replace(self.loaded.source, settings=self.settings)

    @property
    def _session_values(self) -> JsonDict:
        """What the session records of the model and of the settings that the user has chosen."""
        model = self.loaded.model
        chosen = {LORA, *self.overrides, *self.saved}
        params = {key: value for key, value in session_params(self.settings, model).items() if key in chosen}
        return {"model": model.reference, "format": self.loaded.format_setting, "params": params}

    @property
    def difference(self) -> NoticeEvent | None:
        """The notice of a session that used another model or other adapters than the loaded ones."""
        session, model = self.tree.session, self.loaded.model
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

    def load(self) -> Events:
        """Yield the loading events of the model; after a failure, restart it for the next question."""
        source = self._source
        try:
            yield from self.loaded.load()
        except BaseException:
            self._reopen(source)
            raise

    def cancel(self) -> None:
        """Stop what the model does, whichever is loaded by now."""
        self.loaded.cancel()

    def close(self) -> NoticeEvent | None:
        """Save the prompt cache, and release model and session; return a notice if saving failed."""
        try:
            return self.loaded.save_prompt_cache(self.conversation, is_slow=lambda tokens: tokens >= MIN_PREFIX_TOKENS)
        finally:
            self.loaded.close()
            self.tree.history.close()


def require_no_local(changes: Layer) -> None:
    """Raise UsageError if a setting is changed that only a model on this machine has."""
    for key in LOCAL_KEYS:
        if changes.get(key) is not None:
            raise UsageError(f"{key} cannot be set: the model runs on a server", "set it where the server is started")
