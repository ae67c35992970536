"""The session that one question continues, and the one its exchange is saved in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.chat.history import History
    from cerebrum_cli.chat.session import StoredMessage
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.settings import Settings
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
        self.session = self._history.acquire_latest() if continues else None
        self.continued: StoredMessage | None = None  # the last reply, which was cut off
        self.saved_as: str | None = None  # the name of the session that has the exchange

    @cached_property
    def _history(self) -> History:
        return self._open_history()

    def prepend(self, conversation: Conversation, model: InstalledModel, overrides: Mapping[str, Any]) -> Conversation:
        """The session's conversation and this one; a system prompt in the overrides replaces the session's."""
        from cerebrum_cli.chat.history import load_conversation

        assert self.session, "it continues"
        earlier = load_conversation(self._history.store, self.session, model)
        system = overrides.get("system")
        prompt = earlier.system_prompt if system is None else system
        return replace(earlier, messages=(*earlier.messages, *conversation.messages), system_prompt=prompt)

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
        from cerebrum_cli.model.reply import LONG_PROMPT, Reply

        replies = [reply] if isinstance(reply, Reply) else reply.finished_samples
        is_long = any(sample.has_long_prompt for sample in replies)
        notice = loaded.save_prompt_cache(
            LONG_PROMPT if is_long else None,
            conversation,
            is_slow=lambda tokens: any(sample.has_slow_prefill(tokens) for sample in replies),
        )
        if notice:
            self._notify(notice)
