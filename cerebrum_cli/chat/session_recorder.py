"""The session that one question continues, and the one its exchange is saved in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.chat.session import StoredMessage
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.model.loaded_model import LoadedModel
    from cerebrum_cli.model.reply import Reply
    from cerebrum_cli.model.voting import MajorityVote
    from cerebrum_cli.models.model import InstalledModel


class SessionRecorder:
    """Continue the latest session if asked to, and save the exchange unless `saves` is off.

    The history is imported and opened when it is first needed, mostly after the answer.
    """

    def __init__(
        self,
        open_history: Callable[[], History],
        notify: Callable[[NoticeEvent], None],
        *,
        continues: bool,
        saves: bool,
    ) -> None:
        self._open_history = open_history
        self._notify = notify
        self._saves = saves
        self._opened: History | None = None
        self.session = self._history.acquire_latest() if continues else None
        self.continued: StoredMessage | None = None  # the last reply, which was cut off
        self.saved_as: str | None = None  # the name of the session that has the exchange

    def with_defaults(self, overrides: Layer, is_remote: bool) -> Layer:
        """Add the session's own model, format and adapters to the overrides."""
        if self.session is None:
            return overrides
        from cerebrum_cli.chat.history import with_session_defaults

        return with_session_defaults(self.session, overrides, is_remote)

    def prepend(self, conversation: Conversation, model: InstalledModel, overrides: Mapping[str, Any]) -> Conversation:
        if self.session is None:
            return conversation
        from cerebrum_cli.chat.history import continue_session

        return continue_session(self._history.store, self.session, model, conversation, overrides.get("system"))

    def resume(self, model: InstalledModel, settings: Settings) -> tuple[Conversation, Settings]:
        """The conversation up to the last question, and the settings of its reply, which is continued.

        Raises SessionError.
        """
        from cerebrum_cli.chat.history import NO_CONTINUATION, can_continue, load_conversation, settings_of

        assert self.session, "it continues"
        messages = self._history.store.messages(self.session)
        if not messages or not can_continue(messages[-1], model):
            raise SessionError(NO_CONTINUATION, 'ask a question: cerebrum ask -c "..."')
        self.continued = messages[-1]
        settings = settings_of(self.continued, settings)
        conversation = load_conversation(self._history.store, self.session, model, settings)
        return replace(conversation, messages=conversation.messages[:-1]), settings

    def save(self, conversation: Conversation, loaded: LoadedModel, settings: Settings, reply: Reply) -> None:
        """Save the exchange; a failure is a notice, since the answer stands."""
        if not self._saves:
            return
        session, continued = self.session, self.continued
        try:
            self.saved_as = self._history.record(session, conversation, reply, loaded, settings, continued).name
        except SessionError as error:
            self._notify(NoticeEvent(f"this exchange was not saved: {error.message}", error.hint))

    def save_prompt_cache(self, loaded: LoadedModel, conversation: Conversation, reply: Reply | MajorityVote) -> None:
        """Save the prompt, and the prefix that all such prompts share, if they took long to evaluate."""
        if not self._saves:
            return
        from cerebrum_cli.model.reply import LONG_PROMPT

        notice = loaded.save_prompt_cache(LONG_PROMPT, conversation) if reply.has_long_prompt else None
        if notice := notice or loaded.save_prefix(conversation, reply.has_slow_prefill):
            self._notify(notice)

    def close(self) -> None:
        if self._opened:
            self._opened.close()

    @property
    def _history(self) -> History:
        if self._opened is None:
            self._opened = self._open_history()
        return self._opened
