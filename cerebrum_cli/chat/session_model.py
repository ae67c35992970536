"""The model of a chat and its settings, both of which can be changed; a session remembers them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from cerebrum_cli.chat.open_session import OpenSession
from cerebrum_cli.chat.reply_params import session_params
from cerebrum_cli.chat.session import KEPT, Session
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.events import Event, Events, NoticeEvent
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import LOCAL_KEYS, SLASH_SET, Layer, Settings, SourcedLayer, without_keys
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.source import Installation, ModelSource

MIN_PREFIX_TOKENS = 32  # of the system prompt, with which every conversation begins


@dataclass(slots=True, kw_only=True)
class SessionModel(OpenSession):
    """The model that replies in a session.

    `overrides` are the settings from the command line, the environment and /set: they apply to other models too. So do
    `saved`, those of the saved prompt in use, which are above them. Replies may call the `tools`, but not in a vote.
    """

    resolve: Callable[[Layer], ModelSource]
    overrides: Layer
    loaded: Model
    settings: Settings
    saved: Layer = field(default_factory=dict)
    tools: Tools = ()

    @property
    def installation(self) -> Installation:
        return self.loaded.source.installation

    @property
    def conversation(self) -> Conversation:
        if self.session is None:
            conversation = Conversation((), self.settings.system)
        else:
            conversation = self.history.conversation(self.session, self.loaded.model)
        return Ask(conversation, self.settings, tools=self.tools).conversation

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
            notice = self.loaded.save_prompt_cache(self.conversation)
        if session:
            session = self.history.acquire(session)
        else:
            self.history.release()
        self.session, self.name = session, name
        return notice

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


def require_no_local(changes: Layer) -> None:
    """Raise UsageError if a setting is changed that only a model on this machine has."""
    for key in LOCAL_KEYS:
        if changes.get(key) is not None:
            raise UsageError(f"{key} cannot be set: the model runs on a server", "set it where the server is started")
